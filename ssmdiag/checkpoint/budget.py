"""Limits on what reading a file may cost: regular files only, a largest size for each kind, a largest expansion.

No file can be trusted. A configuration may be a pipe that never ends, a megabyte of JSON may nest a hundred thousand
deep, a kilobyte of pickle may expand to more objects than there are atoms. Everything ssmdiag opens goes through here,
and is refused or read within seconds and a gigabyte of memory. Imports no torch.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import json
import os
import re
import shlex
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ssmdiag.errors import CheckpointError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location
from ssmdiag.checkpoint.remote_path import RemotePath

MOST_CONFIG = 16 << 20
"""Most bytes of a config.json; the largest published ones, with names of classes, have two million."""
MOST_INDEX = 64 << 20
"""Most bytes of a shard index; one of 90,000 tensors has nine million."""
MOST_TOKENIZER = 256 << 20
"""Most bytes of a tokenizer file; vocabularies of 250,000 tokens take 33 million."""
MOST_TRAINER_STATE = 64 << 20
"""Most bytes of a trainer_state.json, which keeps every logged loss."""
MOST_BASELINE = 16 << 20
"""Most bytes of a baseline: 60,000 findings."""
MOST_TOML = 1 << 20
"""Most bytes of a settings or map file."""
LONGEST_NUMBER = 40
"""Most digits of an integer: no setting needs more, and the time Python takes grows with their square."""
_LONG_NUMBER = re.compile(rf"[0-9]{{{LONGEST_NUMBER + 1}}}")
LARGEST_STEP = 10**15
"""Largest optimiser step that a run could reach."""
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""A name such as state-spaces/mamba-130m."""
_HUB_BEFORE = re.compile(r"^(?:(?:www\.)?(?:hf\.co|huggingface\.co)/|(?:hf|huggingface):/?)")
"""What is written before such a name, and is neither an address nor a path."""
_NUMBERED = re.compile(r"(.*?)(\d{1,18})(?:\.\w+)?")
MOST_COMPARED = 1000
"""Most names of a directory that a missing file's name is compared with."""
_MOST_DOTS = 10_000_000
"""Largest sum, over the lines of a TOML file, of their dots squared: what dotted keys cost its parser."""


def require_file(path: Location) -> None:
    """Raise CheckpointError unless the path is a regular file: reading a pipe or a device would hang."""
    if path.is_file():
        return
    if not isinstance(path, Path):
        seen = "is a folder, not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{shortened(str(path), 300)} {seen}.", advice=_neighbours(path))
    if _leads_round(path):
        raise CheckpointError(
            f"{path} is a link that leads back to itself.",
            advice=f"remove it: rm {shlex.quote(str(path))}",
        )
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which does not exist.", advice="download the model again."
        )
    if not path.exists():
        raise CheckpointError(f"{shortened(str(path), 300)} does not exist.", advice=_neighbours(path))
    raise CheckpointError(
        f"{path} is a directory, a pipe or a device, not a file.",
        expected="a checkpoint file",
        advice="save what it gives to a file first: cat PIPE > model.safetensors.",
    )


def _leads_round(path: Path) -> bool:
    """Whether the links of a path never come to an end."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _neighbours(path: Location) -> str:
    """Suggest files of the same directory with similar names, or the name as a shell reads it without its quotes."""
    given = str(path)
    if isinstance(path, Path) and (bare := os.path.expanduser(os.path.expandvars(given.strip()))) != given:
        return f"without the quotes it is {bare}: ssmdiag inspect {shlex.quote(bare)}"
    try:
        beside: Iterator[Path | RemotePath] = iter(path.parent.iterdir())
        present = [entry.name for entry in itertools.islice(beside, MOST_COMPARED)]
    except OSError:
        name = _HUB_BEFORE.sub("", str(path))
        if _ON_THE_HUB.fullmatch(name):
            return f"`ssmdiag inspect hf://{name}`, if it is a model on the Hugging Face hub."
        return f"there is no directory {path.parent}."
    close = _near(path.name, present)
    return (
        f"did you mean {', '.join(close)}? ssmdiag inspect {shlex.quote(str(path.parent / close[0]))}"
        if close
        else f"list what is there: ls {path.parent}"
        if isinstance(path, Path)
        else "check the address."
    )


def _near(name: str, present: Sequence[str]) -> list[str]:
    """Return the most similar names; of those that differ in a number alone, the nearest ones.

    >>> _near("step-90", ["step-100", "step-500", "step-9000"])
    ['step-100', 'step-500', 'step-9000']
    """
    if wanted := _NUMBERED.fullmatch(name):
        read = [found for each in present if (found := _NUMBERED.fullmatch(each)) and found[1] == wanted[1]]
        if read:
            return [found[0] for found in sorted(read, key=lambda found: abs(int(found[2]) - int(wanted[2])))[:3]]
    return difflib.get_close_matches(name, present, n=3)


def open_regular(path: Path) -> IO[bytes]:
    """Return a file open for reading. Also raises OSError for a pipe or a device, without waiting for it."""
    # O_NONBLOCK: opening a pipe that has no writer would hang.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            what = "it is a directory" if stat.S_ISDIR(kind) else "it is a pipe or a device"
            raise OSError(errno.EINVAL, f"{what}, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_size(path: Path, most: int) -> None:
    """Raise OSError where a file cannot be opened, is not a regular file or is too large."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read", str(path))


def read_text(path: Location, most: int) -> str:
    """Return a file as text.

    Raises OSError where it cannot be opened, is not a regular file, is too large or is not UTF-8; RemoteError where a
    file that is not on this machine cannot be read.
    """
    if isinstance(path, Path):
        require_size(path, most)
        with open_regular(path) as file:
            content = file.read(most)
    else:
        content = path.content(most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"it is not UTF-8 text (byte {error.start:,})", str(path)) from error


def parse_json(text: str, **options: Any) -> Any:
    """Return the value of a JSON text. Raises ValueError, also where it is nested too deep or a number is too long."""
    if _LONG_NUMBER.search(text):
        options["parse_int"] = _whole_number  # takes a third of the time, and is seldom needed
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return the value of a TOML text. Raises ValueError, also where it is nested too deep or a number is too long."""
    import tomllib

    if sum(line.count(".") ** 2 for line in text.splitlines()) > _MOST_DOTS:
        raise ValueError("its keys have too many dots")
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    left: list[Any] = [data]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)):
            left += value.values() if isinstance(value, dict) else value
        elif type(value) is int and not -(2**63) <= value < 2**63:
            raise ValueError("a whole number is out of range")
    return data


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def train_step(value: Any) -> int | None:
    """Return an optimiser step given as a number or in digits; None for anything else.

    >>> train_step("1200"), train_step(7), train_step("²"), train_step(10**400)
    (1200, 7, None, None)
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_STEP else None


class Allowance:
    """How many more entries may be looked at in data that can be made to expand without end."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, steps: int = 1) -> bool:
        """Whether so many more are allowed; after the first refusal none are."""
        self._left -= steps
        return self._left >= 0

    @property
    def spent(self) -> bool:
        """Whether something was left out."""
        return self._left < 0


@contextlib.contextmanager
def naming(path: Location, error: type[SsmdiagError] = CheckpointError) -> Iterator[None]:
    """Turn whatever reading damaged or forged content raises into an SsmdiagError that names the file."""
    try:
        yield
    except (RecursionError, MemoryError, OverflowError, zlib.error, struct.error, UnicodeDecodeError) as caught:
        raise error(
            f"{path.name} cannot be read ({str(caught) or type(caught).__name__}).",
            advice="it is damaged or malicious; save or download it again.",
        ) from caught


def shortened(text: str, most: int = 80) -> str:
    """Return a text for a message, cut where it is too long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
