"""`ssmdiag explain`: rules by every spelling of their code, and the words of the reports."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ssmdiag.cli.glossary import TERMS, find_term
from ssmdiag.rules import known_rules

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("code", ["404", "ssm404", "SSM404", "step-out-of-range", "Step-Out-Of-Range"])
def test_a_rule_by_any_spelling_of_it(code: str, run: Run) -> None:
    assert run("explain", code) == run("explain", "SSM404")
    assert run("explain", code)[1].startswith("SSM404 step-out-of-range")


def test_the_start_of_a_code_is_all_of_them(run: Run) -> None:
    code, out, _ = run("explain", "SSM4", "--json")
    assert code == 0
    assert [each["code"] for each in json.loads(out)] == [r.code for r in known_rules() if r.code[3] == "4"]


def test_several_are_told_one_after_another_and_each_once(run: Run) -> None:
    code, out, _ = run("explain", "SSM205", "404", "205", "horizon")
    assert code == 0
    heads = [line.split()[0] for line in out.splitlines() if line[:3] == "SSM" or line.startswith("horizon: ")]
    assert heads == ["SSM205", "SSM404", "horizon:"]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_every_term_is_explained_with_a_number(term, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pages = {run("explain", name) for name in (term.name, term.name.upper(), *term.also)}
    assert len(pages) == 1
    ((code, out, _),) = pages
    assert code == 0
    assert out.startswith(f"{term.name}: ")
    assert any(character.isdigit() for character in term.reading)
    assert max(map(len, out.splitlines())) < 80


def test_a_term_of_several_words_needs_no_quotes(run: Run) -> None:
    assert run("explain", "time", "constant") == run("explain", "time constant")


def test_no_word_belongs_to_two_terms_or_to_a_rule() -> None:
    words = [word for term in TERMS for word in (term.name, *term.also)]
    assert all(find_term(word) is term for term in TERMS for word in (term.name, *term.also))
    assert len(set(words)) == len(words)
    assert not {rule.name for rule in known_rules()} & set(words)


def test_alone_it_lists_words_and_rules(run: Run) -> None:
    code, out, _ = run("explain")
    assert code == 0
    assert all(f"  {term.name} " in out for term in TERMS)
    assert all(rule.code in out for rule in known_rules())


def test_the_readings_are_what_the_formulas_give() -> None:
    """The numbers in the glossary, recomputed."""
    from math import exp, log

    assert round(0.5**10, 3) == 0.001  # half-life: after ten of them a thousandth
    assert round(1 / log(2), 2) == 1.44  # time constant in half-lives
    assert round(exp(-1), 2) == 0.37
    assert round(-log(2) / log(1 - 5.7e-4)) in (1215, 1216)  # margin: half-life
    assert round(-log(2) / log(0.99)) == 69  # mode


@pytest.mark.parametrize(
    "typed", [["explain", *(rule.code for rule in known_rules())], ["families"], ["rules"], ["explain"]]
)
@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_screen(
    typed: list[str], width: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(*typed)
    assert code == 0
    wide = [line for line in out.splitlines() if len(line) >= width and "://" not in line]
    assert not wide


@pytest.mark.parametrize("word", ["exp. band", "truncated", "half-lives", "Δ", "converging", "effective modes"])
def test_what_a_table_says_is_a_word_that_is_explained(word: str) -> None:
    assert find_term(word)
