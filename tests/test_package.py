"""What is installed: public names, one version, a wheel and an sdist with all that belongs in them and nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ssmdiag
from ssmdiag.output.result import Result
from ssmdiag.version import __version__

ROOT = Path(__file__).parent.parent
SOURCE = Path(ssmdiag.__file__)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names_for_type_checkers() -> dict[str, str]:
    """Return the names that are imported for type checkers alone → the modules they come from."""
    (block,) = [
        node
        for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        str(alias.asname): str(statement.module)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_type_checkers_and_programs_see_the_same_names() -> None:
    assert names_for_type_checkers() == ssmdiag._WHERE
    assert set(ssmdiag.__all__) == {*ssmdiag._WHERE, "__version__"}
    assert set(ssmdiag.__all__) <= set(dir(ssmdiag))
    assert (SOURCE.parent / "py.typed").exists()


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    everything: dict[str, object] = {}
    exec("from ssmdiag import *", everything)
    assert set(ssmdiag.__all__) <= everything.keys()
    assert not [name for name in ssmdiag._WHERE if not (everything[name].__doc__ or "").strip()]


def test_every_result_and_what_returns_it_are_public() -> None:
    for kind in Result.__subclasses__():
        assert getattr(ssmdiag, kind.__name__) is kind


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    files = [ROOT / "README.md", ROOT / "pyproject.toml", *SOURCE.parent.rglob("*.py")]
    has = [path.name for path in files if f'"{__version__}"' in path.read_text(encoding="utf-8")]
    assert has == ["version.py"]


def test_no_text_leaves_a_name_to_guess() -> None:
    """The repository does not know where it is hosted: its documents say how to find out, or need no address."""
    texts = [
        ROOT / "README.md",
        ROOT / ".pre-commit-hooks.yaml",
        *(ROOT / ".github").rglob("*.*"),
        ROOT / "pyproject.toml",
    ]
    assert not [path.name for path in texts for word in ("OWNER", "@REF", "REF\n") if word in path.read_text("utf-8")]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("dist")

    def make(target: str) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (made,) = [path for path in folder.iterdir() if (path.suffix == ".whl") == (target == "wheel")]
        return made

    return make


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_says_what_it_needs(build: Callable[[str], Path]) -> None:
    wheel = build("wheel")
    assert wheel.name == f"ssmdiag-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"ssmdiag-{__version__}.dist-info"
        metadata: Message = message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"ssmdiag", info}
    held = {name for name in names if name.startswith("ssmdiag/")}
    own = {path for path in SOURCE.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {path.relative_to(ROOT).as_posix() for path in own}
    assert {"ssmdiag/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert set(metadata.get_all("Provides-Extra", [])) == {"hf", "hub", "jax", "remote", "test"}
    needed = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert {str(Requirement(one)) for one in needed} == {str(Requirement(one)) for one in PROJECT["dependencies"]}
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("Project-URL")
    assert entry_points.split() == ["[console_scripts]", "ssmdiag", "=", "ssmdiag.cli:run"]


@pytest.mark.slow
def test_the_sdist_holds_sources_tests_and_examples_but_nothing_of_the_repositorys_own_checks(
    build: Callable[[str], Path],
) -> None:
    with tarfile.open(build("sdist")) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    tops = {name.split("/")[0] for name in names}
    assert tops - {".gitignore"} == {
        "LICENSE", "Makefile", "PKG-INFO", "README.md", "examples", "pyproject.toml", "ssmdiag", "tests",
    }  # fmt: skip
    assert {"ssmdiag/py.typed", "tests/constraints.txt", "examples/README.md"} <= set(names)


@pytest.mark.slow
def test_a_wheel_runs_from_another_folder(build: Callable[[str], Path], tmp_path: Path) -> None:
    """As `uvx` and `pipx run` run it: unpacked elsewhere, with the packages of this environment."""
    with zipfile.ZipFile(build("wheel")) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1", "COLUMNS": "80"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", "import ssmdiag.cli as c, sys; print(c.__file__); c.run()", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout

    where, version = run("--version").splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert __version__ in version
    shown = run("inspect", "--no-plots", str(ROOT / "examples" / "s4d-digits" / "step-02000.safetensors"))
    assert "S4D" in shown


def test_every_room_can_be_imported_alone() -> None:
    for name in {module.rpartition(".")[0] or module for module in ssmdiag._WHERE.values()}:
        assert import_module(name)
