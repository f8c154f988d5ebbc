"""Layers whose channels stand side by side are what each is alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssmdiag.channels import group_alike, join_channels
from ssmdiag.kernel.kernel import compute_kernel
from ssmdiag.memory import LayerMemory, assess_memories, assess_memory
from ssmdiag.recurrence import Recurrence
from tests.test_kernel import random_dense, random_mimo, random_siso


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


def test_what_is_alike_is_grouped_and_the_rest_stands_alone() -> None:
    assert group_alike(layers()) == [[0, 2, 3, 9], [1], [4], [5], [6, 10], [7], [8], [11]]
    assert group_alike([]) == []


def test_kernels_of_joined_layers_are_those_of_each() -> None:
    one, other = random_siso(0, channels=3), random_siso(1, channels=4)
    joined = compute_kernel(join_channels([one, other]), 50).values
    torch.testing.assert_close(joined[:, :3], compute_kernel(one, 50).values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(joined[:, 3:], compute_kernel(other, 50).values, rtol=1e-12, atol=1e-12)
    assert join_channels([one]) is one


@pytest.mark.parametrize("context", [17, 4096])
def test_memories_of_layers_together_are_those_of_each(context: int) -> None:
    for together, layer in zip(assess_memories(layers(), context), layers(), strict=True):
        assert_alike(together, assess_memory(layer, context))


def assert_alike(together: LayerMemory, alone: LayerMemory) -> None:
    assert (together.layer, together.is_kernel) == (alone.layer, alone.is_kernel)
    # Energies are differences of tails: equal to what their own noise allows.
    room = 4 * (together.noise + alone.noise) + 1e-9 * alone.mean_square.abs()
    same = together.mean_square == alone.mean_square
    assert bool((same | ((together.mean_square - alone.mean_square).abs() <= room) | alone.mean_square.isnan()).all())
    assert torch.equal(together.mean_square.isnan(), alone.mean_square.isnan())
    assert torch.equal(together.horizon.status, alone.horizon.status)
    torch.testing.assert_close(together.horizon.lags, alone.horizon.lags, equal_nan=True, rtol=0, atol=0)
    assert together.channels.counts() == alone.channels.counts()
    assert together.whole.channel(0).law == alone.whole.channel(0).law
