"""Checkpoints of one run and models drawn apart, of one shape and without a step in their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssmdiag import compare_run
from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.compare.relatedness import why_unrelated
from ssmdiag.errors import DifferentModelsError
from tests.rules.healthy import initial_state

State = dict[str, Tensor]


def drawn(seed: int) -> State:
    """Return a small Mamba at its initialisation, and a readout of zeros."""
    return initial_state("mamba", seed=seed) | {"head.weight": torch.zeros(64, 64)}


def moved(state: State, share: float, seed: int) -> State:
    """Return weights of which `share` of the variance is another draw: training that far from its start."""
    other = drawn(seed)
    return {name: (1 - share) ** 0.5 * value + share**0.5 * other[name] for name, value in state.items()}


def written(folder: Path, states: list[State], names: str) -> list[Path]:
    paths = [folder / names.format(number) for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    return paths


@pytest.mark.parametrize("names", ["seed-{}.safetensors", "{}.safetensors"])
def test_models_drawn_apart_are_no_run(names: str, tmp_path: Path) -> None:
    paths = written(tmp_path, [drawn(seed) for seed in range(3)], names)
    with pytest.raises(DifferentModelsError, match="do not correlate"):
        compare_run(paths, memory="none")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_checkpoints_of_one_run_are_one(share: float, tmp_path: Path) -> None:
    first = drawn(0)
    states = [first, moved(first, share, 7), moved(moved(first, share, 7), share, 8)]
    assert len(compare_run(written(tmp_path, states, "{}.safetensors"), memory="none").checkpoints) == 3


def test_who_names_steps_is_believed(tmp_path: Path) -> None:
    paths = written(tmp_path, [drawn(seed) for seed in range(2)], "step-{}.safetensors")
    assert len(compare_run(paths, memory="none").checkpoints) == 2


def test_what_cannot_be_tested_is_not_said_to_differ(tmp_path: Path) -> None:
    """Small, constant, packed, broken and recurrent matrices say nothing."""
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {
            "small": torch.randn(60, 60, generator=generator),
            "flat": torch.zeros(100, 100),
            "packed": torch.randint(0, 255, (100, 100), dtype=torch.uint8, generator=generator),
            "broken": torch.full((100, 100), torch.nan),
            "A_log": torch.randn(100, 100, generator=generator),
            "vector": torch.randn(5000, generator=generator),
        }
        for _ in range(2)
    )
    a, b = map(read_checkpoint, written(tmp_path, [one, other], "{}.safetensors"))
    assert why_unrelated(a, b, {"A_log"}) is None
    assert "A_log" in (why_unrelated(a, b) or "")
