"""The interface of a format: how its files are recognised and opened, and which related files are not read.

A format imports the types it names from here, and torch only inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.sources import Source
from ssmdiag.errors import CheckpointError, PartialModelError

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.checkpoint.location import Location
else:
    Tensor = Any

T = TypeVar("T")
LONGEST_HEAD = 512
"""Number of bytes at the beginning of a file that formats may recognise it by."""


class FirstLook:
    """A file as it is seen before it is opened."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.head = bytes(source.read(0, min(LONGEST_HEAD, source.size)))
        self._found: dict[Callable[[Source], Any], Any] = {}

    def once(self, examine: Callable[[Source], T]) -> T:
        """Return a function's answer about the file; each function is called once, and its answer kept."""
        if examine not in self._found:
            self._found[examine] = examine(self.source)
        return self._found[examine]


@dataclass(frozen=True)
class Refusal:
    """Files or folders that a format recognises, by any one of these marks, but does not read."""

    what: str
    """In words, after "FILE is" or "FOLDER is"."""
    advice: str
    """What to do instead; {folder} is replaced by the file's folder."""
    magic: tuple[bytes, ...] = ()
    """Bytes that its files begin with."""
    name: str = ""
    """Regular expression found in the names of its files."""
    folder: str = ""
    """Regular expression that matches a whole name in its folders."""
    partial: bool = False
    """Whether its files are parts of a model."""

    def knows(self, look: FirstLook) -> bool:
        return look.head.startswith(self.magic) or bool(self.name and re.search(self.name, look.name))

    def error(self, source: Source) -> CheckpointError:
        kind = PartialModelError if self.partial else CheckpointError
        folder = source.path.parent if isinstance(source.path, Path) else "DIR"
        return kind(f"{source.name} is {self.what}.", advice=self.advice.format(folder=folder))


def never(look: FirstLook) -> bool:
    """Recognise nothing."""
    return False


@dataclass(frozen=True)
class Format:
    """One container format; without `open` and `open_folder`, one that is recognised but not read."""

    name: str
    recognises: Callable[[FirstLook], bool] = never
    """Whether a file is of this format, by its content; no two formats claim one file."""
    open: Callable[[Source], Container] | None = None
    """Open a file; raises CheckpointError where it is torn or forged."""
    open_folder: Callable[[Location], Container] | None = None
    """Open a whole folder that holds a name `owns_folder` matches, for formats of more than one file. The container has
    a `size`, in bytes, where its table of contents tells."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of its files: searched for in folders, and used to open files whose content shows no format."""
    refusals: tuple[Refusal, ...] = ()
    conversions: Mapping[str, str] = field(default_factory=dict)
    """Suffix → what to do with a file that no format recognises."""
    owns_folder: str = ""
    """Regular expression of names that only this format leaves in a folder: a file beside them with a suffix of weights
    is not a checkpoint by itself."""
    inner_folder: str = ""
    """Regular expression of the folder in which trainers put such weights, inside the folder of a checkpoint."""
    envelope: bool = False
    """Whether other formats are packed in this one: it is tried after them."""
