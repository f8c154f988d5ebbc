"""What can go wrong with a user's file, each with a sentence that says what to do.

Misuse of the Python API raises built-in exceptions; these are for the state of the world.
"""

from __future__ import annotations


class SsmdiagError(Exception):
    """A known problem: what was seen, what was expected, what to do. The CLI exits 2."""

    def __init__(self, seen: str, *, expected: str | None = None, advice: str | None = None) -> None:
        self.seen = seen
        self.expected = expected
        self.advice = advice
        lines = [seen]
        if expected:
            lines.append(f"  expected: {expected}")
        if advice:
            lines.append(f"  next: {advice}")
        super().__init__("\n".join(lines))

    @property
    def sentence(self) -> str:
        """The message as one paragraph, for lists."""
        parts = [
            self.seen,
            f"Expected {self.expected}." if self.expected else "",
            self.advice[:1].upper() + self.advice[1:] if self.advice else "",
        ]
        return " ".join(part for part in parts if part)


class CheckpointError(SsmdiagError):
    """The path cannot be read as a checkpoint."""


class UnsafePickleError(CheckpointError):
    """The pickle asks for code to be run; nothing of it was run."""


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
    """The baseline's file is absent, torn, of another version, or must not be written here."""
