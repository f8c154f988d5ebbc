"""The loss of a module's answers: the user's own, squared error or cross-entropy, and what counts as one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.batches import Loss, ReadOut, describe

IGNORED = -100
"""Target that needs no answer, as in torch.nn.functional.cross_entropy."""

_OWN_LOSS = "let --data's function return a loss function of your own as its third value."


@dataclass(frozen=True)
class Score:
    """How answers are scored. A loss of the user's own is assumed to be a mean over samples."""

    loss: Loss
    read_out: ReadOut = "every step"
    """Where a module that answers at every step is read, when there is one target a sequence."""

    def mean(self, output: Any, targets: Tensor) -> Tensor:
        """Return the mean loss of what a module returned. Raises ConfigurationError where it does not fit."""
        if callable(self.loss):
            loss = self.loss(output, targets)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
                raise ConfigurationError(
                    f"--data: the loss function returned {describe(loss)}.", expected="a mean loss, one number"
                )
            return loss.reshape(())
        answers = self.answers(output, targets)
        if self.loss == "squared error":
            return functional.mse_loss(answers, targets.to(answers.dtype))
        return functional.cross_entropy(answers.reshape(-1, answers.shape[-1]).float(), targets.reshape(-1).long())

    def weight(self, targets: Tensor) -> int:
        """Return over how many answers `mean` is taken."""
        return int((targets != IGNORED).sum()) if self.loss == "cross-entropy" else len(targets)

    def hits(self, output: Any, targets: Tensor) -> int | None:
        """Return how many classes are right; None for other losses than cross-entropy."""
        if self.loss != "cross-entropy":
            return None
        return int((self.answers(output, targets).argmax(-1) == targets).sum())

    def answers(self, output: Any, targets: Tensor) -> Tensor:
        """Return the tensor that answers these targets. Raises ConfigurationError where there is none."""
        answers = answers_in(output)
        per_step = targets.ndim + (self.loss == "cross-entropy") + 1
        if self.read_out != "every step" and answers.ndim == per_step:
            answers = answers[:, -1] if self.read_out == "last step" else answers.mean(1)
        shape, expected = answers.shape, "answers of the targets' shape, for squared error"
        if self.loss == "cross-entropy":
            shape = answers.shape[:-1]
            expected = f"answers {(*targets.shape, 'classes')}, for cross-entropy".replace("'", "")
        if shape != targets.shape:
            raise ConfigurationError(
                f"the model answers {describe(answers)} to targets {describe(targets)}.",
                expected=expected,
                advice=_OWN_LOSS,
            )
        if self.loss == "squared error":
            return answers
        known = targets[targets != IGNORED]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < answers.shape[-1]:
            raise ConfigurationError(
                f"targets go from {int(known.min())} to {int(known.max())}, and the model answers for "
                f"{answers.shape[-1]} classes.",
                expected=f"classes from 0 to {answers.shape[-1] - 1}, or {IGNORED} for none",
            )
        return answers


def answers_in(output: Any) -> Tensor:
    """Return the tensor of answers in what a module returns: itself, `.logits`, or the first of a tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    answers = getattr(output, "logits", output)
    if not isinstance(answers, Tensor):
        raise ConfigurationError(
            f"the model returned {describe(output)}.",
            expected="a tensor, something with .logits, or a tuple that begins with a tensor",
            advice=_OWN_LOSS,
        )
    return answers


def call(module: torch.nn.Module, inputs: Any) -> Any:
    """Return module(inputs); a tuple is spread over the arguments, a mapping over the keywords."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)
