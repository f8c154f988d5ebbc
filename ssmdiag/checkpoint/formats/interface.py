"""What a format is: how its files are known, what opens them, and which of its relatives are not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ssmdiag.errors import CheckpointError, PartialModelError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.checkpoint import Container
    from ssmdiag.checkpoint.sources import Source

T = TypeVar("T")
LONGEST_HEAD = 256
"""Bytes of the beginning of a file by which it may be known."""


class FirstLook:
    """What is seen of a file before anything opens it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.head = bytes(source.read(0, min(LONGEST_HEAD, source.size)))
        self._found: dict[Callable[[Source], Any], Any] = {}

    def once(self, examine: Callable[[Source], T]) -> T:
        """Return what a function finds out about the file; each is called once, whoever asks."""
        if examine not in self._found:
            self._found[examine] = examine(self.source)
        return self._found[examine]


@dataclass(frozen=True)
class Refusal:
    """Files, or folders, that a format knows and does not read: known by any one of their marks."""

    what: str
    """In words, after "FILE is" or "FOLDER is"."""
    advice: str
    """What to do instead; {folder} stands for where the file is."""
    magic: tuple[bytes, ...] = ()
    """What its files begin with."""
    name: str = ""
    """Names of its files, as a regular expression of which a part matches."""
    folder: str = ""
    """Names in its folders, as a regular expression that matches a whole name."""
    partial: bool = False
    """Whether its files are parts of a model."""

    def knows(self, look: FirstLook) -> bool:
        return look.head.startswith(self.magic) or bool(self.name and re.search(self.name, look.name))

    def error(self, source: Source) -> CheckpointError:
        kind = PartialModelError if self.partial else CheckpointError
        return kind(f"{source.name} is {self.what}.", advice=self.advice.format(folder=source.path.parent))


def never(look: FirstLook) -> bool:
    """Recognise nothing."""
    return False


@dataclass(frozen=True)
class Format:
    """One container format, or with no `open` one that is known and not read."""

    name: str
    recognises: Callable[[FirstLook], bool] = never
    """Whether a file is of this format, by what is in it; no two formats claim one file."""
    open: Callable[[Source], Container] | None = None
    """Open a file; raises CheckpointError where it is torn or forged."""
    suffixes: tuple[str, ...] = ()
    """How its files are called: what is looked for in folders, and opens files of which nothing else is known."""
    refusals: tuple[Refusal, ...] = ()
    conversions: Mapping[str, str] = field(default_factory=dict)
    """Suffix → what to do with a file that no format recognises."""
    owns_folder: str = ""
    """Names that it alone leaves in a folder, as a regular expression: what has the suffix of weights beside them is
    no checkpoint by itself."""
    envelope: bool = False
    """Whether other formats are packed in this one: it is asked after them."""
