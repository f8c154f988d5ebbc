"""Half a model is no model: every command refuses it, with exit code 2 and no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "inspect m", "check m", "kernel m", "kernel m -o k.npz", "capacity m", "compare m whole",
    "compare whole m --strict", "inspect m -f json", "check m -f sarif", "check m -f junit", "check m -f markdown",
)  # fmt: skip


@pytest.fixture
def half_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write `whole` and, as two ranks of one job leave it, `m`: each tensor's name twice, each time half its rows."""
    state = {"layers.0.A_log": torch.randn(16, 4), "layers.0.dt_proj.bias": torch.randn(16)}
    monkeypatch.chdir(tmp_path)
    for folder in ("m", "whole"):
        Path(folder).mkdir()
    save_file(state | {"layers.0.x_proj.weight": torch.randn(9, 16)}, "whole/model.safetensors")
    for rank in range(2):
        part = {name: value.chunk(2)[rank].contiguous() for name, value in state.items()}
        save_file(part, f"m/shard-{rank + 1:05d}-model-00001-of-00001.safetensors")


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("half_a_model")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_half_a_model(command: str, run: Run) -> None:
    code, out, err = run(*command.split())
    assert code == 2
    assert "rows of each tensor" in " ".join((out + err).split())
    assert "SSM406" not in out.partition('"results"')[2] + err
    assert "half-life" not in out.partition("<details>")[0]
    assert not Path("k.npz").exists()
