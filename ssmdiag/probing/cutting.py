"""The passes that measure use, and the sums they leave.

With d(t, N) the distance of the answer at t from that with the whole past, sums over all passes are kept for each N,
of d(s + N, N) and of d(s + N, 0) at the same positions, apart for a few blocks of text: memory grows with neither the
number of texts nor their length squared.

A module that sees ahead keeps all of its future: its passes go on to the end of the text, from starts that the texts of
a batch share, and d(t, 0) is known at the starts alone, whose mean stands for it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.answers import MOST_ELEMENTS, Answers, difference, divergence, over_vocabulary, rounding
from ssmdiag.probing.plan import PARTS, Plan

SLOTS = 32
"""Texts go into slots in turn: blocks, whose sums are kept apart, are parts of a text in a slot."""
AHEAD = 8
"""Steps before a replacement at which answers tell whether the module sees ahead."""
AHEAD_OF_MOST = 1e-3
"""Share of the largest distance after a replacement that is seen before it where a module sees ahead."""
VISIBLE = 16
"""How many times the noise an effect must be, to be one."""
OVERHEAD = 4
"""Steps by which a convolution may pad a short sequence: they count where passes go together."""

Report = Callable[[int], None]
"""Called with the tokens spent so far."""


@dataclass(eq=False)
class Sums:
    """What passes leave; two of them add up. Blocks are (slot · part), steps N = 0 … tested."""

    cut: Tensor
    """Σ d(t, N), (block, step) float64."""
    alone: Tensor
    """Σ d(t, 0) at the same positions, (block, step)."""
    count: Tensor
    """How many positions, (block, step)."""
    gain: Tensor
    """Σ of the loss with N steps less the loss with the whole past, at the same positions, (block, step)."""
    predicted: Tensor
    """How many positions have a next token, (block, step)."""
    moved: Tensor
    """Σ of distances at this lag after a replacement, (step,)."""
    replaced: Tensor
    """How many replacements, ()."""
    before: Tensor
    """Σ of mean distances at the few steps before a replacement, ()."""
    loss: Tensor
    """Σ of the loss with the whole past, ()."""
    losses: Tensor
    """How many losses, ()."""

    @classmethod
    def nothing(cls, tested: int) -> Sums:
        """Return sums of no passes."""
        blocks, steps, number = (SLOTS * PARTS, tested + 1), (tested + 1,), ()
        shapes = [blocks] * 5 + [steps] + [number] * 4
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, other: Sums, texts: int) -> None:
        """Add the sums of other texts, as if they came after so many."""
        for field in fields(self):
            added = getattr(other, field.name)
            getattr(self, field.name).add_(added.roll(texts * PARTS, 0) if added.ndim == 2 else added)


@dataclass(eq=False)
class Measured:
    """What all passes over some texts say; those of other texts are added to it."""

    plan: Plan
    sums: Sums
    texts: int = 0
    tokens: int = 0
    """That went through the module."""
    vocabulary: bool = False
    """Whether answers are logits over the vocabulary of the input."""
    sees_ahead: bool = False
    """Whether answers depend on later steps too."""
    keeps_positions: bool = False
    noise: float = 0.0
    """Mean distance of two passes over the same, as measured."""
    rounding: float = 0.0
    """The same, as rounding alone would bring it about."""

    def add(self, other: Measured) -> None:
        """Add what was measured on other texts of the same length."""
        self.sums.add(other.sums, self.texts)
        self.texts += other.texts
        self.tokens += other.tokens
        self.sees_ahead |= other.sees_ahead
        self.noise, self.rounding = max(self.noise, other.noise), max(self.rounding, other.rounding)


class Passes:
    """Puts batches of texts through a module, and adds up what is left of its answers."""

    def __init__(self, answers: Answers, plan: Plan, seed: int = 0) -> None:
        self.answers, self.plan = answers, plan
        self.found = Measured(plan, Sums.nothing(plan.tested), keeps_positions=answers.keeps_positions)
        self.sums = self.found.sums
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, x: Tensor, report: Report = lambda tokens: None) -> None:
        """Add a batch of texts, (batch, time) tokens or (batch, time, feature)."""
        full = self.answers(x)
        report(self.answers.tokens)
        if not self.found.texts:
            self.found.vocabulary = over_vocabulary(x, full)
        self._replace(x, full)
        if not self.found.texts:
            self._measure_noise(x, full)
        report(self.answers.tokens)
        if self.found.sees_ahead:
            self._cut_to_the_end(x, full, report)
        else:
            alone = self._alone(x, full)
            report(self.answers.tokens)
            for steps in self.plan.levels:
                for rows, starts, blocks in self._cuts(x, steps):
                    self._cut(x, full, alone, steps, rows.to(x.device), starts.to(x.device), blocks)
                    report(self.answers.tokens)
        if self.found.vocabulary:
            own = self._losses(full[:, :-1], x[:, 1:])
            self.sums.loss += own.sum()
            self.sums.losses += own.numel()
        self.found.texts += len(x)
        self.found.tokens = self.answers.tokens
        report(self.answers.tokens)

    def _measure_noise(self, x: Tensor, full: Tensor) -> None:
        """Measure how far two passes over the same are apart, or over the same with another end that is not seen."""
        first, length = self.plan.first, x.shape[1]
        self.found.rounding = rounding(full, self.answers.precision(full), self.found.vocabulary)
        self.found.noise = float(self._distance(full[:, first:], self.answers(x)[:, first:]).mean())
        replaced = max(1.0, float(self.sums.replaced))
        least = max(
            AHEAD_OF_MOST * float(self.sums.moved.max()) / replaced,
            VISIBLE * max(self.found.noise, self.found.rounding),
        )
        self.found.sees_ahead = float(self.sums.before) / replaced > least
        if not self.found.sees_ahead:
            end = length - max(1, length // 8 | 1)  # an odd number, which divides into chunks in another way
            apart = self._distance(full[:, first:end], self.answers(x[:, :end])[:, first:])
            self.found.noise = max(self.found.noise, float(apart.mean()))

    def _alone(self, x: Tensor, full: Tensor) -> Tensor:
        """Return d(t, 0), that of the answer to step t alone, (text, time) on the CPU; 0 before the first start."""
        texts, length = x.shape[:2]
        first = self.plan.first
        place = torch.arange(first, length, device=x.device).repeat(texts)
        row = torch.arange(texts, device=x.device).repeat_interleave(length - first)
        single = x[row, place]
        # The answer to a token that stands alone is the same wherever it stands, but for its position.
        same = not self.answers.keeps_positions and x.ndim == 2
        values, which = single.unique(return_inverse=True) if same else (single, torch.arange(len(single)).to(x.device))
        found = torch.zeros(texts, length, dtype=torch.float64)
        room = max(1, texts * length // (1 + OVERHEAD))
        room = room if same else min(room, max(1, MOST_ELEMENTS // full.shape[2]))
        parts = zip(values.split(room), (place if not same else torch.zeros_like(values)).split(room), strict=True)
        done = 0
        for some, at in parts:
            answer = self.answers(some[:, None], at)[:, 0]
            inside = ((which >= done) & (which < done + len(some))).nonzero()[:, 0]
            for few in inside.split(max(1, MOST_ELEMENTS // full.shape[2])):
                far = self._distance(full[row[few], place[few]], answer[which[few] - done])
                found[row[few].cpu(), place[few].cpu()] = far.cpu()
            done += len(some)
        return found

    def _cuts(self, x: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, starts and blocks of passes of one length, as many together as have the tokens of a batch."""
        texts = len(x)
        drawn = torch.stack([self.plan.starts(steps, self._generator) for _ in range(texts)])
        count = drawn.shape[1]
        rows = torch.arange(texts).repeat_interleave(count)
        part = (torch.arange(count) * PARTS // count).repeat(texts)
        blocks = (self.found.texts + rows) % SLOTS * PARTS + part
        room = max(1, texts * x.shape[1] // (steps + 1 + OVERHEAD))
        yield from zip(rows.split(room), drawn.flatten().split(room), blocks.split(room), strict=True)

    def _cut(
        self, x: Tensor, full: Tensor, alone: Tensor, steps: int, rows: Tensor, starts: Tensor, blocks: Tensor
    ) -> None:
        place = starts[:, None] + torch.arange(steps + 1, device=x.device)
        answer = self.answers(x[rows[:, None], place], starts)
        far = self._compare(x, full, answer, rows, place, blocks)
        self.sums.cut[:, : steps + 1].index_add_(0, blocks, far)
        self.sums.alone[:, : steps + 1].index_add_(0, blocks, alone[rows.cpu()[:, None], place.cpu()])
        self.sums.count[:, : steps + 1].index_add_(0, blocks, torch.ones_like(far))

    def _cut_to_the_end(self, x: Tensor, full: Tensor, report: Report) -> None:
        steps, texts = self.plan.tested, torch.arange(len(x))
        starts = self.plan.starts(steps, self._generator).tolist()
        slot, rows = (self.found.texts + texts) % SLOTS * PARTS, texts.to(x.device)
        found = []
        for k, start in enumerate(starts):
            place = (start + torch.arange(steps + 1, device=x.device)).expand(len(x), -1)
            answer = self.answers(x[:, start:], torch.full_like(rows, start))[:, : steps + 1]
            found.append(self._compare(x, full, answer, rows, place, slot + k * PARTS // len(starts)))
            report(self.answers.tokens)
        alone = torch.stack(found)[..., 0].mean(0)[:, None].expand(-1, steps + 1)
        for k, far in enumerate(found):
            block = slot + k * PARTS // len(starts)
            self.sums.cut.index_add_(0, block, far)
            self.sums.alone.index_add_(0, block, alone)
            self.sums.count.index_add_(0, block, torch.ones_like(far))

    def _compare(self, x: Tensor, full: Tensor, answer: Tensor, rows: Tensor, place: Tensor, blocks: Tensor) -> Tensor:
        """Return how far answers are from those with the whole past, (pass, step) on the CPU; add up their losses."""
        found = []
        for some in torch.arange(len(rows), device=x.device).split(max(1, MOST_ELEMENTS // answer[0].numel())):
            row, at = rows[some, None], place[some]
            if self.found.vocabulary:
                far, log_p, log_q = divergence(full[row, at], answer[some])
                target = x[row, (at + 1).clamp(max=x.shape[1] - 1)].long()[..., None]
                known = at < x.shape[1] - 1
                gain = (log_p.gather(-1, target) - log_q.gather(-1, target))[..., 0].double().where(known, 0.0)
                self.sums.gain[:, : place.shape[1]].index_add_(0, blocks[some.cpu()], gain.cpu())
                self.sums.predicted[:, : place.shape[1]].index_add_(0, blocks[some.cpu()], known.double().cpu())
            else:
                far = difference(full[row, at], answer[some])
            found.append(far)
        far = torch.cat(found)
        _require_finite(far)
        return far.cpu()

    def _replace(self, x: Tensor, full: Tensor) -> None:
        """Replace one step of each text at a time by another of the same text."""
        texts, length = x.shape[:2]
        steps = self.plan.tested
        every = torch.arange(texts, device=x.device)
        for _ in range(self.plan.replacements):
            places = torch.randint(self.plan.first, length - steps, (texts,), generator=self._generator).to(x.device)
            others = torch.randint(length, (texts,), generator=self._generator).to(x.device)
            # The first step from there on that differs: replacing a token by itself shows nothing.
            differs = (
                (x != x[every, places][:, None]).flatten(2).any(2) if x.ndim > 2 else x != x[every, places][:, None]
            )
            order = (others[:, None] + torch.arange(length, device=x.device)) % length
            nearest = differs.gather(1, order).int().argmax(1)
            chosen = order[every, nearest]
            changed = x.clone()
            changed[every, places] = x[every, chosen]
            far = self._distance(full, self.answers(changed)).cpu()
            usable = differs.any(1).cpu()
            for row in usable.nonzero()[:, 0].tolist():
                place = int(places[row])
                self.sums.moved += far[row, place : place + steps + 1]
                self.sums.before += far[row, max(0, place - AHEAD) : place].mean()
                self.sums.replaced += 1

    def _distance(self, full: Tensor, other: Tensor) -> Tensor:
        """Return the distance of answers (…, feature), a bounded number of elements at a time."""
        shape = full.shape[:-1]
        room = max(1, MOST_ELEMENTS // full.shape[-1])
        pairs = zip(full.flatten(0, -2).split(room), other.flatten(0, -2).split(room), strict=True)
        parts = [divergence(a, b)[0] if self.found.vocabulary else difference(a, b) for a, b in pairs]
        far = torch.cat(parts).view(shape)
        _require_finite(far)
        return far

    def _losses(self, full: Tensor, target: Tensor) -> Tensor:
        room = max(1, MOST_ELEMENTS // full.shape[-1])
        pairs = zip(full.flatten(0, 1).split(room), target.flatten().split(room), strict=True)
        parts = [torch.nn.functional.cross_entropy(a, b.long(), reduction="none") for a, b in pairs]
        return torch.cat(parts).double().cpu()


def _require_finite(far: Tensor) -> None:
    if not bool(far.isfinite().all()):
        raise SsmdiagError(
            "answers with a part of the past and with all of it are infinitely far apart.",
            expected="logits that rule no token out, or numbers in the range of their type",
        )
