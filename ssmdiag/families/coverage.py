"""Which families a name stands for: their own, their title, a spelling's implementation, a model type, GGUF's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from ssmdiag.errors import AssumptionError
from ssmdiag.families.interface import Family

NOT_READ = ("sLSTM", "LMU", "SRU", "CfC and LTC", "GateLoop", "TTT")
"""Recurrences known by name that no family reads."""


ASKS_FOR_ALL = ("all", "list", "ls")


def find_families(name: str, known: tuple[Family, ...]) -> tuple[Family, ...]:
    """Return the families that a name stands for, whatever its case, hyphens and underscores.

    The family of that name, else all with such a title, model type, GGUF architecture or implementation. Raises
    AssumptionError where there is none, and says what is close.

    >>> from ssmdiag.families import known_families
    >>> [[family.name for family in find_families(name, known_families())] for name in ("Mamba-2", "qwen3_next")]
    [['mamba2'], ['gated_delta_net']]
    """
    wanted = _plain(name)
    if own := tuple(family for family in known if _plain(family.name) == wanted):
        return own
    if found := tuple(family for family in known if wanted in map(_plain, _names(family))):
        return found
    others: dict[str, str] = {}
    for other in (name for family in known for name in (family.name, *_names(family))):
        others.setdefault(_plain(other), other)
    close = [others[match] for match in difflib.get_close_matches(wanted, others, n=3) if wanted not in ASKS_FOR_ALL]
    raise AssumptionError(
        f"no family, model type or architecture is called {name}.",
        expected=f"one of the {len(known)} that `ssmdiag families` lists",
        advice=None if close else "ssmdiag families",
        instead=(name, close[0]) if close else None,
    )


def _names(family: Family) -> Iterator[str]:
    yield family.title
    yield from family.title.split(", ")
    yield from (*family.model_types, *family.gguf)
    for repository in family.repositories:
        yield from (repository, repository.rpartition("/")[2])
    for spelling in family.spellings:
        for implementation in spelling.name.split(", "):
            yield implementation
            yield implementation.rpartition("/")[2]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def covered(family: Family) -> list[str]:
    """Return what a family covers, a phrase for each kind of which it covers any: `GGUF: jamba, mamba`."""
    kinds = {"code": family.repositories, "transformers": family.model_types, "GGUF": family.gguf}
    return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
