"""What is said of a mistake on the command line: what was seen, what it was meant to be, a next command that works.

A command that is suggested has been parsed before, without being run.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import typer

from ssmdiag.cli.help_pages import FLAGS
from ssmdiag.cli.other_names import OF_A_PATH, OTHER_OPTIONS, OTHER_VERBS, called_elsewhere, value_meant
from ssmdiag.errors import SsmdiagError, alike, closest

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Of Click, which Typer imports or has a copy of."""
ASKS_FOR_HELP = frozenset({"-h", "--help"})
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf", ".npz")
"""Endings of files that an example may name."""
MOST_LISTED = 200


def explained(error: Any, command: Any, arguments: Sequence[str], parent: Any) -> Exception:
    """Return what to raise for a usage error of Typer's: an SsmdiagError, or the error itself where it is the help."""
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return error if isinstance(error, Exception) else RuntimeError(kind)
    if dashed := _one_dash(command, arguments, parent):
        return dashed
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, command, arguments, parent, error.ctx.find_root().obj)
    name = _path_of(command, parent)
    help_of = f"{name} --help"
    if kind == "MissingParameter":
        return _missing(error.param, command, arguments, parent)
    param = getattr(error, "param", None)
    if kind == "BadParameter" and param is not None and param.param_type_name == "option":
        return _bad_value(error, command, arguments, parent)
    message = _plain(error.message)
    if kind == "BadParameter" and error.param_hint:
        message = f"{str(error.param_hint).strip(chr(39))}: {message}"
    if extra := re.fullmatch(r"Got unexpected extra arguments? ?(?:\(s\) )?\((.*)\)\.?", message):
        return _too_many(extra[1], command, arguments, parent)
    if value := re.fullmatch(r"Option '?(-[^' ]+)'? requires an argument\.?", message):
        metavar = next((each.metavar for each in command.params if value[1] in each.opts), None) or "a value"
        message = f"{value[1]} is followed by nothing; it needs {metavar}."
    return SsmdiagError(message, advice=help_of)


def with_next_command(error: SsmdiagError, command: Any, arguments: Sequence[str], parent: Any) -> SsmdiagError:
    """Return the error; where it says what was meant instead, its advice is the whole command with that."""
    if error.instead:
        wrong, right = error.instead
        changed = list(_replaced(arguments, wrong, right))
        if works := _first_that_parses([(command, each) for each in changed], parent):
            error.advice = works
    return error


def unknown_command(group: Any, context: Any, arguments: Sequence[str]) -> SsmdiagError:
    """Return the error for a first argument that is no command."""
    from ssmdiag.cli.glossary import find_term

    name, *rest = arguments
    path = context.command_path
    known = group.list_commands(context)
    if name.split(" ")[0] in known and not os.path.lexists(name):
        return SsmdiagError(
            f"{path} has no command {name}; the quotes make one word of it.",
            advice=shlex.join([*path.split(), *name.split(), *rest]),
        )
    if name.lower().lstrip("-") == "version" and context.parent is None:
        return SsmdiagError(f"{path} has no command {name}; an option prints it.", advice=f"{path} --version")
    other = called_elsewhere(name, OTHER_VERBS, known)
    if not os.path.lexists(name) and (found := other or closest(name, known)):
        return SsmdiagError(
            f"{path} has no command {name}; did you mean {found}?", advice=shlex.join([*path.split(), found, *rest])
        )
    advice = f"{path} --help"
    seen = f"{path} has no command {name}."
    if context.parent is None:
        if _looks_like_a_path(name):
            seen = f"{name} is no command of {path}; what is to be done comes first, then what is read."
            advice = shlex.join([path, "inspect", name, *rest])
        elif find_term(name) or re.fullmatch(r"(?i)SSM\d{1,3}|\d{3}", name):
            advice = shlex.join([path, "explain", name])
    return SsmdiagError(seen, expected=f"one of {', '.join(known)}", advice=advice)


def choices_of(param: Any) -> list[str]:
    """Return the values that an option can have, where it is one of several."""
    described = getattr(param, "type_descriptor", None) or getattr(param, "type", None)
    return [str(choice) for choice in getattr(described, "choices", None) or ()]


def _unknown_option(
    option: str, command: Any, arguments: Sequence[str], parent: Any, app: Mapping[str, Any]
) -> SsmdiagError:
    """Return the error for an option that a command lacks: a misspelt one, another command's, one before the command.

    `app` has the names of all commands, and what returns one of them.
    """
    commands, command_named = app["commands"], app["command_named"]
    path = _path_of(command, parent)
    own = _options_of(command)
    name = option.strip("-").replace("_", "-").lower()
    for param in command.params:
        if param.param_type_name == "option" and (value := value_meant(name, choices_of(param), alone=True)):
            right = f"{max(param.opts, key=len)} {value}"
            tried = [(command, each) for each in _replaced(arguments, option, right.replace(" ", "\0"))]
            if line := _first_that_parses(tried, parent):
                return SsmdiagError(f"{path} has no option {option}; did you mean {right}?", advice=line)
    reads = any(param.param_type_name == "argument" for param in command.params)
    if parent is not None and name in OF_A_PATH and reads:
        bare = [each.removeprefix(f"{option}=") for each in arguments if each != option]
        if line := _first_that_parses([(command, bare)], parent):
            return SsmdiagError(f"{path} has no option {option}: what is read is named without one.", advice=line)
    other = called_elsewhere(name, OTHER_OPTIONS, own)
    if near := [other] if other else alike(option, own):
        lines = [_first_that_parses(((command, each) for each in _replaced(arguments, option, found)), parent)
                 for found in near]  # fmt: skip
        works = {found: line for found, line in zip(near, lines, strict=True) if line}
        found = next(iter(works), near[0])
        seen = f"{path} has no option {option}; did you mean {found}?"
        return SsmdiagError(seen, advice=works.get(found, f"{path} --help"))
    if parent is None:  # an option that stands before the command
        rest = [argument for argument in arguments if argument != option]
        if rest and rest[0] in commands:
            command = command_named(rest[0])
            tried = [(command, [*rest[1:], option])]
            if line := _first_that_parses(tried, None):
                return SsmdiagError(f"{option} is an option of {path} {rest[0]}, and comes after it.", advice=line)
        return SsmdiagError(f"{path} has no option {option}.", advice=f"{path} --help")
    others = [other for other in commands if other != command.name and option in _options_of(command_named(other))]
    if others:
        seen = f"{path} has no option {option}; {' and '.join(others[:2])} {'has' if len(others) == 1 else 'have'} it."
        tried = [(command_named(other), list(arguments)) for other in others]
        return SsmdiagError(seen, advice=_first_that_parses(tried, None) or f"{path} --help")
    return SsmdiagError(f"{path} has no option {option}.", advice=f"{path} --help")


def _one_dash(command: Any, arguments: Sequence[str], parent: Any) -> SsmdiagError | None:
    """Return the error for a long option after one dash: `-length 4k`."""
    own = _options_of(command)
    for argument in arguments:
        wrong = argument.partition("=")[0]
        if re.fullmatch(r"-[a-z][a-z-]+", wrong) and f"-{wrong}" in own:
            tried = [(command, each) for each in _replaced(arguments, wrong, f"-{wrong}")]
            path = _path_of(command, parent)
            return SsmdiagError(
                f"{path} has no option {wrong}; did you mean -{wrong}?",
                advice=_first_that_parses(tried, parent) or f"{path} --help",
            )
    return None


def _bad_value(error: Any, command: Any, arguments: Sequence[str], parent: Any) -> SsmdiagError:
    """Return the error for a value that an option cannot have."""
    path, param = _path_of(command, parent), error.param
    option = next((each for each in param.opts if _values_of(arguments, each)), max(param.opts, key=len))
    choices = choices_of(param)
    values = [value for each in param.opts for value in _values_of(arguments, each)]
    if choices:
        wrong = next((value for value in values if value not in choices), values[-1] if values else "")
        found = value_meant(wrong, choices)
        tried = [(command, each) for each in _replaced(arguments, wrong, found)] if found else []
        return SsmdiagError(
            f"{option} {wrong}: no such value{f'; did you mean {found}?' if found else '.'}",
            expected=f"one of {', '.join(choices)}",
            advice=_first_that_parses(tried, parent) or f"{path} --help",
        )
    value = values[-1] if values else ""
    message = _plain(error.message)
    if "valid integer" in message or "valid number" in message:
        kind = "a whole number" if "integer" in message else "a number"
        return SsmdiagError(f"{option} {value}: not {kind}.", expected=kind, advice=f"{path} --help")
    message = message.replace("Input should be", f"{value} is out of range; it should be")
    return SsmdiagError(f"{option}: {message}", advice=f"{path} --help")


def _missing(param: Any, command: Any, arguments: Sequence[str], parent: Any) -> SsmdiagError:
    path = _path_of(command, parent)
    what = str(param.metavar or param.name).strip("[].").upper()
    found = next(iter(_checkpoints_here()), None)
    advice = f"{path} --help"
    if param.param_type_name == "argument" and found and not arguments:
        advice = _first_that_parses([(command, [found])], parent) or advice
    return SsmdiagError(f"{path} needs a {what}.", advice=advice)


def _too_many(extra: str, command: Any, arguments: Sequence[str], parent: Any) -> SsmdiagError:
    """Return the error for arguments that no parameter takes: parts of a name with spaces, or more than one path."""
    path = _path_of(command, parent)
    words = [extra] if extra in arguments else extra.split(" ")
    kept = list(arguments)
    for word in words:
        if word in kept:
            del kept[len(kept) - 1 - kept[::-1].index(word)]
    whole = [first for first in kept if os.path.lexists(" ".join([first, *words])) and not os.path.lexists(first)]
    if whole:
        name = " ".join([whole[0], *words])
        tried = [(command, [name if argument == whole[0] else argument for argument in kept])]
        seen = f"{whole[0]} does not exist; {name} does, and a name with a space needs quotes."
        return SsmdiagError(seen, advice=_first_that_parses(tried, parent) or f"{path} --help")
    takes = [str(each.metavar or each.name).strip("[]").upper() for each in command.params if each.nargs == 1
             and each.param_type_name == "argument"]  # fmt: skip
    seen = f"{path} takes {f'one {takes[0]}' if takes else 'no argument'}; {' '.join(map(_shown, words))} is too much."
    if "--text" in _options_of(command) and "--text" not in arguments:
        there = len(words) == 1 and os.path.isfile(words[0])
        seen = seen if there else f"{seen} A text is read from a file."
        return SsmdiagError(
            seen, advice=_first_that_parses([(command, [*kept, "--text", words[0] if there else "FILE"])], parent)
        )
    if "--layer" in _options_of(command) and len(words) == 1 and words[0].isdecimal() and "--layer" not in arguments:
        kept += ["--layer", *words]
    advice = shlex.join(["ssmdiag", "explain", *words]) if path == "ssmdiag rules" else None
    return SsmdiagError(seen, advice=advice or _first_that_parses([(command, kept)], parent) or f"{path} --help")


def _first_that_parses(tried: Iterable[tuple[Any, Sequence[str]]], parent: Any) -> str | None:
    """Return the first command line that can be parsed, as it is typed."""
    for command, arguments in tried:
        if not ASKS_FOR_HELP & set(arguments) and command.parses(arguments):
            return " ".join([_path_of(command, parent), shlex.join(map(_shown, arguments))]).strip()
    return None


def _shown(argument: str) -> str:
    """Return an argument without the secrets that an address may hold."""
    from ssmdiag.checkpoint.location import is_address, locate

    return str(locate(argument)) if is_address(argument) else argument


def _path_of(command: Any, parent: Any) -> str:
    """Return how a command is called: its name, after those of the groups it is in."""
    if parent is None and command.name in (None, "ssmdiag"):
        return "ssmdiag"
    return f"{parent.command_path if parent else 'ssmdiag'} {command.name}"


def _options_of(command: Any) -> list[str]:
    own = [option for param in command.params if param.param_type_name == "option" and not param.hidden
           for option in (*param.opts, *param.secondary_opts) if option.startswith("--")]  # fmt: skip
    return [*own, *(flag for flag, (option, _) in FLAGS.items() if option in own), "--help"]


def _values_of(arguments: Sequence[str], option: str) -> list[str]:
    """Return the values that an option is given: `--x value`, `--x=value`, `-x value` or `-xvalue`."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == option:
            found.append(following)
        elif argument.startswith(f"{option}="):
            found.append(argument.removeprefix(f"{option}="))
        elif len(option) == 2 and argument.startswith(option) and not argument.startswith("--"):
            found.append(argument.removeprefix(option))
    return found


def _replaced(arguments: Sequence[str], wrong: str, right: str) -> Iterator[list[str]]:
    """Yield the arguments with one of them replaced; `--x=value` is two, and `wrong` may be two in a row."""
    two = tuple(wrong.split("\0"))
    for place, argument in enumerate(arguments):
        rest = list(arguments[place + 1 :])
        if len(two) == 2 and tuple(arguments[place : place + 2]) == two:
            yield [*arguments[:place], right, *rest[1:]]
        elif argument == wrong:
            yield [*arguments[:place], *right.split("\0"), *rest]
        elif argument.startswith(f"{wrong}="):
            yield [*arguments[:place], f"{right}={argument.partition('=')[2]}", *rest]
        elif argument.startswith("-") and argument.endswith(wrong) and len(argument) > len(wrong):
            yield [*arguments[:place], f"{argument.removesuffix(wrong)}{right}", *rest]


def _plain(message: str) -> str:
    """Return a message without what the library that checks values puts before it."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _looks_like_a_path(name: str) -> bool:
    return os.path.lexists(name) or any(mark in name for mark in "/\\*") or name.endswith(CHECKPOINTS)


def _checkpoints_here() -> Iterator[str]:
    """Yield names of checkpoints in the current folder."""
    try:
        names = sorted(entry.name for entry, _ in zip(os.scandir("."), range(MOST_LISTED), strict=False))
    except OSError:
        return
    yield from (name for name in names if name.endswith(CHECKPOINTS) and not name.startswith("-"))
