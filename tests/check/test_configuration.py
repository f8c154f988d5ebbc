"""The configuration is found upwards, every mistake in it is named, and what is shown reads back as the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.check.configuration import Configuration, find_configuration, read_configuration
from ssmdiag.check.configuration_text import as_toml
from ssmdiag.errors import ConfigurationError
from ssmdiag.rules import Rule, Threshold, known_rules

FULL = """
select = ["SSM1", "non-finite", "SSM901"]
ignore = ["SSM901"]
fail-on = "note"
format = "sarif"
context-length = 4096
baseline = "ci/baseline.json"

[thresholds.SSM901]
spread = 0.25
least = 3

[per-layer-ignores]
"encoder.*" = ["SSM4"]
"""


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch) -> Rule:
    """Add a rule with two thresholds, so that the tests do not hang on those of others."""
    thresholds = {"spread": Threshold(0.1, "share"), "least": Threshold(2.0, "modes")}
    rule = replace(known_rules()[0], code="SSM901", name="made-up", thresholds=thresholds)
    rules = (*known_rules(), rule)
    for module in ("check.configuration", "check.configuration_text", "rules.selection"):
        monkeypatch.setattr(f"ssmdiag.{module}.known_rules", lambda: rules)
    return rule


def written(folder: Path, text: str, name: str = "ssmdiag.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_every_setting_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, FULL)
    read = read_configuration(tmp_path)
    assert read == Configuration(
        select=("SSM1", "non-finite", "SSM901"),
        ignore=("SSM901",),
        fail_on="note",
        format="sarif",
        context_length=4096,
        baseline=tmp_path / "ci" / "baseline.json",
        thresholds={"SSM901": {"spread": 0.25, "least": 3.0}},
        per_layer_ignores={"encoder.*": ("SSM4",)},
        path=path,
        sources=read.sources,
    )
    assert set(read.sources.values()) == {"ssmdiag.toml"}


def test_pyproject_holds_the_same_settings(tmp_path: Path) -> None:
    text = FULL.replace("[", "[tool.ssmdiag.").replace('= [tool.ssmdiag."', '= ["')
    written(tmp_path, "[tool.other]\nx = 1\n[tool.ssmdiag]\n" + text, "pyproject.toml")
    assert read_configuration(tmp_path).thresholds == {"SSM901": {"spread": 0.25, "least": 3.0}}


def test_the_nearest_file_counts_and_ssmdiag_toml_wins_in_one_folder(tmp_path: Path) -> None:
    start = tmp_path / "a" / "b" / "c"
    start.mkdir(parents=True)
    assert find_configuration(start) is None
    top = written(tmp_path, "[tool.ssmdiag]\nfail-on = 'note'\n", "pyproject.toml")
    written(tmp_path / "a", "[tool.ruff]\n", "pyproject.toml")  # says nothing on ssmdiag: passed over
    assert find_configuration(start) == top
    near = written(tmp_path / "a" / "b", "[tool.ssmdiag]\n", "pyproject.toml")
    assert find_configuration(start) == near
    own = written(tmp_path / "a" / "b", "")
    assert find_configuration(start) == own
    assert read_configuration(start) == Configuration(path=own)


def test_the_search_goes_up_from_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "fail-on = 'note'")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert read_configuration(Path()).fail_on == "note"
    assert read_configuration(Path(), Path("../ssmdiag.toml")).fail_on == "note"


def test_isolated_looks_at_no_file_and_excludes_an_explicit_one(tmp_path: Path) -> None:
    written(tmp_path, "nonsense")
    assert read_configuration(tmp_path, isolated=True) == Configuration()
    with pytest.raises(ConfigurationError, match="exclude each other"):
        read_configuration(tmp_path, Path("x.toml"), isolated=True)


def test_an_explicit_file_may_have_any_name_and_must_exist(tmp_path: Path) -> None:
    path = written(tmp_path, "fail-on = 'note'", "strict.toml")
    assert read_configuration(tmp_path, path).fail_on == "note"
    with pytest.raises(ConfigurationError, match=r"gone\.toml cannot be read: No such file"):
        read_configuration(tmp_path, tmp_path / "gone.toml")
    project = written(tmp_path, "[project]\nname = 'x'\n", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"has no \[tool\.ssmdiag\]"):
        read_configuration(tmp_path, project)


@pytest.mark.parametrize(
    ("text", "seen", "expected", "advice"),
    [
        ("fail_on = 'note'", "unknown key 'fail_on'", "fail-on, format", "did you mean fail-on?"),
        ("zzz = 1", "unknown key 'zzz'", "select", None),
        ("fail-on = 'errors'", "fail-on: unknown value 'errors'", "note, warning, error", "did you mean error?"),
        ("fail-on = 3", "fail-on is 3, an integer", "note, warning, error", "correct it"),
        ("format = 'xml'", "format: unknown value 'xml'", "sarif", None),
        ("select = 'SSM1'", "select is 'SSM1', a string", "an array of rules", "correct it"),
        ("select = ['SSM1', 2]", "select is an array", "an array of rules", "correct it"),
        ("select = ['SSM7']", "select: unknown rule 'SSM7'", "a code such as", "did you mean"),
        ("ignore = ['unstable-modes']", "unknown rule 'unstable-modes'", "a code", "did you mean unstable-mode?"),
        ("ignore = ['']", "ignore: unknown rule ''", "a code", None),
        ("context-length = 0", "context-length is 0", "at least 1", "correct it"),
        ("context-length = 1_099_511_627_777", "context-length is 1099511627777", "at most 2**40", "correct it"),
        ("context-length = true", "context-length is True, a boolean", "at least 1", "correct it"),
        ("context-length = 4e3", "context-length is 4000.0, a number", "at least 1", "correct it"),
        ("context-length = 2026-01-01", "context-length is a date or a time", "at least 1", "correct it"),
        ("baseline = ''", "baseline is '', a string", "path of a file", "correct it"),
        ("thresholds = 3", "thresholds is 3, an integer", "[thresholds.RULE]", "correct it"),
        ("[thresholds]\nSSM901 = 3", "thresholds.SSM901 is 3, an integer", "a table of thresholds", "correct it"),
        ("[thresholds.SSM901]\nspread = '1'", "thresholds.SSM901.spread is '1', a string", "a number", "correct it"),
        ("[thresholds.SSM901]\nspread = nan", "thresholds.SSM901.spread is nan", "a number", "correct it"),
        (
            "[thresholds.SSM901]\nspraed = 1",
            "thresholds.SSM901: unknown threshold 'spraed'",
            "least, spread",
            "spread?",
        ),
        ("[thresholds.SSM902]\nx = 1", "thresholds: unknown rule 'SSM902'", "a code", "did you mean SSM901?"),
        ("[thresholds.SSM]\nspread = 1", "thresholds.SSM: unknown threshold 'spread'", "has no threshold", None),
        ("[per-layer-ignores]\n'a.*' = 'SSM1'", "per-layer-ignores.\"a.*\" is 'SSM1', a string", "array", "correct it"),
        ("[per-layer-ignores]\n'a.*' = ['SSM8']", "per-layer-ignores.\"a.*\": unknown rule 'SSM8'", "a code", "mean"),
        ("per-layer-ignores = []", "per-layer-ignores is an array", "by glob pattern", "correct it"),
        ("fail-on = ", "is not TOML: Invalid value", None, "--isolated"),
    ],
)
def test_a_mistake_is_named_with_the_file_the_key_and_what_was_expected(
    tmp_path: Path, text: str, seen: str, expected: str | None, advice: str | None
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(tmp_path)
    error = caught.value
    assert str(path) in error.seen
    assert seen in error.seen
    assert (expected or "") in (error.expected or "")
    assert (advice or "") in (error.advice or "")


def test_a_broken_neighbour_is_named(tmp_path: Path) -> None:
    written(tmp_path, "[tool", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not TOML"):
        read_configuration(tmp_path)
    written(tmp_path, "[tool]\nssmdiag = 3\n", "pyproject.toml")
    with pytest.raises(ConfigurationError, match=r"tool\.ssmdiag is 3, an integer"):
        read_configuration(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_configuration(tmp_path)


@pytest.mark.parametrize("what", ["pipe", "folder", "link to itself", "link to a device"])
def test_what_is_there_and_is_no_file_is_refused_and_not_passed_over(what: str, tmp_path: Path) -> None:
    path = tmp_path / "ssmdiag.toml"
    make = {"pipe": os.mkfifo, "folder": os.mkdir}
    if what in make:
        make[what](path)
    else:
        path.symlink_to(path if what == "link to itself" else "/dev/zero")
    with pytest.raises(ConfigurationError, match=r"ssmdiag\.toml cannot be read"):
        read_configuration(tmp_path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "ssmdiag.toml").write_bytes(b"\xef\xbb\xbffail-on = 'note'\r\n")
    assert read_configuration(tmp_path).fail_on == "note"


def test_thresholds_reach_the_rule_whatever_it_is_called_by(tmp_path: Path) -> None:
    written(tmp_path, "[thresholds.made-up]\nspread = 0.5\n[thresholds.SSM9]\nleast = inf")
    assert read_configuration(tmp_path).selection().limits["SSM901"] == {"spread": 0.5, "least": float("inf")}


def test_the_command_line_wins(tmp_path: Path) -> None:
    written(tmp_path, FULL)
    file = read_configuration(tmp_path)
    over = file.overridden(fail_on="error", format="text", context_length=64, baseline=Path("other.json"))
    assert (over.fail_on, over.format, over.context_length) == ("error", "text", 64)
    assert over.baseline == Path("other.json")
    assert over.sources["context-length"] == "command line"
    assert (over.thresholds, over.select) == (file.thresholds, file.select)
    assert file.overridden(select=[], ignore=None) == file


def test_a_rule_asked_for_on_the_command_line_runs_though_the_file_ignores_it(tmp_path: Path) -> None:
    written(tmp_path, "ignore = ['SSM101']")
    file = read_configuration(tmp_path)
    assert "SSM101" not in {rule.code for rule in file.selection().rules}
    assert [rule.code for rule in file.overridden(select=["unstable-mode"]).selection().rules] == ["SSM101"]


def test_rules_ignored_on_the_command_line_are_so_beside_the_files(tmp_path: Path) -> None:
    written(tmp_path, "ignore = ['SSM101']")
    over = read_configuration(tmp_path).overridden(ignore=["SSM401", "SSM101"])
    assert over.ignore == ("SSM101", "SSM401")
    assert over.sources["ignore"] == "ssmdiag.toml, command line"


def test_a_selection_of_nothing_is_an_error_and_no_clean_bill() -> None:
    with pytest.raises(ConfigurationError, match="no rule is left to run"):
        Configuration(select=("SSM101",), ignore=("SSM1",)).selection()


def test_what_is_shown_is_toml_that_reads_back_as_the_same(tmp_path: Path) -> None:
    written(tmp_path / "one", FULL)
    first = read_configuration(tmp_path / "one")
    written(tmp_path / "two", as_toml(first))
    second = read_configuration(tmp_path / "two")
    same = ("select", "ignore", "fail_on", "format", "context_length", "baseline", "per_layer_ignores")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.selection() == second.selection()


def test_what_is_shown_says_where_each_setting_comes_from(tmp_path: Path) -> None:
    path = written(tmp_path, "fail-on = 'note'\n[thresholds.made-up]\nspread = 0.5\n")
    shown = as_toml(read_configuration(tmp_path).overridden(ignore=["SSM9"])).splitlines()
    assert shown[0] == f"# {path}"
    split = [tuple(part.strip() for part in line.partition("#")[::2]) for line in shown[1:]]
    assert ('fail-on = "note"', "ssmdiag.toml") in split
    assert ('format = "text"', "default") in split
    assert ('ignore = ["SSM9"]', "command line") in split
    assert ("[thresholds.SSM901]", "made-up, which is not run") in split
    assert ("spread = 0.5", "ssmdiag.toml") in split
    assert ("least = 2.0", "default") in split


def test_every_threshold_of_every_rule_is_shown() -> None:
    shown = tomllib.loads(as_toml(Configuration()))["thresholds"]
    assert shown == {rule.code: rule.limits for rule in known_rules() if rule.thresholds} | {
        "SSM901": {"spread": 0.1, "least": 2.0}
    }


@given(glob=st.text(st.characters(exclude_categories=["Cs"])), name=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_being_shown(glob: str, name: str) -> None:
    configuration = Configuration(
        per_layer_ignores={glob: ("SSM101",)}, baseline=Path("/") / f"{name}x".replace("\0", "")
    )
    data = tomllib.loads(as_toml(configuration))
    assert data["per-layer-ignores"] == {glob: ["SSM101"]}
    assert data["baseline"] == str(configuration.baseline)


def test_reading_the_configuration_imports_no_torch(tmp_path: Path) -> None:
    written(tmp_path, "[thresholds]\n")
    code = (
        "import sys; from pathlib import Path; from ssmdiag.check.configuration import read_configuration as read;"
        "from ssmdiag.check.configuration_text import as_toml; as_toml(read(Path()));"
        "import ssmdiag.check.baseline_file;"
        "assert not {'torch', 'numpy', 'rich', 'plotext'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
