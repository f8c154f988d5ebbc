"""How far back the answers of a live module use their past, by forward passes alone: for any module.

**By cutting**, the headline. Let d(t, N) be the distance of the answer at t given only t and the N steps before it from
the answer given all steps, and d(t, 0) that given step t alone. The share of the past's effect that is lost with N is

    S(N) = Σ_t d(t, N) / Σ_t d(t, 0)            at the same positions t above and below

and "nine tenths are kept with N steps" means S ≤ 1/10 from N on. A causal convolution of 8 taps keeps everything with
7, a delay line of 100 with 100 and nothing with 99; a recurrence with eigenvalue λ under white input has S = λ^{2N}.
`reach.py` says how N is read from S, which falls but for sampling.

What is measured is the effect on the answers, not its worth: only `loss_by_context` tells useful from used. Past means
past within a text: N is tested up to half of its length L, at positions with at least L/4 more steps before them. A
module that averages all it has seen, or never forgets, is cut short by the end of the text whatever its length.

**Positions.** A module whose `forward` takes `position_ids` is told the steps' own positions, so that what changes is
the content of the past alone. Others count from the cut: with position embeddings that they make themselves, cutting
also moves every step, which counts as an effect of the past. So does the loss of a first token that attention rests on.

**Both ways.** A module that sees ahead keeps all of its future; only its past is cut.

**By replacement**: one step is replaced by another of the same text; the mean distance of later answers, by lag. A
profile, no headline: a share of its sum would depend on the length where it is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmdiag.assessment.memory import lag_edges
from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.answers import Answers, in_evaluation
from ssmdiag.probing.cutting import VISIBLE, Measured, Passes, Sums
from ssmdiag.probing.plan import Plan
from ssmdiag.probing.reach import Interval, in_bins, interval, middle, middle_95, reach, resample

CUTS = 6
SHARES = {"half": 0.5, "nine_tenths": 0.1, "all_but_a_hundredth": 0.01}
"""Name → share of the past's effect that may be lost."""


@dataclass(frozen=True)
class Cutting:
    """How many steps of the past, beside the present one, the answers need."""

    half: int | None
    """With so many steps half of the past's effect is kept. None: not with the most tested, or not to be told."""
    nine_tenths: int | None
    all_but_a_hundredth: int | None
    tested: int
    intervals: dict[str, Interval]
    """Of each of the three, by its name."""
    effect: float
    """Mean distance of the answers without a past from those with all of it: nats, or squared units."""
    noise: float
    """The distance that non-determinism and rounding alone bring about."""
    lost: tuple[tuple[int, float], ...]
    """(N, share of the effect that is lost with N steps): all N at first, then four an octave."""
    untold: tuple[str, ...] = ()
    """Names of those that cannot be told, since so small a part of the effect drowns in the noise."""

    none: bool = False
    """Whether the answers use none of their past: without it they are the same, to rounding."""

    @property
    def interval(self) -> Interval:
        """Of `all_but_a_hundredth`."""
        return self.intervals["all_but_a_hundredth"]


@dataclass(frozen=True)
class ContextLoss:
    """Loss of next-token prediction with so many steps of the past."""

    steps: int
    nats: float
    gain: float
    """Nats that the whole past improves it by, at the same positions."""
    low: float
    """2.5 % quantile of the gain."""
    high: float


@dataclass(frozen=True)
class Use:
    """How far back a module's answers use their past."""

    distance: str
    """`KL divergence, nats` or `squared difference`."""
    by_cutting: Cutting
    by_replacement: tuple[tuple[int, float], ...]
    """(lag, mean distance after one step was replaced)."""
    loss: float | None
    """Of next-token prediction with the whole past, nats; None where there are no next tokens."""
    loss_by_context: tuple[ContextLoss, ...] | None
    useful: int | None
    """Even so many steps of the past predict worse than all of it, and so do all fewer, each at 95 %; None: unknown,
    or not even the present step alone does."""
    sees_ahead: bool
    """Whether answers depend on later steps too; they are never cut."""
    texts: int
    length: int
    tokens: int
    """Tokens that went through the module, over the texts' own: what it cost."""
    keeps_positions: bool
    """Whether the module was told the steps' positions."""

    @property
    def sentence(self) -> str:
        """What the answers use of their past, in words."""
        cutting = self.by_cutting
        if cutting.none:
            return "The answers use none of the past: without it they are the same, to rounding."
        if "half" in cutting.untold:
            return (
                f"Whether the answers use their past cannot be told: it changes them by {cutting.effect:.2g}, and two "
                f"passes over the same text differ by {cutting.noise:.2g} ({self.distance})."
            )
        what = {"all_but_a_hundredth": "99 %", "nine_tenths": "90 %", "half": "half"}
        for name, share in what.items():
            steps = getattr(cutting, name)
            if steps is not None:
                low, high = cutting.intervals[name]
                ends = [_steps(low, cutting.tested), _steps(high, cutting.tested)]
                bounds = "" if ends[0] == ends[1] else f"95 % interval {ends[0]} to {ends[1]}"
                inside = high is not None and name == "all_but_a_hundredth"
                most = "" if inside else f"the most tested being {cutting.tested:,}"
                beside = ", ".join(filter(None, [bounds, most]))
                return (
                    f"The answers keep {share} of the past's effect with {steps:,} step{'s' * (steps != 1)} of it"
                    f"{f' ({beside})' * bool(beside)}."
                )
        return f"The answers need more than {cutting.tested:,} steps of the past, all tested, for half of its effect."


def measure_use(
    module: Callable[..., Any],
    batches: Iterable[Tensor],
    *,
    cuts: int = CUTS,
    budget: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    gather: Callable[[Any], list[Any]] | None = None,
) -> Use:
    """Return how far back the answers of a module use their past.

    `module`: takes a batch of texts, tokens (batch, time) or (batch, time, feature), and answers (batch, time, …) for
    any time, down to 1; an nn.Module is put into evaluation mode. `batches`: texts of one length. `cuts`: passes of
    half the length that a text is put through; with the shorter ones, those that measure noise and replacements, a text
    costs about 2 · cuts + 4 times its tokens (`Plan.tokens`). `budget`: most tokens to put through the module; fewer
    cuts are made, and texts left out, to keep within it, but one batch is always measured. `progress` is called with
    the tokens done and those in all, as far as they are known. `gather`: of this process's part of the texts, returns
    what every process found in its own, or a sentence on why it found nothing; all then return or raise the same.

    Raises SsmdiagError where texts are of unlike length or shorter than 4 steps, the module fails or answers NaN.
    """
    answers = Answers(module)
    passes: Passes | None = None
    left = len(batches) if isinstance(batches, Sized) else 1
    total = 0

    def report(done: int) -> None:
        if progress:
            progress(done, max(done, total))

    with in_evaluation(module):
        for batch in batches:
            x = answers.at_home(_require_texts(batch))
            if passes is None:
                passes = Passes(answers, _affordable(x, cuts, budget, left), seed)
            elif x.shape[1] != passes.plan.length:
                raise SsmdiagError(
                    f"a text of {x.shape[1]:,} steps after texts of {passes.plan.length:,}.",
                    expected="texts of one length, and none padded",
                )
            elif budget is not None and answers.tokens + len(x) * passes.plan.tokens > budget:
                break
            total = answers.tokens + len(x) * passes.plan.tokens * max(1, left)
            passes.add(x, report)
            left -= 1
    if passes is None:
        raise SsmdiagError("no text to measure the use of the past on.", expected="a batch of texts at least")
    first, *others = parts = gather(passes.found) if gather else [passes.found]
    for part in parts:
        if isinstance(part, str):
            raise SsmdiagError(part)
    for other in others:
        first.add(other)
    return summarise(first)


def summarise(found: Measured) -> Use:
    """Return what the sums of all passes say."""
    sums, tested = found.sums, found.plan.tested
    moved = sums.moved / sums.replaced.clamp(min=1)
    edges = lag_edges(tested + 1)
    weights = resample(sums.count.sum(1) > 0)
    losses = _loss_by_context(sums, weights, edges) if found.vocabulary else None
    return Use(
        distance="KL divergence, nats" if found.vocabulary else "squared difference",
        by_cutting=_cutting(sums, weights, edges, found.noise, found.rounding),
        by_replacement=tuple(in_bins(moved, torch.ones_like(moved), edges)) if sums.replaced else (),
        loss=float(sums.loss / sums.losses) if losses else None,
        loss_by_context=losses,
        useful=_useful(losses) if losses else None,
        sees_ahead=found.sees_ahead,
        texts=found.texts,
        length=found.plan.length,
        tokens=found.tokens,
        keeps_positions=found.keeps_positions,
    )


def _cutting(sums: Sums, weights: Tensor, edges: Tensor, measured: float, rounded: float) -> Cutting:
    tested = sums.cut.shape[1] - 1
    # Noise that was measured is in every distance, that of the present step alone too.
    cut, alone = sums.cut - measured * sums.count, sums.alone - measured * sums.count
    effect = float(sums.alone.sum() / sums.count.sum())
    noise = max(measured, rounded)
    lost = tuple(in_bins(cut.sum(0).clamp(min=0), alone.sum(0), edges))
    # Where passes over the same differ by more than rounding, an effect of their size is no proof of none.
    if effect <= VISIBLE * noise and measured <= VISIBLE * rounded:
        nothing: dict[str, Interval] = dict.fromkeys(SHARES, (0, 0))
        return Cutting(0, 0, 0, tested, nothing, effect, noise, tuple((n, 0.0) for n, _ in lost), none=True)
    reached, intervals = {}, {}
    untold = tuple(name for name, share in SHARES.items() if noise > share * effect / 2)
    for name, share in SHARES.items():
        excess = cut - share * alone
        reached[name], intervals[name] = reach(excess.sum(0)), interval(weights @ excess)
    for name in untold:
        reached[name], intervals[name] = None, (0, None)
    return Cutting(
        reached["half"], reached["nine_tenths"], reached["all_but_a_hundredth"],
        tested, intervals, effect, noise, lost, untold,
    )  # fmt: skip


def _loss_by_context(sums: Sums, weights: Tensor, edges: Tensor) -> tuple[ContextLoss, ...] | None:
    own = float(sums.loss / sums.losses)
    found = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        gain, count = sums.gain[:, first:end].sum(1), sums.predicted[:, first:end].sum(1)
        if not count.sum() or not math.isfinite(own + float(gain.sum())):
            continue
        low, high = middle_95((weights @ gain) / (weights @ count).clamp(min=1))
        mean = float(gain.sum() / count.sum())
        found.append(ContextLoss(middle(first, end), own + mean, mean, low, high))
    return tuple(found) or None


def _useful(losses: tuple[ContextLoss, ...]) -> int | None:
    """Return the most steps that, like all fewer, predict worse than the whole past does."""
    useful = None
    for loss in losses:
        if not loss.low > 0:
            break
        useful = loss.steps
    return useful


def _affordable(x: Tensor, cuts: int, budget: int | None, batches: int) -> Plan:
    """Return the plan with as many cuts as the budget allows for all batches, one at least."""
    if cuts < 1:
        raise ValueError(f"cuts is {cuts}, and must be 1 or more")
    plans = [Plan(x.shape[1], count) for count in range(cuts, 0, -1)]
    repeats = 2 * x.shape[1]
    fit = [p for p in plans if budget is None or len(x) * (batches * p.tokens + repeats) <= budget]
    return fit[0] if fit else plans[-1]


def _require_texts(batch: Any) -> Tensor:
    if not isinstance(batch, Tensor) or batch.ndim not in (2, 3) or not batch.numel():
        what = f"a tensor of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
        raise SsmdiagError(f"a batch of texts is {what}.", expected="tokens (batch, time) or (batch, time, feature)")
    if batch.is_floating_point() and not bool(batch.isfinite().all()):
        raise SsmdiagError("a text holds NaN or infinite numbers.", expected="finite ones")
    return batch


def _steps(steps: int | None, tested: int) -> str:
    return f"beyond {tested:,}" if steps is None else f"{steps:,}"
