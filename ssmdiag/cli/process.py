"""The life of the command's own process: its streams, its signals, the import of torch, its end.

Nothing of this happens to a process that only imports ssmdiag, or that calls `ssmdiag.cli.main` itself.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ssmdiag.cli import terminal
from ssmdiag.errors import SsmdiagError

READER_GONE = 128 + 13
"""Exit code where the reader of the output is gone: a shell's for SIGPIPE, which Windows does not have."""
STREAM_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO, errno.EAGAIN})
"""Errors of a stream that cannot be written; those of a file carry its name."""
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end the command, each with 128 and its number."""
_own = False


def begin() -> None:
    """Set up the command's own process: imports are permanent, and signals end it with their code."""
    global _own
    _own = True
    gc.disable()  # until torch is imported: collecting what an import builds finds no garbage
    _repair_streams()
    _repair_sizes()
    _on_signals(_leave)


def import_torch() -> None:
    """Import torch; in the command's own process, exempt from garbage collection for good.

    Raises SsmdiagError in a deleted folder: there a library of torch would end the process.
    """
    working_folder()
    import torch  # noqa: F401

    if _own and not gc.isenabled():
        gc.freeze()
        gc.enable()
        _on_signals(_stop)


def working_folder() -> Path:
    """Return the folder the command was started in. Raises SsmdiagError where it is gone."""
    try:
        return Path.cwd()
    except OSError as error:
        raise SsmdiagError(
            f"the current folder no longer exists ({error.strerror or error}).",
            advice="cd to an existing folder.",
        ) from error


def end(code: int) -> NoReturn:
    """End with this exit code, or with that of an output whose reader is gone.

    Shutting torch down takes as long as diagnosing a small checkpoint, and the system frees everything anyway. A normal
    exit remains for what needs one: threads, other processes, debuggers and profilers.
    """
    code = _flushed(code)
    if not _own or _needs_normal_exit():
        sys.exit(code)
    _on_signals(_leave)
    atexit._run_exitfuncs()
    code = _flushed(code)
    _discard_temporaries()
    os._exit(code)


def is_stream_error(error: OSError) -> bool:
    """Whether this is the error of a stream, not of a file."""
    return error.filename is None and error.errno in STREAM_ERRORS


def say(text: str) -> None:
    """Print to stderr, if it can be written."""
    with contextlib.suppress(OSError):
        terminal.remark(text)


def say_unwritable(error: OSError) -> None:
    """Report that stdout cannot be written."""
    reason = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
    say(f"error: stdout cannot be written ({reason}).\n  next: --output FILE, where the command has it.")


def ended_by_its_reader(error: BaseException | None) -> bool:
    """Whether an exception is, or was caused by, writing to an output whose reader is gone."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__context__
    return False


def drop_output() -> None:
    """Discard what is still buffered for stdout: its reader is gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _flushed(code: int) -> int:
    """Flush all output and return the exit code: another one where that fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return READER_GONE
    except OSError as error:
        drop_output()
        say_unwritable(error)
        return 2
    return code


def _needs_normal_exit() -> bool:
    monitoring, processes = getattr(sys, "monitoring", None), sys.modules.get("multiprocessing")
    return bool(
        sys.gettrace()
        or sys.getprofile()
        or (monitoring and any(monitoring.get_tool(number) for number in range(6)))
        or sys.flags.interactive
        or sys.flags.inspect
        or (processes and processes.active_children())
        or any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    )


def _on_signals(handler: signal.Handlers | signal._HANDLER) -> None:
    """Handle the signals that stop a process, except those its parent set to be ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: nothing has been written yet, or all of it. An import would swallow an exception."""
    _discard_temporaries()
    os._exit(128 + number)


def _discard_temporaries() -> None:
    temporaries = sys.modules.get("ssmdiag.output.temporaries")  # not there: then there are none
    if temporaries is not None:
        temporaries.discard_temporaries()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that temporary files are removed and states to resume from are kept."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def silence_other_ranks() -> None:
    """Leave the remarks of torch and transformers to the first rank; read when they are imported, so call it before."""
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _repair_streams() -> None:
    """Replace closed streams, and make open ones accept every character."""
    # Else the first opened file gets their number. Opened read-only, stdout still fails when written, with an error.
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if file != number:
                os.dup2(file, number)
                os.close(file)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    codecs.register_error("ssmdiag", _in_ascii)
    for name in ("stdout", "stderr"):
        _write_whole(name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="ssmdiag")


def _write_whole(name: str) -> None:
    """Give a stream a buffer, which continues after a short write: under PYTHONUNBUFFERED the rest would be lost."""
    stream = getattr(sys, name)
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase):
        encoding, errors = stream.encoding, stream.errors
        buffer = io.BufferedWriter(stream.detach())
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors, line_buffering=True))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return a replacement for characters that an encoding lacks."""
    from ssmdiag.reports.words import in_ascii

    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def _repair_sizes() -> None:
    """Remove unusable terminal sizes from the environment."""
    for name in ("COLUMNS", "LINES"):
        if not terminal.usable_size(os.environ.get(name, "1")):
            del os.environ[name]
