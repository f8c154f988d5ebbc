"""Layers that are measured with others are what each is alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssmdiag.assessment.memory import LayerMemory, assess_memories, assess_memory
from ssmdiag.recurrence.modal import Recurrence
from tests.kernel.test_kernel import random_dense, random_mimo, random_siso


def layers() -> list[Recurrence]:
    bare = replace(random_siso(3, real=True), input_matrix=None, output_matrix=None, time_invariant=False)
    broken = random_siso(4)
    broken.log_eigenvalues[1, 0] = torch.nan
    growing = random_siso(5)
    growing.log_eigenvalues[0, 2] += 1.0
    return [
        random_siso(0), random_mimo(0), random_siso(1), broken, random_siso(2, modes=4), random_dense(0), bare,
        random_siso(6, copies=1), replace(random_siso(7), dtype="bfloat16"), growing, replace(bare, layer="other"),
        random_siso(8, real=True),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("context", [17, 4096])
def test_memories_of_layers_together_are_those_of_each_to_the_last_bit(context: int) -> None:
    for together, layer in zip(assess_memories(layers(), context), layers(), strict=True):
        alone = assess_memory(layer, context)
        assert (together.layer, together.is_kernel) == (alone.layer, alone.is_kernel)
        for name in ("mean_square", "noise", "status"):
            same(getattr(together, name), getattr(alone, name))
        same(together.horizon.lags, alone.horizon.lags)
        same(together.horizon.status, alone.horizon.status)
        for laws, own in ((together.channels, alone.channels), (together.whole, alone.whole)):
            same(laws.law, own.law)
            same(laws.status, own.status)
            for law, fit in laws.fits.items():
                for name, values in vars(fit).items():
                    same(values, getattr(own.fits[law], name))


@pytest.mark.slow
def test_layers_of_many_channels_have_the_same_laws_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [laws(memory) for memory in assess_memories(layers(), 4096)]
    monkeypatch.setattr("ssmdiag.assessment.memory.COMPARED_TOGETHER", 3)
    assert [laws(memory) for memory in assess_memories(layers(), 4096)] == usual


def laws(memory: LayerMemory) -> list[str]:
    return [memory.whole.describe(0), *(memory.channels.describe(k) for k in range(memory.channels.channels))]


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
