"""`ssmdiag rules` and `ssmdiag explain`: what is checked and why, what words mean; without importing torch."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.glossary import TERMS, Term, find_term
from ssmdiag.cli.options import Format
from ssmdiag.errors import ConfigurationError, meant
from ssmdiag.reports.json import pick, render

if TYPE_CHECKING:
    from ssmdiag.rules import Rule


HEADINGS = {
    "1": "stability",
    "2": "memory",
    "3": "precision",
    "4": "integrity and initialisation",
    "5": "training state",
    "6": "what was observed: check --probe",
}


def rules(
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the list.")] = "text",
) -> None:
    """List the rules of `ssmdiag check`."""
    from ssmdiag.rules import known_rules

    known = known_rules()
    as_json = format == "json"
    terminal.emit(render(list(map(_document, known)), ascii=False) if as_json else _list(known, terminal.width()), None)


def explain(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...",
            help="Rules, by code (SSM404, 404), by the start of one (SSM4) or by name; words of the reports.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the page.")] = "text",
) -> None:
    """Explain rules (formula, why it hurts, how to fix it, a public example) and words of the reports.

    Alone it lists both.
    """
    from ssmdiag.rules import known_rules

    width = min(terminal.width(), 100)
    if not what:
        known = known_rules()
        documents = [*map(_document, known), *map(_term_document, TERMS)]
        text = f"{_glossary(width)}\n{_list(known, width)}"
    else:
        found = list({one.name: one for name in _phrases(what) for one in _meant_by(name)}.values())
        documents = [_term_document(one) if isinstance(one, Term) else _document(one) for one in found]
        text = "\n".join(_term_page(one, width) if isinstance(one, Term) else _page(one, width) for one in found)
    if format == "json":
        text = render(documents[0] if what and len(documents) == 1 else documents, ascii=False)
    terminal.emit(text, None)


def _phrases(words: list[str]) -> list[str]:
    """Return what is asked for: all words together where they are one term, else each of them."""
    whole = " ".join(words)
    return [whole] if find_term(whole) else words


def _meant_by(name: str) -> tuple[Rule | Term, ...]:
    """Return the rules and the term of one name. Raises ConfigurationError where there are none."""
    from ssmdiag.rules import known_rules

    known = known_rules()
    code = f"SSM{name}" if re.fullmatch(r"[1-9]\d{0,2}", name) else name.upper()
    found = [rule for rule in known if name.lower() == rule.name or (code[3:].isdigit() and rule.code.startswith(code))]
    if term := find_term(name):
        return (term, *found)
    if not found:
        names = [*(term.name for term in TERMS), *(rule.code for rule in known), *(rule.name for rule in known)]
        raise ConfigurationError(
            f"{name} is neither a rule nor a word of the reports.",
            expected=f"a code such as SSM404, the name of a rule, or one of {', '.join(term.name for term in TERMS)}",
            advice="ssmdiag explain",
            instead=meant(name, names),
        )
    return tuple(found)


def _glossary(width: int) -> str:
    wide = max(len(term.name) for term in TERMS)
    lines = [f"{len(TERMS)} words of the reports; `ssmdiag explain WORD` says what they mean.", ""]
    lines += [f"  {term.name:<{wide}}  {term.summary}" for term in TERMS]
    return "\n".join(lines) + "\n"


def _term_page(term: Term, width: int) -> str:
    lines = [f"{term.name}: {term.summary}"]
    for text in (term.meaning, f"Example. {term.reading}"):
        lines += ["", *textwrap.wrap(text, width - 1, break_on_hyphens=False, break_long_words=False)]
    lines += ["", *textwrap.wrap(f"Also: {', '.join(term.also)}.", width - 1)] if term.also else []
    return "\n".join(lines) + "\n"


def _term_document(term: Term) -> dict[str, object]:
    return {"term": term.name, **pick(term, "summary meaning reading also")}


def _list(known: tuple[Rule, ...], width: int) -> str:
    names = max(len(rule.name) for rule in known)
    lines = [f"{len(known)} rules; `ssmdiag explain CODE` has formula, reason and fix."]
    for digit, heading in HEADINGS.items():
        if some := [rule for rule in known if rule.code[3] == digit]:
            lines += ["", f"{heading}"]
            for rule in some:
                head = f"  {rule.code}  {rule.severity:<7}  {rule.name:<{names}}  "
                room = max(width - 1 - len(head), 20)
                first, *rest = textwrap.wrap(rule.summary, room, break_on_hyphens=False)
                lines += [head + first, *(" " * len(head) + line for line in rest)]
    return "\n".join(lines) + "\n"


def _page(rule: Rule, width: int) -> str:
    parts = [("", rule.formula), ("Why it hurts", rule.why), ("What to do", rule.fix), ("Example", rule.example)]
    title = f"{rule.code} {rule.name} ({rule.severity}): {rule.summary}"
    lines = textwrap.wrap(title, width - 1, break_on_hyphens=False)
    for heading, text in parts:
        body = f"{heading}. {text}" if heading else text
        lines += ["", *textwrap.wrap(body, width - 1, break_on_hyphens=False, break_long_words=False)]
    if rule.thresholds:
        where = "Thresholds, to set in ssmdiag.toml or [tool.ssmdiag] of pyproject.toml:"
        lines += ["", where, "", f"    [thresholds.{rule.code}]"]
        for name, threshold in rule.thresholds.items():
            setting = f"    {name} = {threshold.value:g}"
            lines += textwrap.wrap(
                f"{setting:<28}  # {threshold.meaning}", width - 1, subsequent_indent=" " * 30 + "# ",
                drop_whitespace=True, replace_whitespace=False, initial_indent="",
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def _document(rule: Rule) -> dict[str, object]:
    return pick(rule, "code name severity summary advice formula why fix example thresholds")
