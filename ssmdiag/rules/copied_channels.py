"""SSM408: a block of channels is a copy of another block.

Formula. The channels are cut into p equal shards, p = 2 … 64. Fires where two shards are equal to the last bit in every
weight of the recurrence (A and Δ), in D and in the convolution, and channels within a shard differ. In a trained model
equal A and Δ are enough if Δ differs from channel to channel. Equal rows of A_log alone are no sign: Mamba starts with
them.

Why it hurts. The copy has overwritten another shard: its channels repeat what others compute, and what the lost
channels had learnt is gone. Loss rises without any error message, and more training separates the copies only slowly.

What to do. Look in the script that gathers tensor-parallel shards for a rank that was read twice, or for split tensors
treated as replicated. Compare the number of distinct rows of dt_bias before and after.

Example. NVIDIA/Megatron-LM PR 1989 (https://github.com/NVIDIA/Megatron-LM/pull/1989): with tensor parallelism above 1,
ranks of a Gated DeltaNet got slices of the packed projection that belong to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

MOST_SHARDS = 64
BESIDE = ("D", "conv1d.weight", "conv1d.bias")
"""What else a copied channel shares, where the module has it."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence = evidence.recurrence
    if "fixed decay" in evidence.layer.family.traits:
        return
    units = recurrence.channels if recurrence.channels > 1 else recurrence.modes
    rows = [found for weight in recurrence.weights if (found := _by_unit(weight.values, units)) is not None]
    copies = _copied_shards(rows, units, int(limits["shard"]))
    if not copies:
        return
    if recurrence.channels > 1:  # else D and the convolution go with the inputs, not with the modes
        rows += _beside(evidence, units)
    whole = [copy for copy in copies if all(copy.is_in(values) for values in rows)]
    # D and the convolution may differ: a trained Δ that is equal to the last bit is evidence enough.
    copies = whole or [copy for copy in copies if _in_a_trained_step(copy, evidence, units)]
    if not copies:
        return
    what = "" if whole else " in A and Δ, though not in D or the convolution"
    count = len({copy.second for copy in copies})
    first, second = copies[0].ranges
    yield Observation(
        f"{'channels' if recurrence.channels > 1 else 'modes'} {second} are copies of {first}, to the last bit"
        f"{what} ({count:,} of {copies[0].shards:,} shards of {copies[0].size:,} are copies)",
        count=count * copies[0].size,
        of=units,
        value=count / copies[0].shards,
        threshold=0.0,
        tensor=next((weight.name for weight in recurrence.weights), None),
    )


def _in_a_trained_step(copy: _Copy, evidence: LayerEvidence, units: int) -> bool:
    """Whether the model was trained and Δ differs from channel to channel within the shard."""
    steps = [rows for weight in evidence.weights("step") if (rows := _by_unit(weight.values, units)) is not None]
    return bool(steps and evidence.whole.training.trained) and any(copy.all_differ(rows) for rows in steps)


class _Copy(NamedTuple):
    """Shard `second` is equal to shard `first`, of `shards` shards with `size` channels each."""

    first: int
    second: int
    shards: int
    size: int

    def is_in(self, values: Tensor) -> bool:
        """Whether these rows, one per channel, are equal in both shards."""
        return bool((self._part(values, self.first) == self._part(values, self.second)).all())

    def tells_apart(self, values: Tensor) -> bool:
        """Whether channels of the shard differ; those of a constant or of a fresh A_log are alike."""
        return len(self._part(values, self.first).unique(dim=0)) >= max(4, self.size // 8)

    def all_differ(self, values: Tensor) -> bool:
        """Whether no two channels of the shard are alike; in 16 bits some may be."""
        return len(self._part(values, self.first).unique(dim=0)) >= 0.75 * self.size

    @property
    def ranges(self) -> tuple[str, str]:
        """First and last channel of both, as text."""
        starts = (self.first * self.size, self.second * self.size)
        first, second = (f"{start:,} to {start + self.size - 1:,}" for start in starts)
        return first, second

    def _part(self, values: Tensor, shard: int) -> Tensor:
        return values[shard * self.size : (shard + 1) * self.size]


def _by_unit(values: Tensor, units: int) -> Tensor | None:
    """Return a weight as one row per channel, or None where its shape does not allow that."""
    leading = 1
    for size in values.shape:
        leading *= size
        if leading == units:
            return values.reshape(units, -1)
    # KDA's bias holds the channels of a head one after the other.
    return values.reshape(units, -1) if values.ndim == 1 and len(values) % units == 0 else None


def _copied_shards(rows: list[Tensor], units: int, smallest: int) -> list[_Copy]:
    """Return the copies found with the smallest number of shards that shows any."""
    import torch

    if not rows or units < 2 * smallest:
        return []
    joined = torch.cat([values.double() for values in rows], 1)
    # Equal rows have equal signatures and others hardly ever do: the first row distinguishes nearly all shards.
    signature = (joined * joined.new_ones(joined.shape[1]).cumsum(0).sin()).sum(1).tolist()
    for shards in range(2, MOST_SHARDS + 1):
        size = units // shards
        if units % shards or size < smallest:
            continue
        seen: dict[float, int] = {}
        found = []
        for shard in range(shards):
            first = seen.setdefault(signature[shard * size], shard)
            copy = _Copy(first, shard, shards, size)
            if first != shard and copy.is_in(joined) and copy.tells_apart(joined):
                found.append(copy)
        if found:
            return found
    return []


def _beside(evidence: LayerEvidence, units: int) -> Iterator[Tensor]:
    """Yield D and the convolution, one row per channel, where the module has them."""
    for local in BESIDE:
        values = evidence.whole.load(evidence.layer.full_name(local))
        if values is not None and len(values.shape) and len(values) == units:
            yield values.reshape(units, -1)


RULE = Rule(
    code="SSM408",
    name="copied-channels",
    severity="error",
    summary="a block of channels is a copy of another block",
    looks_at="layer",
    examine=examine,
    advice="merge the shards of the checkpoint again: one was written in place of another.",
    **page(__doc__),
    thresholds={"shard": Threshold(4, "fewest channels in a shard: fewer may be equal by chance")},
)
