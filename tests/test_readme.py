"""The README runs: its console blocks are what the program prints, its table is what discovery finds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag import known_families
from ssmdiag.families.coverage import covered
from tests.cli.conftest import run as run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>ssmdiag [^\n]*)\n(?P<output>.*?)```", re.DOTALL)
COMMANDS = [match["command"] for match in BLOCK.finditer(README.read_text(encoding="utf-8"))]


PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}


@pytest.fixture
def output_of(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Run a command as a reader would, at 80 columns, and return what it prints.

    Help, where the program names itself, is the installed program's; what takes seconds to import runs in this process.
    """

    def call(command: str) -> str:
        script, *arguments = shlex.split(command)
        if "--help" in arguments:
            program, environment = [str(Path(sys.executable).with_name(script)), *arguments], {**os.environ, **PLAIN}
            return subprocess.run(
                program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
            ).stdout
        monkeypatch.chdir(ROOT)
        for name, value in PLAIN.items():
            monkeypatch.setenv(name, value)
        code, output, errors = run(*arguments)
        assert code == 0, errors
        return steady(output)

    return call


def steady(text: str) -> str:
    """Return the text with its timing fixed."""
    return re.sub(r"cpu \d+\.\d s", "cpu 0.1 s", text)


def test_the_readme_shows_real_commands() -> None:
    assert any("inspect examples/" in command for command in COMMANDS)
    assert "ssmdiag --help" in COMMANDS


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if re.search(r"\w+ --help", command[len("ssmdiag ") :]) else [])
        for command in COMMANDS
    ],
)
def test_console_block_is_what_the_program_prints(
    command: str, output_of: Callable[[str], str], request: pytest.FixtureRequest
) -> None:
    text = README.read_text(encoding="utf-8")
    got = output_of(command)
    if request.config.getoption("--update-golden"):
        block = f"```console\n$ {command}\n{got}```"
        text = BLOCK.sub(lambda match: block if match["command"] == command else match[0], text)
        README.write_text(text, encoding="utf-8")
    (match,) = (match for match in BLOCK.finditer(text) if match["command"] == command)
    assert steady(match["output"]) == got


def test_every_family_stands_in_the_readme(request: pytest.FixtureRequest) -> None:
    text = README.read_text(encoding="utf-8")
    rows = [
        f"| `{family.name}` | {family.title} – {family.paper} | {family.memory} | {'; '.join(covered(family))} |"
        for family in known_families()
    ]
    if request.config.getoption("--update-golden"):
        text = re.sub(
            r"(\| family \|[^\n]*\n\|---[^\n]*\n)(?:\|[^\n]*\n|FAMILY_TABLE\n)*",
            lambda m: m[1] + "\n".join(rows) + "\n",
            text,
        )
        README.write_text(text, encoding="utf-8")
    missing = [row for row in rows if row not in text]
    assert not missing
