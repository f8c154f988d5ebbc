"""Every command that takes --map says of a report made with a map nobody has reviewed that it is a guess."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "inspect a", "inspect a -q", "check a", "kernel a", "kernel a -o k.npz", "capacity a", "compare a b",
    "compare a b c", "compare a b --strict",
)  # fmt: skip


@pytest.fixture
def printed_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Write models that no family knows, and the map that `inspect` prints for one."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        Path(name).mkdir()
        rates = torch.linspace(-7, -3, 8) + 0.1 * seed
        save_file({f"net.{i}.log_rate": rates + 0.01 * i for i in range(2)}, f"{name}/model.safetensors")
    code, _, err = run("inspect", "a")
    assert code == 2
    Path("map.toml").write_text(err.partition("--map map.toml:\n\n")[2], encoding="utf-8")


@pytest.mark.one_in(9)
@pytest.mark.usefixtures("printed_map")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_map_makes_a_guess_until_it_is_reviewed(command: str, run: Run) -> None:
    said = "a guess: layers are read through map.toml, which ssmdiag printed and nobody has reviewed"
    code, out, err = run(*command.split(), "--map", "map.toml")
    assert code in (0, 1), err
    assert said in " ".join(out.split()).lower()
    formats = [] if "-o" in command or "-q" in command else ["json"]
    for format in formats:
        _, out, _ = run(*command.split(), "--map", "map.toml", "--format", format)
        assert said in json.loads(out)["guess"]
    Path("k.npz").unlink(missing_ok=True)
    path = Path("map.toml")
    path.write_text(path.read_text(encoding="utf-8").replace("reviewed = false", "reviewed = true"), encoding="utf-8")
    for format in formats:
        _, out, _ = run(*command.split(), "--map", "map.toml", "--format", format)
        assert json.loads(out)["guess"] is None
    code, out, err = run(*command.split(), "--map", "map.toml")
    assert code in (0, 1), err
    assert "guess" not in out
