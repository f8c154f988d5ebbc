"""The files that reading a checkpoint opens, which no output may replace. Of these, only indexes are opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ssmdiag.checkpoint.budget import MOST_INDEX, parse_json, read_text
from ssmdiag.checkpoint.file_names import INDEX
from ssmdiag.errors import SsmdiagError

LONGEST = 1000
"""Most characters of a shard's name in an index."""
_MODEL = re.compile(
    r".*\.(?:distcp|state|index\.json)"
    r"|(?:config|generation_config|trainer_state|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|tokenizer\.model|\.metadata",
    re.DOTALL,
)
"""Names of shards, indexes, settings, tokenizers and saved states of runs: of all files but weights."""


def belongs_to_model(name: str) -> bool:
    """Whether a file of this name belongs to a model, or to the run that trained it.

    >>> [belongs_to_model(name) for name in ("model-00001-of-00002.safetensors", "config.json", "report.json")]
    [True, True, False]
    """
    from ssmdiag.checkpoint.formats import suffixes

    return name.endswith(suffixes()) or _MODEL.fullmatch(name) is not None


def files_read_with(path: Path, folders: set[Path] | None = None) -> Iterator[Path]:
    """Yield a file, or a folder's files, and the files that are read with them: settings, shards, optimisers.

    The steps of a run, or DeepSpeed's optimisers, are one level below a folder. `folders` are those of files asked for
    before, which are not listed again: a thousand checkpoints may lie in one.
    """
    if not os.path.isdir(path):
        yield path
        if folders is not None:
            if path.parent in folders:
                return
            folders.add(path.parent)
        found = list(_files(path.parent))
    else:
        found = list(_files(path))
        for folder in _entries(path):
            if folder.is_dir():
                found += _files(Path(folder.path))
    yield from found
    for file in found:
        if file.name.endswith(INDEX):
            yield from _shards(file)


def _files(folder: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in _entries(folder) if belongs_to_model(entry.name))


def _shards(index: Path) -> Iterator[Path]:
    """Yield the names of an index's shards, whatever they are; none where it cannot be read."""
    try:
        files = parse_json(read_text(index, MOST_INDEX))["weight_map"].values()
        names = {file for file in files if isinstance(file, str) and len(file) <= LONGEST and "\0" not in file}
    except (SsmdiagError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    yield from (index.parent / name for name in sorted(names))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
