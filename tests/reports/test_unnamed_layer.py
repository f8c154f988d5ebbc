"""A layer with no model around it has an empty name, and no report has a gap in a sentence for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.errors import LayerError
from ssmdiag.guard import guard
from ssmdiag.reports import formats
from ssmdiag.watching.alarm import Alarm
from tests.cli.conftest import run as run
from tests.watching.test_warnings import layer

Run = Callable[..., tuple[int, str, str]]
GAP = re.compile(r"(?:^|[\s(`*>])[:,;](?= |$)|\b(?:layers?|of|in|for|by|module|has) [,:;.)]", re.MULTILINE)
"""What is left of a sentence in which a name was empty."""


def state(step: int, *, broken: bool = False) -> dict[str, torch.Tensor]:
    """A Mamba mixer's own state dict, whose decays slow with the train step."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "A_log": torch.rand(8, 4, generator=generator) - step / 100,
        "dt_proj.bias": torch.rand(8, generator=generator) - 4,
        "dt_proj.weight": torch.rand(8, 1, generator=generator),
        "x_proj.weight": torch.rand(9, 8, generator=generator),
    }
    if broken:
        tensors["A_log"][0, 0] = torch.nan
    return tensors


def sentences(text: str, form: str) -> Iterator[str]:
    """Yield what is read of a report in some format: the strings of JSON, the text between tags."""
    if form in ("json", "jsonl", "sarif"):
        pending: list[Any] = [json.loads(line) for line in (text.splitlines() if form == "jsonl" else [text])]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                pending += value.values()
            elif isinstance(value, list):
                pending += value
            elif isinstance(value, str):
                yield value
    elif form in ("html", "svg", "junit"):
        bare = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        yield from (unescape(part) for part in re.split(r"<[^>]*>", bare))
        yield from map(unescape, re.findall(r'(?:message|classname|aria-label)="([^"]*)"', bare))
    else:
        yield text


def gaps(text: str, form: str = "text") -> list[str]:
    """Return the sentences in which something is missing."""
    return [sentence for sentence in sentences(text, form) if GAP.search(sentence)]


def test_a_gap_is_seen() -> None:
    for sentence in (
        ": modes that are not finite",
        "modes of : NaN",
        "layer : NaN",
        " , rms in dB",
        "in layer , channel 3",
    ):
        assert gaps(sentence), sentence
    assert not gaps("layer 0: its modes, and the rest; of 8 channels (3 in f16)")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file(state(1, broken=True), "bare.safetensors")
    return Path("bare.safetensors")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("form", formats())
def test_a_finding_names_it_in_every_format(form: str, bare: Path, run: Run) -> None:
    code, out, _ = run("check", bare, "--format", form)
    assert code == 1
    assert not gaps(out, form)
    if form in ("sarif", "junit"):
        assert "the model itself" in out


@pytest.mark.one_in(4)
@pytest.mark.parametrize("command", [["kernel"], ["kernel", "--full"], ["capacity"], ["inspect", "--full", "-v"]])
@pytest.mark.parametrize("form", ["text", "html", "json"])
def test_reports_of_one_layer_have_no_gap(command: list[str], form: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(state(1), path)
    code, out, err = run(*command, path, "--format", form)
    assert (code, err) == (0, "")
    assert not gaps(out, form)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("form", ["text", "html", "json"])
def test_a_run_has_no_gap(form: str, tmp_path: Path, run: Run) -> None:
    for step in range(1, 4):
        save_file(state(step, broken=step == 3), tmp_path / f"step-{step}.safetensors")
    for command in ("compare", "watch") if form == "text" else ("compare",):
        more = ["--idle", "0"] if command == "watch" else ["--full", "--format", form]
        out = run(command, tmp_path, *more)[1]
        assert not gaps(out, form)
        assert command == "watch" or "the model itself: modes that are not finite" in " ".join(out.split())


def test_errors_of_it_name_it(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "bare.safetensors"
    tensors = state(1)
    tensors["A_log"] = tensors["A_log"][:, :0]
    for broken in (tensors, state(1) | {"x_proj.weight": torch.zeros(3, 5)}, {"A_log": torch.zeros(8, 4)}):
        save_file(broken, path)
        for command in (["check"], ["kernel", "--layer", "x"], ["capacity"]):
            code, out, err = run(*command, path)
            assert code in (0, 2)
            assert not gaps(out + err)
    with pytest.raises(LayerError, match=r"^the model itself: its kernel failed"), guard("", "its kernel"):
        raise RuntimeError("strange")


def test_a_live_model_that_is_the_layer_itself_is_named_in_warnings() -> None:
    near = [layer("", -0.1), layer("other", -0.2), layer("(backward)", -0.1)]
    (said,) = Alarm(1e-6).hear(3, near)
    assert not gaps(said)
    assert said.endswith("The same: the model itself, the model itself (backward).")
