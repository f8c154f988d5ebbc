"""A real trained Mamba, typeseg's, on real text: at rest, retained and used."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typeseg
from torch import Tensor, nn
from typeseg import _mamba_kernel as original

import ssmdiag
from ssmdiag.probing.retention import RetentionMeter
from ssmdiag.probing.rounded import state_errors
from ssmdiag.recurrence.clock import Clock, Scan

CHECKPOINT = Path(typeseg.__file__).parent / "data" / "mamba_al.npz"
TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH = 1024
BLOCKS = 6


class Model(nn.Module):
    """The package's own forward pass by torch, for texts of bytes in batches: (text, step) → (text, step, class)."""

    def __init__(self) -> None:
        super().__init__()
        with np.load(CHECKPOINT) as file:
            for name in file.files:
                self.register_buffer(name, torch.from_numpy(file[name]))

    def forward(self, bytes: Tensor) -> Tensor:
        x = self.get_buffer("Embed_0__embedding")[torch.from_numpy(original._COMPACT_TABLE)[bytes]]
        for block in range(BLOCKS):
            x = x + self.block(f"CheckpointMambaBlock1D_{block}__", x)
        return self.dense("Dense_0", self.norm("LayerNorm_0", x))

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.get_buffer(f"{name}__kernel") + self.get_buffer(f"{name}__bias")

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale, bias = (self.get_buffer(f"{name}__{part}") for part in ("scale", "bias"))
        return F.layer_norm(x, scale.shape, scale, bias, 1e-6)

    def block(self, block: str, x: Tensor) -> Tensor:
        own = {name: self.get_buffer(block + name) for name in ("A_log", "D", "Conv_0__kernel", "Conv_0__bias")}
        u, gate = self.dense(f"{block}Dense_0", self.norm(f"{block}LayerNorm_0", x)).chunk(2, -1)
        taps = own["Conv_0__kernel"].permute(2, 1, 0)
        u = F.silu(F.conv1d(F.pad(u.mT, (1, 2)), taps, own["Conv_0__bias"], groups=len(taps)).mT)
        low, B, C = self.dense(f"{block}Dense_1", u).split((16, 16, 16), -1)
        step = F.softplus(self.dense(f"{block}Dense_2", low)) + 1e-4
        u, step, B, C = (torch.cat([values, values.flip(1)]) for values in (u, step, B, C))
        there, back = self.scan(u, step, B, C, -own["A_log"].exp(), own["D"]).chunk(2)
        return self.dense(f"{block}Dense_3", (there + back.flip(1)) * F.silu(gate))

    def scan(self, u: Tensor, step: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor) -> Tensor:
        state, answers = u.new_zeros(len(u), *A.shape), []
        for t in range(u.shape[1]):
            write = (step[:, t] * u[:, t])[..., None] * B[:, t, None]
            state = state * torch.exp(step[:, t, :, None] * A) + write
            answers.append((state @ C[:, t, :, None])[..., 0])
        return torch.stack(answers, 1) + u * D


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


@pytest.mark.slow
def test_its_answers_use_hundreds_of_steps_that_its_weights_at_rest_do_not_show() -> None:
    """At rest below 2 steps, retained for up to thousands, used for some 200."""
    model = Model()
    sources = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    texts = np.stack([np.frombuffer(sources, np.uint8, LENGTH, 13 * LENGTH * text) for text in range(8)])
    tokens = torch.from_numpy(texts.astype(np.int64))
    with np.load(CHECKPOINT) as file:
        weights = {name.replace("__", "/"): file[name] for name in file.files}
    own = original.mamba_forward(np, weights, texts[0].astype(np.int64))
    np.testing.assert_allclose(model(tokens[:1])[0], own, rtol=0, atol=1e-3)

    found = ssmdiag.probe(model, [tokens])
    use = found.use
    assert use is not None
    assert not found.layers
    assert len(found.without_clock) == BLOCKS
    assert all("no module of its own" in layer.why for layer in found.without_clock)
    assert use.sees_ahead
    assert use.by_cutting.nine_tenths is not None
    assert 100 < use.by_cutting.nine_tenths < 512
