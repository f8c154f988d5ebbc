"""Every format renders every case; the texts at 80 columns are golden files, read in review."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from ssmdiag.diagnosis import Diagnosis
from ssmdiag.reports import Settings, formats, render
from ssmdiag.reports.pictures import heat_map
from tests.reports.example_diagnoses import CASES, diagnosis, layer

GOLDEN = Path(__file__).parent / "golden"


GOLDENS = [(case, "text") for case in CASES]
SHOWN = ("hybrid", "assumed", "findings", "guess", "failed")
GOLDENS += [(case, format) for case in SHOWN for format in formats() if format not in ("text", "html")]
GOLDENS += [("findings", "html"), ("failed", "html")]


@pytest.mark.parametrize(("case", "format"), GOLDENS)
def test_report_equals_its_golden_file(case: str, format: str, request: pytest.FixtureRequest) -> None:
    text = render([CASES[case]], format, Settings(width=80))
    path = GOLDEN / f"{case}.{format}"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", formats())
def test_every_format_says_of_a_guess_that_it_is_one(format: str) -> None:
    for quiet in (True, False):
        text = " ".join(render([CASES["guess"]], format, Settings(width=80, quiet=quiet)).split())
        assert re.search("a guess: layers are read through map.toml", text, re.IGNORECASE)
        assert "set reviewed = true there" in text
    whole = render([CASES["hybrid"], CASES["guess"]], format, Settings())
    assert len(re.findall("(?i)a guess: layers", whole)) == len(re.findall("(?i)a guess: layers", text))
    assert not re.search("(?i)a guess", render([CASES["hybrid"]], format, Settings()))


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {f"{case}.{format}" for case, format in GOLDENS}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("width", [40, 60, 80, 140])
@pytest.mark.parametrize("case", [case for case in CASES if case != "failed"])
def test_no_line_of_text_is_wider_than_asked(case: str, width: int) -> None:
    text = render([CASES[case]], "text", Settings(width=width))
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
def test_ascii_output_is_ascii_and_keeps_the_table_aligned(case: str) -> None:
    text = render([CASES[case]], "text", Settings(unicode=False))
    assert text.isascii()


def test_plain_text_has_no_escape_sequences_and_coloured_text_has() -> None:
    case = CASES["hybrid"]
    assert "\x1b" not in render([case], "text", Settings())
    coloured = render([case], "text", Settings(colour=True))
    assert "\x1b[" in coloured
    assert not re.search(r"\x1b\[\d*[A-HJKfsu]", coloured), "cursor control"


def test_first_lines_are_the_answer() -> None:
    lines = render([CASES["unstable"]], "text", Settings(width=140)).splitlines()
    assert lines[0].startswith("PROBLEM  12 of 81,920 modes in layer 1 grow with every step, the fastest by a factor")
    assert lines[1].startswith("model.safetensors")


def test_quiet_is_the_answer_alone() -> None:
    assert len(render([CASES["unstable"]], "text", Settings(quiet=True, width=300)).splitlines()) == 2


def test_a_screen_holds_a_model_of_two_hundred_layers() -> None:
    model = diagnosis(*(layer(i, half_life=2 * 1.1 ** (i % 37), complex_=True) for i in range(200)))
    assert len(render([model], "text", Settings()).splitlines()) <= 45


def test_all_layers_shows_one_row_for_each() -> None:
    model = diagnosis(*(layer(i) for i in range(30)))
    lines = render([model], "text", Settings(all_layers=True, plots=False)).splitlines()
    assert sum(bool(re.match(r"\d+ +5,120 × 16", line)) for line in lines) == 30


def test_json_of_several_results_is_an_array_and_of_one_an_object() -> None:
    one, two = CASES["hybrid"], CASES["failed"]
    assert json.loads(render([one], "json", Settings()))["schema_version"] == 1
    several = json.loads(render([one, two], "json", Settings()))
    assert [entry["schema_version"] for entry in several] == [1, 1]
    assert several[1]["error"]["kind"] == "CheckpointError"


def test_json_knows_no_nan_and_writes_infinity_as_a_string() -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    for case, result in CASES.items():
        data = json.loads(render([result], "json", Settings()), parse_constant=refuse)
        if case == "on-the-boundary":
            assert data["layers"][0]["half_life"]["max"] == "inf"
        if case == "nothing-finite":
            assert data["layers"][0]["half_life"] is None


def test_json_holds_every_key_of_the_contract() -> None:
    data = json.loads(render([CASES["hybrid"]], "json", Settings()))
    assert {
        "schema_version", "ssmdiag_version", "torch_version", "device", "seed", "checkpoint", "context_length",
        "layers", "findings", "unrecognised",
    } <= data.keys()  # fmt: skip
    assert {"path", "format", "bytes_read"} <= data["checkpoint"].keys()
    for entry in data["layers"]:
        assert {
            "name", "family", "time_invariant", "channels", "modes", "dtype", "rate", "half_life", "time_constant",
            "spectral_radius", "margin", "horizon", "decay", "capacity",
        } <= entry.keys()  # fmt: skip
        assert entry["rate"].keys() == {"min", "p05", "median", "p95", "max"}


def test_exit_code_is_two_where_something_could_not_be_read() -> None:
    partly, whole = CASES["partly-read"], CASES["hybrid"]
    assert isinstance(partly, Diagnosis)
    assert isinstance(whole, Diagnosis)
    assert (partly.exit_code(), whole.exit_code()) == (2, 0)


def test_a_memory_that_is_nowhere_is_drawn_as_nothing() -> None:
    lines = heat_map({"0": [(0.0, 0.004), (10.0, 0.001)]}, Settings(width=80))
    assert lines[1].split() == ["0"]
