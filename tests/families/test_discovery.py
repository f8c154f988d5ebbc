"""Families of other packages: found through the entry point, refused with a sentence where they are broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssmdiag import Family, Spelling, SsmdiagError, diagnose, guard, known_families
from ssmdiag.recurrence.discretisation import zoh

Plug = Callable[..., None]


def foreign(name: str = "foreign") -> Family:
    def read(layer):
        yield layer.recurrence(zoh(-layer.weight("leak", "exp"), layer["leak"].new_ones(())))

    return Family(name, "Foreign", "none", "exact", (Spelling("theirs", {"leak": "channel mode"}),), read)


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """Make another package's entry point of this value visible."""

    def use(value: object) -> None:
        module = ModuleType("foreign_package")
        module.__dict__["FAMILY"] = value
        monkeypatch.setitem(sys.modules, "foreign_package", module)
        entries = [EntryPoint("foreign", "foreign_package:FAMILY", "ssmdiag.families")]
        monkeypatch.setattr(guard, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
        known_families.cache_clear()

    yield use
    known_families.cache_clear()


def test_a_family_of_another_package_reads_its_checkpoints(plug: Plug, write_model: Callable[..., Path]) -> None:
    plug(foreign())
    result = diagnose(write_model({"net.0.leak": torch.zeros(2, 3)}))
    assert [(layer.family, layer.modes) for layer in result.layers] == [("foreign", 3)]
    assert result.layers[0].rate.median == 1.0


@pytest.mark.parametrize(
    ("value", "says"),
    [("no family", "is a str"), (foreign("mamba"), "a family mamba, and there is one already")],
    ids=["no-family", "name-in-use"],
)
def test_a_broken_entry_point_is_a_sentence(plug: Plug, value: object, says: str) -> None:
    plug(value)
    with pytest.raises(SsmdiagError, match=says):
        known_families()


def test_an_entry_point_that_cannot_be_imported_is_a_sentence(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(None)
    monkeypatch.delitem(sys.modules, "foreign_package")
    with pytest.raises(SsmdiagError, match="cannot be loaded: ModuleNotFoundError"):
        known_families()
