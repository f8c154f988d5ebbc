"""A model and a state dict whose weights are on a GPU: the numbers are those of the CPU, wherever it computes."""

from __future__ import annotations

import pytest

from ssmdiag import Diagnosis, diagnose, prove_conversion
from ssmdiag.reports.json import document
from tests.cuda.conftest import KINDS, slow_but
from tests.cuda.same import assert_same
from tests.watching.drifting import build


def told(diagnosis: Diagnosis) -> dict[str, object]:
    """Return what does not depend on where it was computed, or was read from."""
    data = document(diagnosis)
    return {name: data[name] for name in ("layers", "findings", "not_judged", "problems", "assumptions")}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow_but(kind, "channels")) for kind in KINDS])
def test_a_model_on_a_gpu_is_diagnosed_as_on_the_cpu(kind: str, cuda: str) -> None:
    home, away = build(KINDS[kind]), build(KINDS[kind]).to(cuda)
    expected = told(diagnose(home))
    assert expected["layers"]
    for source in (away, away.state_dict()):
        for device in ("cpu", cuda):
            assert_same(told(diagnose(source, device=device)), expected)
    assert prove_conversion(away, away.state_dict(), device=cuda).problems == ()
    assert all(parameter.device.type == "cuda" for parameter in away.parameters())
