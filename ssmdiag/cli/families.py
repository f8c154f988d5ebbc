"""`ssmdiag families`: what is recognised and what that covers, without importing torch."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import Format
from ssmdiag.reports.json import pick, render

if TYPE_CHECKING:
    from ssmdiag.families import Family


def families(
    name: Annotated[
        str | None,
        typer.Argument(help="A family, a model type of transformers, an architecture of GGUF.", show_default=False),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the list.")] = "text",
) -> None:
    """List the model families ssmdiag reads.

    With NAME: what it covers, the tensors it is known by, and the settings that they do not determine.
    """
    from ssmdiag.families import known_families
    from ssmdiag.families.coverage import find_families

    known = known_families()
    if name is not None:
        known = find_families(name, known)
    if format == "json":
        terminal.emit(render([_document(family) for family in known], ascii=False), None)
    else:
        terminal.emit("\n".join(map(_detail, known)) if name else _list(known, terminal.width()), None)


def _list(known: tuple[Family, ...], width: int) -> str:
    from ssmdiag.families.coverage import NOT_READ

    wide = max(len(family.name) for family in known)
    title = max(len(family.title) for family in known)
    rows = []
    for each in known:
        head = f"  {each.name:<{wide}}  {each.title:<{title}}  {each.memory:<7}  "
        if len(head) + len(each.paper) < width:
            rows.append(head + each.paper)
        else:  # an address: below, where it is whole
            rows += [head, f"{'':<{wide + 4}}{each.paper}"]
    lines = [
        f"{len(known)} families; `ssmdiag families NAME` shows what one covers, its tensors and its",
        "settings, and finds it by a model type or a GGUF architecture too.",
        "",
        *rows,
        "",
    ]
    blind = [family.name for family in known if family.memory == "nominal" and family.clock is None]
    but = f", except of {', '.join(blind)}" if blind else ""
    meaning = (
        "exact: the decay is in the weights. nominal: it depends on the input, and is read with the gates at their "
        f"bias; `probe` observes it on real input{but}."
    )
    lines += textwrap.wrap(meaning, min(width, 100) - 1)
    lines.append(f"Not read: {', '.join(NOT_READ)}.")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _detail(family: Family) -> str:
    from ssmdiag.families.coverage import covered

    lines = [f"{family.name}: {family.title} ({family.paper}), {family.memory}"]
    lines += [f"  {family.caveat}"] if family.caveat else []
    if family.memory == "nominal":
        lines.append(
            f"  The decay of a live model can{'not' if family.clock is None else ''} be observed on real input."
        )
    for text in covered(family):
        lines += textwrap.wrap(text, 88, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    for spelling in family.spellings:
        lines += ["", f"  {spelling.name}"]
        rows = [(local, axes, "") for local, axes in spelling.tensors.items()]
        rows += [(local, axes, "  optional") for local, axes in spelling.optional.items()]
        wide = max(len(local) for local, _, _ in rows)
        lines += [f"    {local:<{wide}}  ({', '.join(axes.split())}){optional}" for local, axes, optional in rows]
    if family.options:
        lines += ["", "  settings that tensors do not determine (--assume NAME=VALUE):"]
        for option in family.options:
            usual = f"    {option.name} = {' | '.join(option.choices)}   usually {option.usual}"
            lines += [usual, f"        {option.meaning}"]
    return "\n".join(lines) + "\n"


def _document(family: Family) -> dict[str, object]:
    return {
        **pick(family, "name title paper memory"),
        "caveat": family.caveat or None,
        "clock": family.clock is not None,
        **pick(family, "repositories model_types gguf_architectures=gguf"),
        "spellings": [pick(spelling, "name tensors optional") for spelling in family.spellings],
        "options": [pick(option, "name choices usual meaning") for option in family.options],
    }
