"""The markdown is read back by a parser: no name breaks a table, becomes markup or HTML, and it fits a summary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ssmdiag.errors import Failure
from ssmdiag.reports import Settings, render
from ssmdiag.reports.markdown import code, escape
from ssmdiag.rules.finding import Finding
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
LIMIT = 1024 * 1024
"""Bytes of a step summary that GitHub takes."""
NASTY = [
    "a|b",
    "`a`",
    "``a",
    "<script>x</script>",
    "a_b_c",
    "*a*",
    "[a](b)",
    "\\|",
    "a\\",
    "&lt;",
    "~~a~~",
    "# a",
    "@me",
]


def tokens(text: str) -> list[Token]:
    return PARSER.parse(text)


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table, as a reader sees them."""
    row: list[str] = []
    stream = tokens(text)
    for token, after in pairwise(stream):
        if token.type == "tr_open":
            row = []
        if token.type in ("th_open", "td_open"):
            row.append(seen(after))
        if token.type == "tr_close":
            yield row


def seen(inline: Token) -> str:
    parts = []
    for child in inline.children or []:
        assert child.type in ("text", "text_special", "code_inline", "softbreak"), (child.type, inline.content)
        parts.append(child.content)
    return "".join(parts)


def markdown(*results: object, **settings: object) -> str:
    return render(results, "markdown", Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NASTY)
def test_names_with_markup_in_them_stay_names(name: str) -> None:
    nasty = finding(1, tensor=name, rule=name, message=f"{name}: broken", advice=f"mend {name}")
    table = list(rows(markdown(diagnosis(layer(0), layer(1), findings=(nasty, finding(1))))))
    first = next(row for row in table if row[0].startswith("SSM101"))
    each = next(row for row in table if row[1] == name)
    assert first[0] in (f"SSM101 {name}", "SSM101 unstable-mode")
    assert each[2] == f"{name}: broken"
    assert {len(row) for row in table} == {5, 3, 8}


@given(st.text(min_size=1))
def test_any_text_is_what_a_reader_sees_in_a_cell(text: str) -> None:
    shown = list(rows(f"| a | b | c |\n|---|---|---|\n| {code(text)} | {escape(text)} | end |"))[1]
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    assert shown == [plain, plain, "end"]


def test_the_first_line_is_the_verdict_and_headings_are_of_third_rank() -> None:
    text = markdown(CASES["findings"])
    said = "PROBLEM  2 of 4 recurrent layers: a mode grows with every step (SSM101); remembers about 2,000 steps"
    assert text.startswith(f"**{said}".replace("  ", " "))
    assert text.splitlines()[0].endswith("** – `model.safetensors`")
    assert "\n1 of 2 rules on 4 layers, 327,680 modes\n" in text
    assert {token.tag for token in tokens(text) if token.type == "heading_open"} == {"h3"}


def test_a_clean_checkpoint_says_how_much_was_looked_at() -> None:
    assert "\n2 rules on 6 layers, 491,520 modes\n" in markdown(CASES["hybrid"])


def test_several_checkpoints_are_counted_in_one_line() -> None:
    text = markdown(CASES["findings"], CASES["hybrid"], CASES["failed"])
    assert text.startswith("**3 checkpoints: 1 undetermined, 1 with problems, 1 not read**\n")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == ["`runs/model.safetensors`"] * 2 + ["`runs/gone.pt`"]


def test_findings_of_one_rule_are_one_row_that_says_which_layers() -> None:
    model = diagnosis(*(layer(i) for i in range(64)), findings=tuple(finding(i, value=1 + i / 100) for i in range(64)))
    table = list(rows(markdown(model)))
    assert [row[2] for row in table if row[0].startswith("SSM101")] == ["all 64 layers, worst 63"]
    assert sum(row[0].startswith("backbone.layers.") for row in table) == 64


def test_what_the_baseline_knows_is_folded_away_and_what_is_new_is_marked() -> None:
    text = markdown(
        diagnosis(layer(0), layer(1), findings=(finding(0, baseline="new"),), known=(finding(1, baseline="known"),))
    )
    assert "SSM101 `unstable-mode` (new)" in text
    assert text.startswith("**PROBLEM ")
    assert "\n2 rules on 2 layers, 163,840 modes; 1 more in the baseline\n" in text
    assert text.index("<summary>1 finding in the baseline</summary>") > text.index("(new)")


def test_every_fold_is_closed_and_no_other_html_is_written() -> None:
    for case, result in CASES.items():
        text = markdown(result)
        assert (
            text.count("<details>") == text.count("</details>") == (0 if case == "failed" else text.count("<summary>"))
        )
        blocks = "".join(token.content for token in tokens(text) if token.type == "html_block")
        assert set(re.findall(r"</?(\w+)", blocks)) <= {"details", "summary"}


def many(findings: int, size: int) -> Iterator[Finding]:
    for number in range(findings):
        yield finding(number % 64, code=f"SSM{100 + number // 64}", message="x" * size)


@pytest.mark.slow
def test_a_large_report_loses_its_folds_before_its_verdicts() -> None:
    model = diagnosis(*(layer(i) for i in range(64)), findings=tuple(many(64 * 30, 500)))
    text = markdown(model, model)
    assert len(text.encode()) < LIMIT
    assert sum(row[0].startswith("SSM1") for row in rows(text)) == 60, "every rule of both is still there"
    assert text.count("Each layer's findings are left out") == 2


def test_a_thousand_checkpoints_fit_a_step_summary_and_say_what_is_missing() -> None:
    model = diagnosis(*(layer(i) for i in range(4)), findings=tuple(many(64 * 4, 1000)))
    text = markdown(*[model] * 1000)
    assert LIMIT / 2 < len(text.encode()) < LIMIT
    assert text.startswith("**1,000 checkpoints: 1,000 with problems**")
    (left,) = re.findall(r"^\*(\d+) checkpoints left out", text, re.MULTILINE)
    assert int(left) + len(re.findall("^### ", text, re.MULTILINE)) == 1000


def test_there_is_no_emoji_and_ascii_is_ascii() -> None:
    for result in CASES.values():
        assert markdown(result, unicode=False).isascii()
        assert not re.search("[\u2600-\u27bf\U0001f000-\U0001faff]", markdown(result))


def test_a_failure_is_a_paragraph_and_its_details_are_a_list() -> None:
    failure = Failure("a|b.pt", "CheckpointError", "seen\nin <two> lines", "1 | 2", None, ("shard <1>",))
    text = markdown(failure)
    assert "Not diagnosed: seen\\\\nin &lt;two&gt; lines\n- shard &lt;1&gt;\nExpected: 1 \\| 2\n" in text
    assert "### `a|b.pt`" in text
