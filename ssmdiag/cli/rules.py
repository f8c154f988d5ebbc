"""`ssmdiag rules` and `ssmdiag explain CODE`: what is checked and why, without importing torch."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import Format
from ssmdiag.errors import ConfigurationError
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
    code: Annotated[str, typer.Argument(help="Code or name of a rule.", show_default=False)],
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the page.")] = "text",
) -> None:
    """Explain one rule: formula, why it hurts, how to fix it, a public example."""
    from ssmdiag.rules import known_rules

    rule = next((rule for rule in known_rules() if code.upper() == rule.code or code == rule.name), None)
    if rule is None:
        raise ConfigurationError(
            f"{code} is not a rule.", expected=", ".join(rule.code for rule in known_rules()), advice="`ssmdiag rules`"
        )
    text = render(_document(rule), ascii=False) if format == "json" else _page(rule, min(terminal.width(), 100))
    terminal.emit(text, None)


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
    lines = [f"{rule.code} {rule.name} ({rule.severity}): {rule.summary}"]
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
