"""A bucket of small checkpoints with one process and with two: python -m tests.benchmarks.many_files_speed [--files N]

States wall time and processor time of both, the resident memory of the command and of its workers in the course of the
run, and the same after a kill −9 half-way and `--resume`. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.first_line import write_s4d

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass
class Followed:
    """One run of the command, as seen from outside."""

    code: int = 0
    seconds: float = 0.0
    processor: dict[int, float] = field(default_factory=dict)
    """Seconds of each of its processes."""
    lines: int = 0
    resident: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {"command": [], "workers": []})
    """MiB of the command, and of the largest of its workers, with the number of lines that were there."""

    def growth(self, who: str) -> float:
        """Return how many MiB more it takes in the last tenth than in the second tenth, in the median."""
        early = [mib for lines, mib in self.resident[who] if 0.1 <= lines / self.lines < 0.2]
        late = [mib for lines, mib in self.resident[who] if lines / self.lines >= 0.9]
        return median(late) - median(early)


def members(session: int) -> dict[int, tuple[float, float]]:
    """Return the processes of a session that are alive, with their resident MiB and their seconds of processor."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, _, _, own, *others = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(own) == session and state not in "ZX":
                    mib = int(Path(f"/proc/{entry}/statm").read_text().split()[1]) * PAGE / 2**20
                    found[int(entry)] = mib, (int(others[7]) + int(others[8])) / TICKS
            except (OSError, ValueError):
                continue
    return found


def follow(command: Sequence[str], folder: Path, *, kill_at: int | None = None) -> Followed:
    """Run a command with its lines of JSON in a file of the folder, and look at it ten times a second."""
    file = folder / "lines.jsonl"
    run, start = Followed(), time.perf_counter()
    written = 0
    with subprocess.Popen([*command, "-f", "jsonl", "-o", str(file)], start_new_session=True) as process:
        while process.poll() is None:
            if file.exists():
                with file.open("rb") as lines:
                    lines.seek(written)
                    new = lines.read()
                written, run.lines = written + len(new), run.lines + new.count(b"\n")
            if kill_at is not None and run.lines >= kill_at:
                process.kill()
            now = members(process.pid)
            run.processor |= {number: seconds for number, (_, seconds) in now.items()}
            resident = {number: mib for number, (mib, _) in now.items()}
            run.resident["command"].append((run.lines, resident.pop(process.pid, 0.0)))
            run.resident["workers"].append((run.lines, max(resident.values(), default=0.0)))
            time.sleep(0.1)
    run.code, run.seconds = process.returncode, time.perf_counter() - start
    run.lines = file.read_bytes().count(b"\n")
    return run


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="how often one and two processes take turns")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            write_s4d(folder / f"{number:05d}.safetensors", 4, number, layers=1, channels=8)
            for number in range(asked.files)
        ]
        (folder / "list").write_text("".join(f"{path}\n" for path in paths))
        command = [sys.executable, "-m", "ssmdiag", "inspect", f"@{folder / 'list'}", "--device", asked.device]
        ratios, of_processor = [], []
        for _ in range(asked.rounds):
            took = {}
            for jobs in (1, 2):
                (folder / "lines.jsonl").unlink(missing_ok=True)
                took[jobs] = run = follow([*command, "--jobs", str(jobs)], folder)
                print(
                    f"--jobs {jobs}: {run.seconds:.1f} s, of processor in each process "
                    f"{', '.join(f'{one:.1f}' for one in run.processor.values() if one >= 0.1)} s, exit {run.code}; "
                    f"{run.growth('command'):+.1f} MiB in the command, {run.growth('workers'):+.1f} MiB in its "
                    "largest worker, from the second tenth to the last",
                    flush=True,
                )
            ratios.append(took[1].seconds / took[2].seconds)
            of_processor.append(max(took[1].processor.values()) / max(took[2].processor.values()))
        walls, busier = (", ".join(f"{ratio:.2f}" for ratio in those) for those in (ratios, of_processor))
        print(f"{asked.files} files: two processes are {walls} times as fast; the busier needs 1/({busier}) of the")
        print("processor time of one alone, which is the ratio on cores that are free")


if __name__ == "__main__":
    main()
