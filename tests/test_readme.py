"""The README runs: its console blocks are what the program prints, its commands parse, its table is what there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ssmdiag import known_families
from ssmdiag.check.configuration import read_configuration
from ssmdiag.cli.app import COMMANDS, make_app
from ssmdiag.cli.glossary import find_term
from ssmdiag.families.mapfile import read_map
from tests.cli.conftest import run as run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAPERS = (ROOT / "examples" / "papers" / "README.md").read_text(encoding="utf-8")
MOST_LINES = 230
"""Beside what the program prints, which has limits of its own: 280 in all."""
BLOCK = re.compile(r"```console\n\$ (?P<command>ssmdiag [^\n]*)\n(?P<output>.*?)```", re.DOTALL)
SHOWN = [match["command"] for match in BLOCK.finditer(TEXT)]
TABLE = re.compile(r"(?P<head>\| family \|[^\n]*\n\|---[^\n]*\n)(?:\|[^\n]*\n)*\n(?:Others, [^\n]*\n)*")
VARIABLES = {"$task": "lf-exp", "$width": "4"}
PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}


def written(text: str) -> Iterator[str]:
    """Yield every command of a document that is shown without its output."""
    for code in re.findall(r"^```sh\n(?:.*\n)*?```$|(?:^ {4}.*\n)+", text, re.MULTILINE):
        for line in code.replace("\\\n", " ").splitlines():
            for name, value in VARIABLES.items():
                line = line.replace(name, value)
            if command := re.match(r" *(?:\$ |uvx |torchrun .* -m )?(ssmdiag .*)", line):
                yield " ".join(shlex.split(command[1], comments=True))


WRITTEN = list(dict.fromkeys([*written(TEXT), *written(PAPERS)]))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def output_of(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Run a command as a reader would, at 80 columns, and return what it prints."""

    def call(command: str) -> str:
        monkeypatch.chdir(ROOT)
        for name, value in PLAIN.items():
            monkeypatch.setenv(name, value)
        code, output, errors = run(*shlex.split(command)[1:])
        assert code == 0, errors
        return steady(output)

    return call


def steady(text: str) -> str:
    """Return the text with its timing fixed."""
    return re.sub(r"cpu \d+\.\d s", "cpu 0.1 s", text)


def test_the_readme_is_short_and_shows_real_commands() -> None:
    printed = sum(match["output"].count("\n") for match in BLOCK.finditer(TEXT))
    assert TEXT.count("\n") - printed <= MOST_LINES
    assert [command.split()[1] for command in SHOWN] == ["inspect", "check", "compare"]
    assert len(WRITTEN) > 20
    assert {command.split()[1] for command in WRITTEN} >= {"inspect", "check", "compare", "watch", "probe", "retrain"}


@pytest.mark.parametrize("command", SHOWN)
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


@pytest.mark.parametrize("command", WRITTEN)
def test_a_command_that_is_shown_without_its_output_parses(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    assert name in COMMANDS
    group: Any = typer.main.get_command(make_app([name]))
    group.commands[name].make_context(name, arguments)


def test_settings_and_map_are_read(tmp_path: Path) -> None:
    settings, declared = blocks("toml")
    (tmp_path / "ssmdiag.toml").write_text(settings, encoding="utf-8")
    configuration = read_configuration(tmp_path)
    assert configuration.thresholds["SSM205"] == {"spread": 0.05}
    assert configuration.per_layer_ignores == {"encoder.*": ("SSM2",)}
    (tmp_path / "map.toml").write_text(declared, encoding="utf-8")
    (family,) = read_map(tmp_path / "map.toml")
    assert family.name == "my-rnn"


def test_the_library_s_block_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = (block for block in blocks("python") if "ssmdiag.diagnose" in block)
    exec(code, {})
    first, *layers = capsys.readouterr().out.splitlines()
    assert first.endswith(" 0")
    assert len(layers) == 3


def test_every_family_stands_in_the_readme(request: pytest.FixtureRequest) -> None:
    text = README.read_text(encoding="utf-8")
    families = known_families()
    decay = {"exact": "exact", "nominal": "at rest"}
    rows = [f"| {family.title} | {decay[family.memory]} | {', '.join(family.model_types)} |\n" for family in families
            if family.model_types]  # fmt: skip
    others: dict[str, list[str]] = {memory: [] for memory in decay}
    for family in families:
        others[family.memory] += [] if family.model_types else [family.title]
    lines = [f"Others, {decay[memory]}: {', '.join(titles)}.\n" for memory, titles in others.items()]
    expected = f"{''.join(rows)}\n{''.join(lines)}"
    if request.config.getoption("--update-golden"):
        text = TABLE.sub(lambda match: match["head"] + expected, text)
        README.write_text(text, encoding="utf-8")
    (match,) = TABLE.finditer(text)
    assert match[0] == match["head"] + expected


def test_the_words_of_the_numbers_are_those_that_explain_knows() -> None:
    words = re.findall(r"^(?:- |  )\*\*([^*]+)\*\*", TEXT, re.MULTILINE)
    assert len(words) == 8
    assert [term.name for word in words if (term := find_term(word))] == words


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-") for line in re.findall(r"^## .*", TEXT, re.M)
    }
    assert links
    for link in links:
        absent = link.startswith(".github/") and not (ROOT / ".github").is_dir()  # as in a source distribution
        assert absent or (link[1:] in headings if link.startswith("#") else (ROOT / link).is_file()), link
