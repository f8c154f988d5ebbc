"""The one writer: nothing that is read is written over, and nothing is lost or left behind where writing fails."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmdiag.errors import OutputError
from ssmdiag.output import temporaries
from ssmdiag.output.temporaries import discard_temporaries, replacing
from ssmdiag.output.writer import Stream, Target, claim

LINE = '{"schema_version": 1, "checkpoint": {"path": "a"}}\n'


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


@pytest.mark.usefixtures("umask")
def test_a_new_file_obeys_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    Target(tmp_path / "new").write("a")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    Target(tmp_path / "new").write("b")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    assert (tmp_path / "new").read_text() == "b"


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/report")
    for text in ("made through the link", "and replaced"):
        Target(tmp_path / "link").write(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "report").read_text() == text
    assert names(tmp_path / "real") == ["report"]


@pytest.mark.parametrize("name", ["n" * 255, os.fsdecode(b"\xff\xfe"), "σ 层\n", "-", "a b'c"])
def test_any_name_that_a_file_can_have_is_written(name: str, tmp_path: Path) -> None:
    for text in ("a", "b"):
        Target(tmp_path / name).write(text)
        assert (tmp_path / name).read_text() == text
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is a folder"),
        ("folder", "is a folder"),
        ("none/x", "there is no folder"),
        ("file/x", "Not a directory"),
        ("n" * 256, "File name too long"),
        ("loop", "symbolic links"),
        ("hanging", "there is no folder"),
        ("gone/../other", "there is no folder"),
        ("gone/../model.pt", "there is no folder"),
        ("folder/gone/../../model.pt", "there is no folder"),
        ("file/../model.pt", "Not a directory"),
        ("round-about", "there is no folder"),
        ("frozen", "is read-only"),
        ("model.pt", "is the name of a model file"),
        ("config.json", "is the name of a model file"),
        ("to-model", "and model.pt is the name of a model file"),
    ],
)
def test_what_cannot_be_written_is_a_sentence_before_the_work(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("file", "frozen", "model.pt", "config.json"):
        (tmp_path / file).write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "hanging").symlink_to("nowhere/x")
    (tmp_path / "to-model").symlink_to("model.pt")
    (tmp_path / "round-about").symlink_to("gone/../model.pt")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "frozen" and access(path, mode))
    before = names(tmp_path)
    for refuse in (lambda: claim([Target(Path(name))]), lambda: Target(Path(name)).write("x")):
        with pytest.raises(OutputError) as caught:
            refuse()
        assert says in str(caught.value)
        assert caught.value.seen.startswith("--output ")
    assert names(tmp_path) == before
    assert (tmp_path / "model.pt").read_text() == (tmp_path / "frozen").read_text() == "kept"


def _model(folder: Path) -> list[str]:
    folder.mkdir()
    files = [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "config.json", "trainer_state.json", "optimizer.pt", "tokenizer.json", "global_step3/mp_optim_states.pt",
    ]  # fmt: skip
    (folder / "global_step3").mkdir()
    for file in files:
        (folder / file).write_text(file)
    return files


@pytest.mark.one_in(4)
@pytest.mark.parametrize("read", ["", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("way", ["plain", "dots", "symbolic", "hard", "folder"])
def test_no_file_that_a_checkpoint_is_read_with_is_written_over(read: str, way: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    files = [file for file in _model(model) if not (read and "/" in file)]
    (tmp_path / "through").symlink_to(model)
    for number, file in enumerate(files):
        aim = {
            "plain": model / file,
            "dots": model / "x" / ".." / file,
            "symbolic": tmp_path / f"s{number}",
            "hard": tmp_path / f"h{number}",
            "folder": tmp_path / "through" / file,
        }[way]
        (model / "x").mkdir(exist_ok=True)
        if way == "symbolic":
            aim.symlink_to(model / file)
        elif way == "hard":
            aim.hardlink_to(model / file)
        target = Target(aim, "--also json", (model / read,))
        for refuse in (lambda target=target: claim([target]), lambda target=target: target.write("x")):
            with pytest.raises(OutputError, match=r"--also json .* is (a file that|.*, which) the command reads\."):
                refuse()
        assert (model / file).read_text() == file


def test_a_report_may_lie_in_the_folder_of_the_model(tmp_path: Path) -> None:
    _model(tmp_path / "model")
    report = Target(tmp_path / "model" / "report.json", reads=(tmp_path / "model",))
    for text in ("a", "b"):
        claim([report])
        report.write(text)
        assert report.path.read_text() == text


@pytest.mark.parametrize("exists", [True, False])
def test_two_outputs_are_two_files(exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / "x").write_text("old")
    (tmp_path / "y").symlink_to("x")
    for other in ("x", "./x", str(tmp_path / "x"), "y"):
        with pytest.raises(OutputError, match="is the same file"):
            claim([Target(Path("x")), Target(Path(other), "--also json")])
        with pytest.raises(OutputError, match="the baseline is the same file"):
            claim([Target(Path(other))], rewritten=Path("x"))
    claim([Target(Path("x")), Target(Path("z")), Target(Path("/dev/null")), Target(Path("/dev/null"))])


def test_the_file_that_standard_output_goes_to_is_no_second_output(tmp_path: Path) -> None:
    code = "from pathlib import Path; from ssmdiag.output.writer import *; claim([Target(Path('x'))])"
    with (tmp_path / "x").open("w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, cwd=tmp_path, text=True)
    assert "standard output is written there too" in done.stderr


def test_a_pipe_gets_the_text_and_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    Target(tmp_path / "pipe").write("through\n")
    reader.join(10)
    assert got == ["through\n"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_by_its_path_is_added_to_like_standard_output(path: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = "import sys; from pathlib import Path; from ssmdiag.output.writer import *; print('printed')\n"
    code += "t = Target(Path(sys.argv[1]), reads=(Path('.'),)); claim([t]); t.write('written')"
    with (tmp_path / "log").open("w+") as log:
        log.write("before\n")
        log.flush()
        subprocess.run([sys.executable, "-c", code, path], stdout=log, cwd=tmp_path, check=True)
    assert (tmp_path / "log").read_text() == "before\nprinted\nwritten"
    assert names(tmp_path) == ["link", "log"]


def test_devices_are_written_into_and_stay_devices() -> None:
    Target(Path("/dev/null")).write("x")
    with pytest.raises(OutputError, match="No space left on device") as caught:
        Target(Path("/dev/full")).write("x")
    assert "make room" in str(caught.value)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="File too large") as caught:
            Target(tmp_path / "x").write("long" * 1000)
        with pytest.raises(OutputError) as new:
            Target(tmp_path / "y").write("long" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the old file is unchanged" in caught.value.seen
    assert "make room" in str(caught.value.advice)
    assert "intact" not in new.value.seen
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(("call", "number"), [("open", errno.EACCES), ("open", errno.EROFS), ("replace", errno.EBUSY)])
def test_a_file_whose_folder_takes_no_new_one_is_written_in_place(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "x").write_text("a longer old text")
    before = (tmp_path / "x").stat().st_ino
    monkeypatch.setattr(*((temporaries.os, "open") if call == "open" else (Path, "replace")), refuse)
    Target(tmp_path / "x").write("new")
    assert (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "x").stat().st_ino == before
    assert names(tmp_path) == ["x"]


def test_lines_are_on_disk_as_they_come_and_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for run in range(2):
        stream = Stream(Target(path, lines=True))
        for line in range(2):
            stream.write(LINE)
            assert path.read_text() == LINE * (2 * run + line + 1)
        stream.close()
    Target(path, lines=True).write(LINE * 2)
    assert path.read_text() == LINE * 6


@pytest.mark.parametrize("whole", [0, 1, 3])
@pytest.mark.parametrize("tail", [LINE[:-9], LINE[:5], LINE[:1], '{"a": "' + "x" * 200_000, "[" * 100_000])
def test_a_torn_last_line_is_dropped_before_more_are_added(tail: str, whole: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(LINE * whole + (tail if whole or LINE.startswith(tail) else LINE[:20]))
    Target(path, lines=True).write(LINE)
    assert path.read_text() == LINE * (whole + 1)


def test_a_last_line_that_lacks_its_end_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(LINE + LINE[:-1])
    Target(path, lines=True).write(LINE)
    assert path.read_text() == LINE * 3


@pytest.mark.parametrize("content", ["notes\n", '{"mine": 1}\n', '{\n  "schema_version": 1\n}\n', "\n"])
def test_lines_are_not_added_to_another_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(OutputError, match="nothing was added to it"):
        claim([Target(tmp_path / "x", lines=True)])
    assert (tmp_path / "x").read_text() == content


def test_a_disk_that_fills_up_keeps_whole_lines_and_says_how_many(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stream = Stream(Target(tmp_path / "x", lines=True))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * len(LINE) - 1, hard))
    try:
        stream.write(LINE)
        stream.write(LINE)
        with pytest.raises(OutputError, match="2 lines of this run are in it"):
            stream.write(LINE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        stream.close()
    assert (tmp_path / "x").read_text() == LINE * 2


HALF = """
import os, signal, sys, time
from pathlib import Path
from ssmdiag.output.temporaries import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    {then}
"""


def half_written(path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HALF.format(then=then), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    live = half_written(tmp_path / "x")
    killed = half_written(tmp_path / "y")
    killed.kill()
    killed.communicate()
    (tmp_path / ".ssmdiag-00000000-999999999-0.tmp").write_text("another machine's")
    assert len(names(tmp_path)) == 4
    try:
        Target(tmp_path / "z").write("new")
        left = names(tmp_path)
    finally:
        live.kill()
        live.communicate()
    assert len(left) == 4
    assert {"x", "z", ".ssmdiag-00000000-999999999-0.tmp"} < set(left), "the live and the other machine's stay"
    assert (tmp_path / "x").read_text() == "old"
    Target(tmp_path / "z").write("newer")
    assert names(tmp_path) == [".ssmdiag-00000000-999999999-0.tmp", "x", "z"]


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("then", ["sys.exit(3)", "1 / 0", "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"])
def test_no_end_of_a_process_leaves_a_temporary(then: str, tmp_path: Path) -> None:
    half_written(tmp_path / "x", then).communicate(timeout=60)
    assert names(tmp_path) == []


def test_an_end_without_finally_can_discard_them(tmp_path: Path) -> None:
    then = "from ssmdiag.output.temporaries import discard_temporaries; discard_temporaries(); os._exit(0)"
    half_written(tmp_path / "x", then).communicate(timeout=60)
    assert names(tmp_path) == []


def test_a_forked_child_leaves_its_parents_temporaries_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("whole")
        code = "import os\nfrom ssmdiag.output import temporaries as t\n"
        code += f"t._waiting[{str(temporary)!r}] = os.getppid()\nt.discard_temporaries()\n"
        assert python(code).returncode == 0
        assert temporary.exists()
    assert names(tmp_path) == ["x"]
    discard_temporaries()
    assert (tmp_path / "x").read_text() == "whole"


def test_a_pipe_whose_reader_is_gone_is_a_sentence_unless_it_is_standard_output(tmp_path: Path) -> None:
    code = "import os, sys\nfrom pathlib import Path\nfrom ssmdiag.output.writer import *\n"
    code += "r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 9); os.close(r); os.close(w)\n"
    code += "try:\n    Target(Path(sys.argv[1])).write('x')\nexcept Exception as error:\n"
    code += "    print(type(error).__name__, error, file=sys.stderr)\nos._exit(0)"
    assert python(code, "/dev/fd/1").stderr.startswith("BrokenPipeError")
    said = python(code, "/dev/fd/9").stderr
    assert said.startswith("OutputError --output /dev/fd/9: cannot be written (Broken pipe)")
