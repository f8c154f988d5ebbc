"""How commands read their arguments and print their help: other spellings, options in groups, examples, exit codes.

What Typer prints of a mistake is replaced by `ssmdiag.cli.mistakes`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ssmdiag.cli.help_pages import EXAMPLES, EXITS, FLAGS, OTHER, groups_of
from ssmdiag.cli.mistakes import UsageError, choices_of, explained, with_next_command
from ssmdiag.cli.path_list import unquoted
from ssmdiag.errors import SsmdiagError

ARGUMENTS = "ssmdiag.arguments"
"""Where a context keeps what it was given."""


class Command(TyperCommand):
    """One command."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context with the options read. Raises SsmdiagError for a mistake, with what would work."""
        given = list(args)
        spelled = self._spelled_out(given) if not extra.get("resilient_parsing") else given
        try:
            context = super().make_context(info_name, spelled, parent, **extra)
        except UsageError as error:
            raise explained(error, self, given, parent) from None
        if not context.resilient_parsing:
            read = {param.name for param in self.params if param.param_type_name == "argument"}
            for name, value in context.params.items():
                context.params[name] = found_again(value, patterns=name in read)
            if mistake := unquoted(context.params.get("paths")):
                raise with_next_command(mistake, self, given, parent)
        return context

    def parses(self, args: Sequence[str]) -> bool:
        """Whether these arguments have no mistake in them that shows without running the command."""
        try:
            super().make_context(self.name, self._spelled_out(args))
        except (UsageError, SsmdiagError):
            return False
        return True

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises SsmdiagError, with what would work where that is known."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise explained(error, self, ctx.meta[ARGUMENTS], ctx.parent) from None
        except SsmdiagError as error:
            raise with_next_command(error, self, ctx.meta[ARGUMENTS], ctx.parent) from error.__cause__

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, for what may have to be said of them."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, in their groups."""
        groups = groups_of(_name_of(ctx))
        listed: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("Arguments", *groups, OTHER)}
        for param in self.get_params(ctx):
            if row := param.get_help_record(ctx):
                if param.param_type_name == "argument":
                    listed["Arguments"].append((_bare(param), row[1].removesuffix("  [required]")))
                else:
                    flags = [flag for flag, (option, value) in FLAGS.items()
                             if option in param.opts and value in choices_of(param)]  # fmt: skip
                    row = (row[0], f"{row[1]}  Also {flags[0]}." if flags else row[1])
                    listed[next((heading for heading in groups if param.name in groups[heading]), OTHER)].append(row)
        for heading, rows in listed.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what --help names after the command."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [
            *([self.options_metavar] if self.options_metavar else []),
            *(
                f"{_bare(each) if each.required else f'[{_bare(each)}]'}{'...' * (each.nargs == -1)}"
                for each in arguments
            ),
        ]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write examples and exit codes."""
        command = _name_of(ctx)
        for heading, rows in (("Examples", EXAMPLES.get(command, ())), ("Exit codes", EXITS.get(command, ()))):
            if rows:
                with formatter.section(heading):
                    _write_rows(formatter, heading, rows)

    def _spelled_out(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with the flags of `FLAGS` replaced, if the command has what they stand for."""
        takes_value = {option for param in self.params if _has_value(param) for option in param.opts}
        choices = {option: choices_of(param) for param in self.params for option in param.opts}
        spelled: list[str] = []
        for place, argument in enumerate(args):
            option, value = FLAGS.get(argument, ("", ""))
            is_value = place > 0 and args[place - 1] in takes_value
            if "--" in args[:place] or is_value or value not in choices.get(option, ()):
                spelled.append(argument)
            else:
                spelled += [option, value]
        return spelled


class Group(TyperGroup):
    """Commands under one name."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context with the options read. Raises SsmdiagError for a mistake, with what would work."""
        given = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            raise explained(error, self, given, parent) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name. Raises SsmdiagError where there is none."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            from ssmdiag.cli.mistakes import unknown_command

            raise unknown_command(self, ctx, args)
        return super().resolve_command(ctx, args)

    def parses(self, args: Sequence[str]) -> bool:
        """Whether nothing is wrong with the arguments: not known of a group."""
        return False

    format_epilog = Command.format_epilog


def found_again(value: Any, *, patterns: bool) -> Any:
    """Return a path, or paths, with `~` and patterns replaced that a shell left: a quoted one, PowerShell's.

    A path that is there under the name it was given stays. Without `patterns` only `~` is replaced: what is written
    must not be a file that only looks like it.
    """
    if isinstance(value, (list, tuple)) and any(isinstance(each, Path) for each in value):
        return [path for each in value for path in (_paths(each, patterns) if isinstance(each, Path) else [each])]
    if isinstance(value, Path):
        paths = list(_paths(value, patterns))
        return paths[0] if len(paths) == 1 else value
    return value


def _paths(path: Path, patterns: bool) -> Iterator[Path]:
    name = os.fspath(path)
    if not (name.startswith("~") or any(mark in name for mark in "*?[")) or os.path.lexists(path):
        yield path
        return
    name = os.path.expanduser(name)
    yield from map(Path, (sorted(glob.glob(name)) if patterns else []) or [name])


def _name_of(context: Any) -> str:
    """Return the words of a command, after the program's."""
    return " ".join(context.command_path.split()[1:])


def _bare(argument: Any) -> str:
    return str(argument.metavar or argument.name).strip("[].").upper()


def _has_value(param: Any) -> bool:
    return param.param_type_name == "option" and not param.is_flag and not param.count


def _write_rows(formatter: Any, heading: str, rows: Sequence[tuple[Any, str]]) -> None:
    if heading == "Exit codes":
        formatter.write_dl([(str(code), meaning) for code, meaning in rows])
        return
    for command, what in rows:
        formatter.write_text(f"{what}:")
        formatter.indent()
        formatter.write(f"{'':>{formatter.current_indent}}{command}\n")
        formatter.dedent()
