"""A real trained Mamba, typeseg's, on real text: what its layers hold beside what their weights say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typeseg
from torch import Tensor
from typeseg import _mamba_kernel as original

import ssmdiag
from ssmdiag.probing.retention import RetentionMeter
from ssmdiag.probing.rounded import state_errors
from ssmdiag.recurrence.clock import Clock, Scan

CHECKPOINT = Path(typeseg.__file__).parent / "data" / "mamba_al.npz"
TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH = 1024


def double(values: Any) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values)).double()


@pytest.fixture(scope="module")
def scans() -> list[tuple[Scan, Tensor]]:
    """What each block's scan from the start is given, and its answers, by the package's own forward pass."""
    with np.load(CHECKPOINT) as file:
        weights = {name.replace("__", "/"): file[name] for name in file.files}
    seen: list[tuple[Scan, Tensor]] = []

    def scan(xp: Any, u: Any, dt: Any, B: Any, C: Any, A: Any, D: Any) -> Any:
        answers = original._selective_scan_seq(xp, u, dt, B, C, A, D)
        clock = Clock(double(dt)[None], -double(A))
        given = Scan(
            clock, double(u)[None, ..., None], double(B)[None, :, None], double(C)[None, :, None], double(D)[:, None]
        )
        seen.append((given, double(answers)))
        return answers

    tokens = np.frombuffer(TEXT.read_bytes()[:LENGTH], dtype=np.uint8).astype(np.int64)
    original.mamba_forward(np, weights, tokens, scan=scan)
    return seen[::2]


@pytest.mark.slow
def test_layers_hold_for_hundreds_of_steps_what_their_weights_say_is_gone_after_two(
    scans: list[tuple[Scan, Tensor]],
) -> None:
    tails = []
    for number, (scan, _) in enumerate(scans):
        meter = RetentionMeter(str(number))
        meter.add(scan.clock)
        tails.append(meter.result().half_life.p95)
    nominal = [float(recurrence.half_life.max()) for recurrence in ssmdiag.extract_recurrences(CHECKPOINT)]
    assert max(nominal) < 2
    assert min(tails) < 20, "not all of its layers hold"
    assert max(tails) > 100 * max(nominal)


@pytest.mark.slow
def test_its_states_stepped_by_us_give_its_answers_and_bfloat16_spoils_some(scans: list[tuple[Scan, Tensor]]) -> None:
    for scan, answers in scans:
        steps = scan.clock.step[0, :, :, None]
        decay = torch.exp(-steps * scan.clock.rate)
        write = steps * scan.input[0] * scan.write[0]
        state, own = torch.zeros_like(scan.clock.rate), []
        for t in range(LENGTH):
            state = decay[t] * state + write[t]
            own.append((state * scan.read[0, t]).sum(-1) + scan.skip[:, 0] * scan.input[0, t, :, 0])
        torch.testing.assert_close(torch.stack(own), answers, rtol=1e-3, atol=1e-4 * float(answers.abs().max()))
        found = state_errors(scan)
        assert 0 < found["fp16"].median < found["bf16"].median < found["int8 state"].median < math.inf
    assert max(state_errors(scan)["bf16"].worst for scan, _ in scans) > 0.05
