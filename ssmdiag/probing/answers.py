"""A live module as a function of sequences: its answer at every step, and how far two answers are apart.

| input | answer | distance of an answer b from a |
|---|---|---|
| tokens (batch, time) | logits over their vocabulary (batch, time, token) | KL(softmax a ‖ softmax b), nats |
| rows (batch, time, feature) | anything (batch, time, …) | Σ (a − b)² |
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.errors import SsmdiagError

MOST_ELEMENTS = 1 << 24
"""Most elements of two answers that are compared at once: a vocabulary of 150,000 tokens at 100 positions."""


class Answers:
    """Calls a module, and counts the tokens that went through it."""

    def __init__(self, module: Callable[..., Any]) -> None:
        self.module = module
        self.tokens = 0
        taken = _parameters(module)
        self._fixed = {"use_cache": False} if "use_cache" in taken else {}
        self.keeps_positions = "position_ids" in taken
        """Whether the module can be told that a sequence which was cut off does not begin at position 0."""
        self._device = device_of(module) if isinstance(module, nn.Module) else None

    def at_home(self, x: Tensor) -> Tensor:
        """Return a tensor on the device where the module takes its input."""
        return x if self._device is None else x.to(self._device)

    def __call__(self, x: Tensor, starts: Tensor | None = None) -> Tensor:
        """Return the answers to sequences (batch, time, …), cut out of longer ones at `starts` (batch,), else whole.

        Raises SsmdiagError where the module fails, answers NaN, or has no answer at every step.
        """
        given: dict[str, Any] = dict(self._fixed)
        if self.keeps_positions:
            place = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            given["position_ids"] = place if starts is None else place + starts[:, None]
        self.tokens += x.shape[0] * x.shape[1]
        with running(x, expected="a model that takes sequences of any length, down to one step"):
            answer = _tensor(self.module(x, **given))
        if answer is None or answer.ndim < 3 or answer.shape[:2] != x.shape[:2]:
            shape = "no tensor" if answer is None else f"a tensor of shape {tuple(answer.shape)}"
            raise SsmdiagError(
                f"the model answers {shape} to an input of shape {tuple(x.shape)}.",
                expected="an answer at every step: (batch, time, feature)",
            )
        answer = torch.view_as_real(answer) if answer.is_complex() else answer
        # A model that is spread over several devices answers on the last of them.
        answer = answer.flatten(2).to(x.device, torch.promote_types(answer.dtype, torch.float32))
        if bool(answer.isnan().any()):
            row, step = answer.isnan().any(2).nonzero()[0].tolist()
            raise SsmdiagError(
                f"the model's answer is NaN at step {step:,} of sequence {row:,} of a batch with {x.shape[1]:,} steps.",
                expected="numbers",
                advice="look for NaN in its weights (ssmdiag check), or run it in a wider --dtype.",
            )
        return answer

    def precision(self, answer: Tensor) -> float:
        """Return the relative rounding error of the narrowest type that the module computes in, as far as it shows."""
        types = {answer.dtype}
        if isinstance(self.module, nn.Module):
            types |= {p.dtype for p in self.module.parameters() if p.is_floating_point() and p.dtype.itemsize >= 2}
        # Under autocast only the values tell: they are those of a narrower type.
        types |= {t for t in (torch.bfloat16, torch.float16) if bool((answer.to(t).to(answer.dtype) == answer).all())}
        return max(torch.finfo(kind).eps for kind in types)


@contextmanager
def running(x: Tensor, *, expected: str, advice: str | None = None) -> Iterator[None]:
    """Raise SsmdiagError for whatever a model raises on sequences (batch, time, …), but where memory runs out.

    The traceback goes to the logger `ssmdiag` at level DEBUG, which SSMDIAG_DEBUG shows on the command line.
    """
    try:
        yield
    except (SsmdiagError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        logging.getLogger("ssmdiag").debug("the model failed", exc_info=error)
        text = str(error).strip().partition("\n")[0][:200].rstrip(".")
        raise SsmdiagError(
            f"the model failed on {x.shape[0]:,} sequences of {x.shape[1]:,} steps ({type(error).__name__}: {text}).",
            expected=expected,
            advice=advice,
        ) from error


@contextmanager
def in_evaluation(module: Callable[..., Any]) -> Iterator[None]:
    """Put a module into evaluation mode, without gradients; its modes are restored afterwards."""
    modes = [(part, part.training) for part in module.modules()] if isinstance(module, nn.Module) else []
    try:
        if isinstance(module, nn.Module):
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def device_of(model: nn.Module) -> torch.device | None:
    """Return where a model takes its input: the device of its embedding, else of its first parameter."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    first = next((embedding or model).parameters(), None)
    return None if first is None or first.device.type == "meta" else first.device


def over_vocabulary(x: Tensor, answer: Tensor) -> bool:
    """Whether these are tokens, and the answers logits over their vocabulary."""
    return not x.is_floating_point() and x.ndim == 2 and answer.shape[2] > int(x.max())


def divergence(full: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(full ‖ other) of logits (…, token), and the log-probabilities of both.

    KL = Σ p (e^d − 1 − d) with d = log q − log p, no term of which is negative: equal answers are exactly 0 apart, and
    rounding d by ε changes it by ε² rather than ε.
    """
    log_p, log_q = full.log_softmax(-1), other.log_softmax(-1)
    d = log_q - log_p
    series = d * d * (0.5 + d * (1 / 6 + d / 24))
    p, q = log_p.exp(), log_q.exp()
    far = torch.where(d > 1, q - p - p * d, p * (d.clamp(max=1).expm1() - d))
    terms = torch.where(p > 0, torch.where(d.abs() < 1e-2, p * series, far), q)
    return terms.sum(-1, dtype=torch.float64), log_p, log_q


def difference(full: Tensor, other: Tensor) -> Tensor:
    """Return the squared difference of answers (…, feature)."""
    return (full - other).square().sum(-1, dtype=torch.float64)


def rounding(answer: Tensor, precision: float, vocabulary: bool) -> float:
    """Return the mean distance between answers that two units of rounding bring about."""
    if not vocabulary:
        return (2 * precision) ** 2 * float(answer.double().square().sum(-1).mean())
    found = 0.0
    for part in answer.flatten(0, 1).split(max(1, MOST_ELEMENTS // answer.shape[-1])):
        found += float((part.softmax(-1) * part.clamp(min=torch.finfo(part.dtype).min / 1e20).square()).double().sum())
    return 0.5 * (2 * precision) ** 2 * found / (answer.shape[0] * answer.shape[1])


def _parameters(module: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters
    except (TypeError, ValueError):  # a builtin
        return {}


def _tensor(output: Any) -> Tensor | None:
    """Return the answer among what a module returned: logits where they have a name, the first of several."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        output = output.logits
    elif isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None
