"""The command as a process: closed and full streams, readers that leave, odd environments, exit codes, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.cli import terminal

PYTHON = sys.executable
LIGHT = ["families", "rules", "--help", "--version", "config show", "check -h"]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="shells and their redirections")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $S is the command."""
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.run(
        ["bash", "-c", line],
        env={**variables, "S": f"{PYTHON} -m ssmdiag", **environment},
        capture_output=True,
        text=True,
        check=False,
        errors="surrogateescape",
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.one_in(12)
@needs_posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", LIGHT)
def test_a_full_or_closed_stdout_exits_two_with_a_sentence(command: str, unbuffered: str) -> None:
    for redirection, reason in ((">/dev/full", "No space left on device"), (">&-", "it is closed")):
        if not Path("/dev/full").exists() and "full" in redirection:
            continue
        run = shell(f"$S {command} {redirection}", PYTHONUNBUFFERED=unbuffered)
        assert run.returncode == 2
        assert run.stderr.startswith(f"error: stdout cannot be written ({reason}).")
        assert "Traceback" not in run.stderr
        assert "Exception ignored" not in run.stderr


@pytest.mark.one_in(2)
@needs_posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_disk_that_fills_up_in_the_middle_exits_two(unbuffered: str, tmp_path: Path) -> None:
    """Without a buffer, Python itself takes half a text that was written for the whole."""
    run = shell(f"(ulimit -f 1; $S families > {tmp_path}/x; echo $?)", PYTHONUNBUFFERED=unbuffered)
    assert (tmp_path / "x").stat().st_size <= 1024
    assert run.stdout == "2\n"
    assert run.stderr.startswith("error: stdout cannot be written (File too large).")


@pytest.mark.one_in(6)
@needs_posix
@pytest.mark.parametrize("command", LIGHT)
def test_a_reader_that_leaves_is_told_by_141_and_never_by_one(command: str) -> None:
    run = shell(f"(sleep 0.01; $S {command}) | true; echo ${{PIPESTATUS[0]}}")
    assert (run.stdout, run.stderr) == ("141\n", "")


@pytest.mark.slow
@needs_posix
def test_a_reader_of_the_first_line_gets_it() -> None:
    run = shell("$S rules | head -n 1; echo ${PIPESTATUS[0]}")
    first, code = run.stdout.splitlines()
    assert first.startswith("26 rules") or first.split()[0].isdigit()
    assert code in ("0", "141")
    assert run.stderr == ""


@needs_posix
def test_errors_without_a_stderr_keep_their_code_and_stay_out_of_stdout() -> None:
    for line in ("$S families mambo 2>&-", "$S chekc 2>&-", "$S families mambo 2>&- <&-"):
        run = shell(line)
        assert (run.returncode, run.stdout) == (2, "")


@pytest.mark.slow
@needs_posix
def test_a_closed_stdin_does_not_lend_its_number_to_a_file() -> None:
    assert shell("$S families <&-").stdout == shell("$S families").stdout


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("size", ["²", "0", "-5", "999999999", "1e3", ""])
def test_odd_sizes_of_the_terminal_count_for_nothing(size: str) -> None:
    expected = shell("$S rules").stdout
    run = shell("$S rules", COLUMNS=size, LINES=size)
    assert (run.returncode, run.stdout, run.stderr) == (0, expected, "")


@pytest.mark.parametrize("size", ["²", "0", "-5", "999999999", "1e3", ""])
def test_odd_sizes_do_not_reach_the_reports(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssmdiag.reports import Settings
    from ssmdiag.reports.console import Page

    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    assert terminal.width() == 80
    settings = Settings(width=terminal.width(), colour=True)
    page = Page(settings)
    page.paragraph("text", "bold")
    assert "\x1b[1mtext" in page.text()


@pytest.mark.one_in(4)
@needs_posix
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_help_is_printed_in_any_encoding(environment: dict[str, str]) -> None:
    run = shell("$S capacity --help", **environment)
    assert (run.returncode, run.stderr) == (0, "")
    # What help is printed with writes UTF-8 where the encoding is ASCII.
    assert "Find the steps dt that would rebuild inputs" in " ".join(run.stdout.replace("Δ", "dt").split())
    run = shell("$S explain SSM205", **environment)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("SSM205")


@pytest.mark.one_in(3)
@needs_posix
@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict", "utf-16"])
def test_names_that_are_no_text_are_named_in_errors(encoding: str, tmp_path: Path) -> None:
    run = shell("$S families $'ssm\\xff\\u00fc'", PYTHONIOENCODING=encoding)
    assert run.returncode == 2
    assert "is called ssm" in run.stderr.replace("\0", "")
    assert "Traceback" not in run.stderr


@pytest.mark.one_in(3)
@needs_posix
@pytest.mark.parametrize("command", ["config show", "check m.safetensors", "inspect m.safetensors"])
def test_a_working_folder_that_is_gone_is_a_sentence(command: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    root = Path(__file__).parents[2]
    run = shell(f"cd {gone}; rmdir {gone}; $S {command}", PYTHONPATH=str(root))
    assert run.returncode == 2
    assert run.stderr.startswith("error: the current folder no longer exists")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_importing_the_library_or_calling_main_leaves_the_process_as_it_was() -> None:
    state = "(gc.isenabled(), gc.get_freeze_count(), signal.getsignal(15), signal.getsignal(2), sys.stdout.errors)"
    code = f"""
import gc, signal, sys
before = {state}
import ssmdiag, ssmdiag.cli
ssmdiag.diagnose
sys.argv = ["ssmdiag", "--version"]
try:
    ssmdiag.cli.main()
except SystemExit as end:
    assert not end.code
assert before == {state}
"""
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")


ENDS = """
import atexit, os, sys, threading
from ssmdiag.cli import run
sys.argv = ["ssmdiag", "--version"]
atexit.register(lambda: print("handler"))
class Noticed:
    def __del__(self, write=os.write):
        write(2, b"taken down")
noticed = Noticed()
{more}
run()
"""


def test_the_end_runs_exit_handlers_and_leaves_the_rest_to_the_system() -> None:
    run = python(ENDS.format(more=""))
    assert run.returncode == 0
    assert run.stdout.splitlines()[1:] == ["handler"]
    assert run.stderr == ""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "more",
    [
        "sys.settrace(lambda *_: None)",
        "sys.setprofile(lambda *_: None)",
        "threading.Thread(target=threading.main_thread().join).start()",
    ],
)
def test_what_needs_more_than_the_system_does_is_waited_for(more: str) -> None:
    run = python(ENDS.format(more=more))
    assert run.returncode == 0
    assert run.stdout.splitlines()[1:] == ["handler"]
    assert run.stderr.startswith("taken down")


@pytest.mark.slow
@needs_posix
def test_an_output_that_is_read_slowly_is_complete() -> None:
    run = shell("$S rules --format json | (sleep 0.3; cat)")
    assert run.stdout == shell("$S rules --format json").stdout != ""


@needs_posix
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_anything_is_written_ends_at_once_even_where_exceptions_are_swallowed(number: int) -> None:
    run = python(f"""
import os
import signal
from ssmdiag.cli import process
process.begin()
try:
    os.kill(os.getpid(), {int(number)})
except BaseException:
    pass
print("went on")
""")
    assert (run.returncode, run.stdout, run.stderr) == (128 + number, "", "")


@needs_posix
def test_signals_that_the_caller_has_ignored_stay_so() -> None:
    code = "import os; from ssmdiag.cli import process; process.begin(); os.kill(os.getpid(), 1); print('went on')"
    assert shell(f'trap "" HUP; {PYTHON} -c "{code}"').stdout == "went on\n"


@pytest.mark.slow
@needs_posix
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_being_written_is_gone_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    state = {
        "s4_layers.0.kernel.log_A_real": torch.zeros(64, 16),
        "s4_layers.0.kernel.A_imag": torch.arange(16.0).repeat(64, 1),
        "s4_layers.0.kernel.log_dt": torch.full((64,), -3.0),
        "s4_layers.0.kernel.C": torch.ones(64, 16, 2),
    }
    save_file(state, tmp_path / "m.safetensors")
    arguments = ["kernel", "m.safetensors", "--length", "200000", "-o", "k.npz"]
    with subprocess.Popen(
        [PYTHON, "-m", "ssmdiag", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        while not list(tmp_path.glob(".ssmdiag*")) and command.poll() is None:
            time.sleep(0.002)
        command.send_signal(number)
        _, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (128 + number, "")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
