"""S7: eigenvalues at zero input by its own formula, of both signs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import ssmdiag
from ssmdiag.errors import UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence

Read = Callable[..., list[Recurrence]]


def test_eigenvalues_are_one_less_the_reciprocal_of_the_square_and_a_half(read_model: Read) -> None:
    weights = np.array([-30.0, -1.0, -0.3, 0.0, 0.5, 4.0, 1e6])
    state = {"base_params": torch.tensor(weights), "x_proj.weight": torch.zeros(29, 1)}
    (recurrence,) = read_model({f"layers.0.{name}": value for name, value in state.items()})
    expected = 1 - 1 / (weights**2 + 0.5)
    found = recurrence.log_eigenvalues[:, 0].exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert (found.real < 0).sum() == 3
    # 1 − λ̄ of 1e-12 keeps its digits.
    np.testing.assert_allclose(recurrence.rate[-1, 0].item(), 1e-12, rtol=1e-9)
    assert not recurrence.time_invariant


@pytest.mark.parametrize("rows", [8, 151, 153])
def test_a_projection_without_the_rows_of_every_part_is_another_model(rows: int) -> None:
    """2 N + 2 N H + H rows, N = 8 and H = 8: 152."""
    whole = {"net.base_params": torch.rand(8), "net.x_proj.weight": torch.rand(152, 8)}
    assert [layer.family for layer in ssmdiag.diagnose(whole).layers] == ["s7"]
    with pytest.raises(UnknownFamilyError) as caught:
        ssmdiag.diagnose({**whole, "net.x_proj.weight": torch.rand(rows, 8)})
    assert f"net.base_params (8,) and net.x_proj.weight ({rows}, 8) do not fit together" in str(caught.value)
