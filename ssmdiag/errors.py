"""Errors about a user's files, each with a sentence that says what to do.

Misuse of the Python API raises built-in exceptions instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssmdiag.printable import printable


class SsmdiagError(Exception):
    """A known problem: what was seen, what was expected, what to do. The CLI exits 2.

    Each part may hold names from a file, so it is one line: characters that break lines are escaped. Further lines go
    into `details`, shown below what was seen, or into `sample`, a text to copy, shown last. `instead` is a name that is
    not known and what it was probably meant to be; without other advice, that is the advice.
    """

    def __init__(
        self,
        seen: str,
        *,
        expected: str | None = None,
        advice: str | None = None,
        details: Sequence[str] = (),
        sample: Sequence[str] = (),
        instead: tuple[str, str] | None = None,
    ) -> None:
        self.seen = seen
        self.expected = expected
        self.instead = instead
        self.advice = advice or (f"did you mean {instead[1]}?" if instead else None)
        self.details = tuple(details)
        self.sample = tuple(sample)
        super().__init__(seen)

    def __str__(self) -> str:
        return "\n".join(message_lines(self.seen, self.expected, self.advice, self.details, self.sample))

    @property
    def sentence(self) -> str:
        """The message as one paragraph, for use in lists."""
        parts = [
            self.seen,
            *self.details,
            f"Expected {self.expected}." if self.expected else "",
            self.advice[:1].upper() + self.advice[1:] if self.advice else "",
        ]
        return printable(" ".join(part for part in parts if part))


def message_lines(
    seen: str, expected: str | None, advice: str | None, details: Sequence[str] = (), sample: Sequence[str] = ()
) -> list[str]:
    """Return the lines of an error message as users see them."""
    lines = [seen, *(f"  {line}" for line in details)]
    lines += [f"  expected: {expected}"] if expected else []
    lines += [f"  next: {advice}"] if advice else []
    return [printable(line) for line in [*lines, *sample]]


ALIKE = 0.7
"""Least share of matching characters of a name that is suggested."""


def alike(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are like this one, the most alike first; two letters swapped are nearest.

    The only one that begins with it, or that it begins, is like it too. Case, `-`, `_` and `.` make no difference.

    >>> [alike(name, ["mamba", "mamba2", "lru"]) for name in ("Mamba-2", "mamab", "lr", "s4")]
    [['mamba2'], ['mamba', 'mamba2'], ['lru'], []]
    """
    plain = {_plain(each): each for each in known}
    wanted = _plain(name)
    if wanted in plain:
        return [plain[wanted]]
    begun = [each for each in plain if wanted and (each.startswith(wanted) or wanted.startswith(each))]
    found = difflib.get_close_matches(wanted, plain, n=3, cutoff=ALIKE) or (begun if len(begun) == 1 else [])
    return [plain[each] for each in sorted(found, key=lambda each: sorted(each) != sorted(wanted))]


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one; None where none is."""
    return next(iter(alike(name, known)), None)


def meant(name: str, known: Iterable[str]) -> tuple[str, str] | None:
    """Return a name and what it was probably meant to be, for `SsmdiagError(…, instead=…)`."""
    found = closest(name, known)
    return (name, found) if found else None


def _plain(name: str) -> str:
    return name.casefold().translate({ord(mark): None for mark in "-_."})


class CheckpointError(SsmdiagError):
    """The path cannot be read as a checkpoint."""


class DifferentModelsError(CheckpointError):
    """Checkpoints that should belong to one run are of different models."""


class PartialModelError(CheckpointError):
    """Only a part of a model was found: one rank's rows, one stage of a pipeline, some of its shards."""


class RemoteError(CheckpointError):
    """What is not on this machine cannot be read: no answer, no access, or not the bytes that were asked for."""


class UnsafePickleError(CheckpointError):
    """The pickle asks for code to be run; none of it was run."""


class UnknownFamilyError(SsmdiagError):
    """The checkpoint was read, and no recurrent layer in it was recognised."""


class LayerError(SsmdiagError):
    """One recognised layer cannot be read; the rest of the file still can."""


class AssumptionError(SsmdiagError):
    """`--assume` names a setting or a value that no family here knows."""


class MapFileError(SsmdiagError):
    """The `--map` file is not a valid declaration."""


class ConfigurationError(SsmdiagError):
    """The configuration, a rule's code or a threshold is not valid."""


class MapError(SsmdiagError):
    """A stable map is not known, or cannot hold the eigenvalues it is asked to."""


class BaselineError(SsmdiagError):
    """The baseline file is absent, damaged, of another version, or must not be written here."""


class ProbeFileError(SsmdiagError):
    """What `ssmdiag probe` wrote cannot be read, or was measured on another model."""


class OutputError(SsmdiagError):
    """A file cannot be written, or must not be: the command reads it, or would write it twice."""


@dataclass(frozen=True)
class Failure:
    """A path that could not be diagnosed, in a command on several paths."""

    path: str
    kind: str
    """Name of the exception."""
    seen: str
    expected: str | None
    advice: str | None
    details: tuple[str, ...] = ()
    """Lines on what was seen."""
    sample: tuple[str, ...] = ()
    """Lines of a text to copy."""
    given: str | None = None
    """Its path as the command was given it; None where it was not a command."""
    modified: float | None = None
    """When its file was last modified before it was read, in seconds since 1970; None where that is not known."""

    @classmethod
    def of(cls, path: str, error: SsmdiagError) -> Failure:
        """Return the failure of a path from the error that it raised."""
        return cls(path, type(error).__name__, error.seen, error.expected, error.advice, error.details, error.sample)
