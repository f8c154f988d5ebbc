"""Rules of other packages: found through the entry point, refused with a sentence where they are broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from ssmdiag import SsmdiagError, guard
from ssmdiag.rules import Rule, known_rules

Plug = Callable[[object], None]


def foreign(**changes: str) -> Rule:
    return replace(known_rules()[0], **({"code": "XYZ100", "name": "foreign"} | changes))  # type: ignore[arg-type]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """Make another package's entry point of this value visible."""

    def use(value: object) -> None:
        module = ModuleType("foreign_package")
        module.__dict__["RULE"] = value
        monkeypatch.setitem(sys.modules, "foreign_package", module)
        entries = [EntryPoint("foreign", "foreign_package:RULE", "ssmdiag.rules")]
        monkeypatch.setattr(guard, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
        known_rules.cache_clear()

    yield use
    known_rules.cache_clear()


def test_a_rule_of_another_package_is_one_of_the_rules(plug: Plug) -> None:
    rule = foreign()
    plug(rule)
    assert known_rules()[-1] is rule


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"name": "no-decay"}, "a rule no-decay, and there is one already"), ({"code": "SSM102"}, "have the code SSM102")],
    ids=["name-in-use", "code-in-use"],
)
def test_a_name_or_code_in_use_is_a_sentence(plug: Plug, changes: dict[str, str], says: str) -> None:
    plug(foreign(**changes))
    with pytest.raises(SsmdiagError, match=says):
        known_rules()


def test_what_is_no_rule_is_a_sentence(plug: Plug) -> None:
    plug("no rule")
    with pytest.raises(SsmdiagError, match="is a str"):
        known_rules()
