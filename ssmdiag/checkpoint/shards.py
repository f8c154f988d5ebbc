"""A model in shards, listed by an index or numbered in their names; each tensor is whole in one shard, none missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ssmdiag.checkpoint.budget import MOST_INDEX, parse_json, read_text, shortened
from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, collect
from ssmdiag.checkpoint.companions import read_config, step_of
from ssmdiag.checkpoint.copies import first_difference
from ssmdiag.checkpoint.file_names import SHARD
from ssmdiag.checkpoint.location import Location, open_ahead, real_path, size_of
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.checkpoint.ranks import HF_DISTRIBUTED, continues, require_no_rank
from ssmdiag.errors import CheckpointError, PartialModelError, RemoteError, UnsafePickleError
from ssmdiag.printable import first_of

MOST_SHARDS, MOST_NAMED, LONGEST_FILE = 10_000, 20, 1000
"""Most shards of one model, most faults listed, and most characters of a shard's name."""


def read_index(path: Location) -> Checkpoint:
    """Return the checkpoint of a shard index, {"weight_map": {tensor: file}}."""
    promised: dict[str, set[str]] = {}
    try:
        for name, file in parse_json(read_text(path, MOST_INDEX))["weight_map"].items():
            if len(file) > LONGEST_FILE:
                raise ValueError(f"the name of a file has {len(file):,} characters")
            promised.setdefault(str(Path(file)), set()).add(name)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or shortened(f"{type(error).__name__}: {error}", 200)
        raise CheckpointError(
            f"{path.name} is not a shard index ({reason}).",
            expected='{"weight_map": {tensor: file, …}}',
            advice="download it again.",
        ) from error
    checkpoint = _read(path.parent, promised, path.name)
    names = set().union(*promised.values())
    for file in _unnamed(path.parent, promised):
        if continues(names, _names_in(file)):
            raise PartialModelError(
                f"{path.name} leaves out {file.name}, which holds further layers of the model.",
                expected="an index that names every shard",
                advice=f"download the index again; if {file.name} is of another model, move it away.",
            )
    return checkpoint


def _unnamed(directory: Location, promised: Mapping[str, object]) -> list[Location]:
    """Return the files beside the shards that an index does not name and that are called like none of another set."""
    ending = {Path(file).suffix for file in promised}
    try:
        present = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []  # a server that lists nothing
    others = [name for name in present if Path(name).suffix in ending and name not in promised]
    return [directory / name for name in others[:MOST_NAMED] if not SHARD.search(name)]


def _names_in(file: Location) -> list[str]:
    try:
        return open_container(file).names()
    except (CheckpointError, OSError):
        return []  # what cannot be read is no part of this model


def read_set(directory: Location, names: Sequence[str]) -> Checkpoint:
    """Return the checkpoint of shards whose names are numbered, -00001-of-00003, without an index."""
    once = {real_path(directory / name): name for name in sorted(names, reverse=True)}  # links to one file
    whole = [name for name in once.values() if not HF_DISTRIBUTED.fullmatch(name)]
    shards = sorted(whole or once.values())
    sets = sorted({(name[: found.start()], name[found.end() :]) for name in shards if (found := SHARD.search(name))})
    if len(sets) > 1 and whole:
        raise CheckpointError(
            f"{directory} holds {len(sets)} models in shards: {first_of([f'{a}-….{b}' for a, b in sets])}.",
            expected="the shards of one model, or an index that names them",
            advice="name an index.json, or move each model into a directory of its own.",
        )
    return _read(directory, dict.fromkeys([*shards, *_absent(shards)]), "the names of the shards")


def require_no_shard(container: Container) -> None:
    """Raise PartialModelError for one shard of several, by its name or by what its header counts."""
    found = SHARD.search(container.name)
    number, count = (int(found[1]), int(found[2])) if found else (None, 1)
    split = container.settings.get("split.count")  # of a GGUF file
    if number is None and type(split) is int:
        count = split
    if count > 1:
        which = f"shard {number}" if number else "one"
        raise PartialModelError(
            f"{container.name} is {which} of the {count:,} shards of a model.",
            expected="all shards of it, in one directory",
            advice=f"ssmdiag inspect {container.path.parent if container.path else 'DIR'}",
        )


def _read(directory: Location, promised: Mapping[str, set[str] | None], origin: str) -> Checkpoint:
    """Open every shard. Raises PartialModelError where one that `origin` names is missing, or where two differ."""
    absent = _absent(promised)
    if (count := len(promised) + len(absent)) > MOST_SHARDS:
        raise CheckpointError(
            f"{directory}: {origin} names {count:,} files.", expected=f"at most {MOST_SHARDS:,} shards"
        )
    home = {name: file for file, names in promised.items() for name in names or ()}
    opened: dict[str, Container] = {}
    config, notes, problems = read_config(directory)
    faults: list[str] = []
    missing = [f"shard {file} is left out by {origin}" for file in absent]
    open_ahead([directory / file for file in sorted(promised) if _is_inside(file)])
    for file, names in sorted(promised.items()):
        lost = f" ({len(names):,} tensors)" if names is not None else ""
        shard = directory / file
        if not _is_inside(file):
            faults.append(f"{origin} points outside its directory: {file}; not opened")
        elif not shard.exists():
            missing.append(f"shard {file} is missing{lost}")
        else:
            try:
                opened[file] = open_container(shard)
            except (UnsafePickleError, RemoteError):
                raise
            except (CheckpointError, OSError) as error:
                faults.append(f"shard {file} cannot be read{lost}: {getattr(error, 'seen', error)}")
                continue
            require_no_rank(opened[file])
            if lacking := sorted((names or set()) - set(opened[file].names())):
                tensors = f"{len(lacking):,} tensor{'s' * (len(lacking) > 1)}"
                faults.append(f"shard {file} lacks {tensors} the index promises: {first_of(lacking)}")
    faults += missing
    if faults:
        more = len(faults) - MOST_NAMED
        raise PartialModelError(
            f"{directory} holds a part of a model: {origin} names files that are missing or incomplete.",
            details=[*faults[:MOST_NAMED], *([f"{more:,} more faults"] if more > 0 else [])],
            expected=f"{count:,} shards, each whole",
            advice="download the missing files, then inspect the directory again.",
        )
    kept = _owned(directory, opened, home)
    notes += [note for container in opened.values() for note in container.notes]
    return Checkpoint(
        path=directory,
        format=f"{next(iter(opened.values())).format}, {len(opened)} shards",
        tensors=collect({opened[file]: names for file, names in kept.items()}),
        size=sum(size_of(directory / file) for file in opened),
        config=config,
        hyper_parameters={key: value for container in opened.values() for key, value in container.settings.items()},
        train_step=step_of(directory.absolute()),
        notes=tuple(dict.fromkeys(notes)),
        problems=tuple(problems),
        directory=directory,
    )


def _is_inside(file: str) -> bool:
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _owned(directory: Location, opened: Mapping[str, Container], home: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the tensors to read from each shard. Raises PartialModelError where two hold one name and differ."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for file, container in opened.items():
        for name in container.names():
            if (first := owner.setdefault(name, file)) != file:
                shared.setdefault((first, file), []).append(name)
    for (first, second), names in shared.items():
        if (differing := first_difference(opened[first], opened[second], names)) is not None:
            shapes = dict.fromkeys(str(opened[file].shape(differing)) for file in (first, second))
            more = f" and {len(names) - 1:,} other tensors" if len(names) > 1 else ""
            raise PartialModelError(
                f"{directory}: {first} and {second} both hold {differing} {' and '.join(shapes)}{more}, "
                "with different values.",
                expected="each tensor in one shard, whole",
                advice="if each is one rank's part, merge them with the code that wrote them; "
                "if one is out of date, delete it.",
            )
    kept: dict[str, list[str]] = {file: [] for file in opened}
    for name, first in owner.items():
        kept[home.get(name, first)].append(name)
    return kept


def _absent(shards: Iterable[str]) -> list[str]:
    """Return the names of the missing shards in incomplete sets."""
    names = dict.fromkeys(shards)
    sets = {(name[: found.start()], found[2], name[found.end() :]) for name in names if (found := SHARD.search(name))}
    absent: dict[str, None] = {}
    for head, count, tail in sorted(sets):
        numbers = range(1, min(int(count), MOST_SHARDS - len(names) - len(absent)) + 1)
        absent |= dict.fromkeys(f"{head}-{number:05d}-of-{count}.{tail}" for number in numbers)
    return [name for name in absent if name not in names]
