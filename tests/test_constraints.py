"""The suite runs at the versions of tests/constraints.txt, so that a clean clone stays green."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from tests.constraints import HEADER, versions

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def pinned() -> dict[str, str]:
    lines = CONSTRAINTS.read_text().removeprefix(HEADER).splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_the_suite_asks_for_has_one_version() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {canonical(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in asked}
    assert names <= pinned().keys()
    assert {"pip", "hatchling", "editables"} <= pinned().keys()
    assert all(version and "+" not in version for version in pinned().values())


def test_what_renew_writes_is_what_is_installed() -> None:
    written = dict(line.split("==") for line in versions())
    assert "ssmdiag" not in written
    assert {canonical(each.metadata["Name"]) for each in distributions()} - {"ssmdiag"} == set(map(canonical, written))
