"""The command line: parse, one library call, render, exit code. One small file per command."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line as its own process: the console script and `python -m ssmdiag` call this."""
    from ssmdiag.cli import process

    process.begin()
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            process.say(stop.code)
        process.end(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except KeyboardInterrupt:  # another one, while the first was handled
        process.end(130)


def main() -> NoReturn:
    """Run the command line in this process. Known problems and crashes alike exit 2; 1 is kept for findings."""
    # torch's threads spin while they wait: on a busy CI machine small operations then take twenty times as long.
    # Read when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ssmdiag.cli import messages, process, terminal
    from ssmdiag.cli.app import make_app, spelled_out
    from ssmdiag.errors import SsmdiagError

    terminal.guard_errors()
    terminal.show_tracebacks()
    terminal.show_progress(sys.argv[1:])
    try:
        _require_no_empty(sys.argv[1:])
        arguments = spelled_out(sys.argv[1:])
        make_app(arguments)(arguments, prog_name="ssmdiag")
    except SsmdiagError as error:
        process.say(messages.wrapped(f"error: {error}"))
    except (BrokenPipeError, SystemExit) as stop:
        if process.ended_by_its_reader(stop):
            process.drop_output()
            sys.exit(process.READER_GONE)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and process.is_stream_error(error):
            process.drop_output()
            process.say_unwritable(error)
        else:
            import traceback

            process.say(traceback.format_exc())
            process.say("ssmdiag crashed: this is a bug in ssmdiag, not in your checkpoint.")
    sys.exit(2)


def _require_no_empty(arguments: Sequence[str]) -> None:
    """Raise SsmdiagError for an empty argument: no command uses one, and as a path it would be this folder."""
    from ssmdiag.errors import SsmdiagError

    for before, argument in zip(["ssmdiag", *arguments], arguments, strict=False):
        if not argument or re.fullmatch(r"--[a-z-]+=", argument):
            where = argument.removesuffix("=") or before
            raise SsmdiagError(
                f"{where} is followed by an empty argument.",
                expected="a name or a value",
                advice="check whether a shell variable is unset; `.` is the current folder.",
            )
