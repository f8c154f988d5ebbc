"""Batches that the user's own code makes, one after another: the same ones for every arm, and when a run is resumed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.batches import Batch, Loss, ReadOut, as_batch, length_of, require_numbers
from ssmdiag.retrain.seeding import seeded
from ssmdiag.retrain.state_file import digest_of, update


@dataclass(eq=False)
class StreamedBatches:
    """Batches that the user's own code makes, one after another; restarted when they end.

    Its random draws depend only on the seed, the epoch and the step. A resumed run reads all earlier batches again.
    """

    train: Iterable[Batch]
    held_out: Iterable[Batch]
    loss: Loss
    read_out: ReadOut = "every step"
    nothing: float | None = None
    casts: bool = False
    _place: tuple[int, int] = (-1, 0)
    """Seed, and step to be read next."""
    _stream: Iterator[Batch] = field(default_factory=lambda: iter(()))
    _seen: hashlib._Hash | None = None
    """Digest of all training batches up to `_place`; None until it is needed."""
    _before: tuple[int, str] = (-1, "")
    """Step of the last batch, and the digest before it."""

    @property
    def length(self) -> int | None:
        """Steps of a sequence, in the first batch."""
        return length_of(self._first[0])

    @property
    def size(self) -> int:
        """Sequences in the first batch."""
        return len(self._first[1])

    @cached_property
    def _first(self) -> Batch:
        return first_batch(self.train, "training")

    def at(self, seed: int, step: int) -> Batch:
        """Return the batch of a step. Raises ConfigurationError where there are none, or one is no batch."""
        self._go_to(seed, step)
        return self._next()

    def digest(self, seed: int, step: int) -> str:
        """Return a digest of the batches before a step and of those to validate on; it goes through all of them."""
        if self._seen is None or self._place[0] != seed or step not in (self._before[0], self._place[1]):
            self._seen, self._place = hashlib.sha256(), (-1, 0)
            self._go_to(seed, step)
        before = self._seen.hexdigest() if self._place[1] == step else self._before[1]
        return digest_of(before, self._held_out_digest)

    @cached_property
    def _held_out_digest(self) -> str:
        digest = hashlib.sha256()
        for batch in self.validation():
            update(digest, batch)
        return digest.hexdigest()

    def validation(self) -> Iterator[Batch]:
        """Yield the validation batches."""
        with seeded("validation"):
            iterator = iter(self.held_out)
        for batch in _drawn(iterator, "validation"):
            yield require_numbers(as_batch(batch, "validation"), "validation batch", self.loss)

    def _go_to(self, seed: int, step: int) -> None:
        """Make the batch of a step the next one, from the first on where it is not."""
        if self._place == (seed, step):
            return
        self._place, self._before = (seed, 0), (-1, "")
        self._seen = self._seen and hashlib.sha256()
        self._stream = self._epochs(seed)
        while self._place[1] < step:
            self._next()

    def _next(self) -> Batch:
        seed, step = self._place
        batch = next(self._stream)
        self._place = (seed, step + 1)
        if self._seen is not None:
            self._before = step, self._seen.hexdigest()
            update(self._seen, batch)
        return batch

    def _epochs(self, seed: int) -> Iterator[Batch]:
        """Yield training batches, one epoch after another without end."""
        step = 0
        for epoch in itertools.count():
            with seeded("epoch", seed, epoch):
                iterator = iter(self.train)
            begun = step
            for batch in _drawn(iterator, "batch", seed, first=step):
                yield require_numbers(as_batch(batch, "training"), f"training batch {step:,}", self.loss)
                step += 1
            if step == begun:
                raise _empty("training")


def first_batch(batches: Iterable[Batch], kind: str) -> Batch:
    """Return the first batch. Raises ConfigurationError where there is none, or it is no batch."""
    with seeded("first"):
        batch = next(iter(batches), None)
    if batch is None:
        raise _empty(kind)
    return as_batch(batch, kind)


def _empty(kind: str) -> ConfigurationError:
    return ConfigurationError(f"--data: the {kind} batches are empty.", expected="one batch at least")


def _drawn(iterator: Iterator[Batch], *place: object, first: int = 0) -> Iterator[Batch]:
    """Yield what an iterator gives, each item with random numbers that `place` and its number decide."""
    for number in itertools.count(first):
        with seeded(*place, number):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
