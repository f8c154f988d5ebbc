"""Hybrids, models of two families, layers that never decay: every report says which of the layers it speaks of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.families.tiny_transformers import save_tiny
from tests.rules.initialisations import ARCHITECTURES

Run = Callable[..., tuple[int, str, str]]


def said(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def delta_net(tmp_path: Path) -> Path:
    """Two layers whose eigenvalues are all λ = 1, by design."""
    state = {}
    for layer in (0, 1):
        state |= {f"model.layers.{layer}.attn.{name}_proj.weight": torch.ones(8, 8) for name in "qkvo"}
        state[f"model.layers.{layer}.attn.b_proj.weight"] = torch.ones(2, 8)
        state[f"model.layers.{layer}.attn.o_norm.weight"] = torch.ones(4)
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "delta_net", "num_heads": 2, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def two_families(tmp_path: Path) -> Path:
    """One layer of Mamba-1, then two of Mamba-2."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, name in enumerate(["mamba", "mamba2", "mamba2"]):
        for local, value in ARCHITECTURES[name].layer(generator, layer, 3).items():
            state[f"layers.{layer}.mixer.{local}"] = value.contiguous()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    return tmp_path


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_the_kernel_of_a_model_of_several_layers_says_which_it_is_of(
    options: list[str], run: Run, two_families: Path
) -> None:
    out = said(run("kernel", two_families, *options)[1])
    assert out.startswith("OK layer 0, the first of 3 recurrent layers: ")
    assert "the first of 3 layers (Mamba-1, 1 layer + Mamba-2, 2 layers); --layer shows another" in out
    data = json.loads(run("kernel", two_families, "--json")[1])
    assert out.startswith(f"{data['status'].upper()} {data['answer']}")
    assert data["layers"] == 3
    asked = said(run("kernel", two_families, "--layer", "1", *options)[1])
    assert "the first of" not in asked
    assert "layers.1.mixer" in asked


def test_the_kernel_of_a_decay_fixed_at_one_is_known(run: Run, delta_net: Path, tmp_path: Path) -> None:
    out = said(run("kernel", delta_net)[1])
    assert out.startswith("OK layer 0, the first of 2 recurrent layers: never decays, by design, and holds what is")
    assert "2 channels: a mode on the stability boundary reaches the output: its energy never runs out" in out
    data = json.loads(run("kernel", delta_net, "--json")[1])
    assert data["status"] == "ok"
    assert data["answer"].endswith("never decays, by design, and holds what is written until it is overwritten")
    page = tmp_path / "kernel.html"
    run("kernel", delta_net, "-o", page)
    assert f"<b>OK.</b> L{data['answer'][1:]}</p>" in page.read_text()


def rates(tmp_path: Path, *each: float) -> list[object]:
    """One layer of a mode per channel, with these rates in nats a step."""
    save_file(
        {"x.rnn.rate": torch.tensor(each)[:, None], "x.rnn.b": torch.ones(len(each), 1)}, tmp_path / "m.safetensors"
    )
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "x"\nweight = "*.rnn.rate"\naxes = "channel mode"\nmap = "none"\ndomain = "rate"\n'
    )
    return [tmp_path / "m.safetensors", "--map", tmp_path / "map.toml", "--length", 64]


@pytest.mark.parametrize(
    ("each", "reach"),
    [
        # 1 − e^(−2 r n) ≥ 0.99 first at n = 24 for r = 0.1, at n = 5 for r = 0.5.
        ((0.1, 0.1, 0.5), "99 % of its energy has passed after 24 steps"),
        ((0.1, 0.5, 0.5), "99 % of its energy has passed after 5 steps in the median channel, 24 at most"),
        ((0.5, 0.5, 0.0), "99 % of its energy has passed after 5 steps in the median channel, never in 1 of 3"),
        ((0.5, 0.0, 0.0), "99 % of the energy has passed after 5 steps in 1 of 3 and never in 2 of 3 channels"),
        ((0.5, 1e-20, 0.0, 0.0), "in 1 of 4 and never in 2 of 4 and after more than 10¹² steps in 1 of 4 channels"),
        ((1e-20, 1e-20), "99 % of its energy takes more than 10¹² steps"),
    ],
)
def test_a_horizon_counts_the_channels_that_never_forget(
    each: tuple[float, ...], reach: str, run: Run, tmp_path: Path
) -> None:
    """The longest of the known horizons is not the longest."""
    arguments = rates(tmp_path, *each)
    data = json.loads(run("kernel", *arguments, "--json")[1])
    assert reach in data["answer"]
    assert data["status"] == "ok"
    assert said(run("kernel", *arguments, "--full", "--no-plots")[1]).count(reach) == 2


def test_every_report_of_a_hybrid_names_its_attention_layers_in_the_same_words(run: Run, tmp_path: Path) -> None:
    _, path = save_tiny("falcon_h1", tmp_path)
    for command, most in (("inspect", 22), ("check", 9), ("kernel", 22), ("capacity", 20)):
        lines = run(command, path)[1]
        assert len(lines.splitlines()) <= most, command
        out = said(lines)
        data = json.loads(run(command, path, "--json")[1])
        data = data.get("checkpoints", [data])[0]
        assert data["answer"].endswith("; 2 attention layers not judged"), command
        assert out.startswith(f"{data['status'].upper()} {data['answer']} "), command
        assert data["attention_layers"] == ["model.layers.0.self_attn", "model.layers.1.self_attn"], command
    for command in ("kernel", "capacity"):
        page = tmp_path / f"{command}.html"
        run(command, path, "-o", page)
        assert "; 2 attention layers not judged</p>" in page.read_text(), command
        assert "attention" not in run(command, path, "--layer", "1")[1].partition("\n\n")[0], "asked for one layer"


def test_capacity_says_of_which_families_its_layers_are(run: Run, two_families: Path) -> None:
    out = said(run("capacity", two_families)[1])
    assert " Mamba-1, 1 layer + Mamba-2, 2 layers" in out


def test_a_capacity_that_is_not_known_has_no_numbers_and_no_picture(run: Run, delta_net: Path) -> None:
    code, out, _ = run("capacity", delta_net)
    assert code == 0
    assert out.startswith("UNDETERMINED  no layer's capacity is known: none of its modes decays\n")
    table = out.partition("layer   × modes")[2].partition("\n\n")[0]
    assert [line.split() for line in table.splitlines() if line] == [["0", "2", "×", "1"], ["1", "2", "×", "1"]]
    assert "rebuilt" not in out


def test_inspect_says_that_a_decay_fixed_at_one_never_decays(run: Run, delta_net: Path) -> None:
    lines = run("inspect", delta_net)[1].splitlines()
    assert said(" ".join(lines[:2])) == (
        "OK its slowest modes never decay: what they hold lasts until it is overwritten, further than its context of 64"
    )
    assert [line for line in lines if "rebuild" in line] == []
    data = json.loads(run("inspect", delta_net, "--json")[1])
    assert data["status"] == "ok"
    full = run("inspect", delta_net, "--full")[1]
    assert "rebuild" not in full, "nothing is claimed of its capacity"


def test_the_gates_at_rest_are_said_of_the_layers_that_have_them(run: Run, two_families: Path) -> None:
    full = said(run("inspect", two_families, "--full", "--no-plots")[1])
    rest = "at rest: the decay depends on the input; this is its value with"
    assert f"layer 0: {rest} the gates at their bias." in full
    assert f"layers 1-2: {rest} the gates at their bias, as at zero input." in full


@pytest.fixture
def two_stacks(tmp_path: Path) -> Callable[[str, str], Path]:
    """Two layers of Mamba-1 in an encoder and two in a decoder, numbered alike; of one of them all Δ are the same."""

    def write(name: str, layer: str) -> Path:
        state = {}
        for k, stack in enumerate(("encoder", "decoder")):
            for number in (0, 1):
                generator = torch.Generator().manual_seed(2 * k + number)
                for local, value in ARCHITECTURES["mamba"].layer(generator, number, 2).items():
                    state[f"{stack}.layers.{number}.mixer.{local}"] = value.contiguous()
        if layer:
            state[f"{layer}.mixer.dt_proj.bias"].fill_(1.0)
        save_file(state, tmp_path / name)
        return tmp_path / name

    return write


def test_layers_numbered_alike_in_two_stacks_are_told_apart(run: Run, two_stacks: Callable[[str, str], Path]) -> None:
    whole = two_stacks("whole.safetensors", "")
    for layer in ("encoder.layers.0", "decoder.layers.0"):
        path = two_stacks("other.safetensors", layer)
        out = said(run("check", path)[1])
        (where,) = re.findall(r"SSM404 warning layer (\S+): ", out)
        assert layer == where
        code, out, _ = run("compare", whole, path, "--strict")
        assert code == 1
        assert out.startswith("DIFFERS")
        rows = re.findall(r"^(\S+) +256 × 16 ", out, re.MULTILINE)
        assert sorted(rows) == [f"{stack}.layers.{number}" for stack in ("decoder", "encoder") for number in (0, 1)]
        assert where in rows
