"""`ssmdiag capacity`: what it says of layers that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

Run = Callable[..., tuple[int, str, str]]


def kernel(path: str, channels: int = 2, modes: int = 3) -> dict[str, torch.Tensor]:
    return {
        f"{path}.kernel.log_A_real": torch.zeros(channels, modes),
        f"{path}.kernel.A_imag": torch.ones(channels, modes).cumsum(1),
        f"{path}.kernel.C": torch.ones(channels, modes, 2),
        f"{path}.kernel.log_dt": torch.full((channels,), -4.0),
    }


def test_a_layer_that_cannot_be_read_is_named_and_the_others_are_told(
    run: Run, write_model: Callable[..., Path]
) -> None:
    state = {**kernel("layers.0"), **kernel("layers.1"), **kernel("layers.2")}
    broken = {**state, "layers.1.kernel.log_A_real": torch.zeros(2, 3, dtype=torch.int64)}
    code, output, errors = run("capacity", write_model(state, name="sound"), "--format", "json")
    assert (code, errors) == (0, "")
    assert len(json.loads(output)["layers"]) == 3
    code, output, errors = run("capacity", write_model(broken, name="broken"), "--format", "json")
    assert code == 2
    assert [layer["name"] for layer in json.loads(output)["layers"]] == ["layers.0", "layers.2"]
    assert "left out: " in errors
    assert "layers.1" in errors
