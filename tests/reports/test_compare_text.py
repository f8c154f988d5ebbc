"""The report of a run on plain numbers: golden texts at 80 columns, read in review; every width and case renders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from ssmdiag.compare.layer_history import judge_layers
from ssmdiag.compare.layer_point import ROUNDS_TO_ONE, LayerPoint
from ssmdiag.compare.run import RunCheckpoint, RunComparison
from ssmdiag.compare.run_order import OrderSource
from ssmdiag.compare.trend import LEAST_CHANGE, Verdict
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.reports import Settings
from ssmdiag.reports.compare.json import run_document
from ssmdiag.reports.compare.run import report
from ssmdiag.reports.compare.words import answer
from ssmdiag.reports.folding import label_layers

GOLDEN = Path(__file__).parent / "golden_compare"
STEPS = [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]


def point(
    name: str, step: int, rate: float, *, tail: float = 0.02, unstable: int = 0, nonfinite: int = 0
) -> LayerPoint:
    """Return a Mamba layer of 1,536 × 16 modes whose slowest has this rate."""
    return LayerPoint(
        name=name,
        step=step,
        family="mamba",
        title="Mamba-1",
        channels=1536,
        modes=16,
        dtype="float32",
        time_invariant=False,
        can_cross=False,
        rate=Quantiles(rate, tail, 0.1, 1.0, 3.0),
        margin=-math.expm1(-rate),
        nonfinite=nonfinite,
        unstable=unstable,
        marginal=0,
        rounded={kind: int(200 * (rate <= limit)) for kind, limit in ROUNDS_TO_ONE.items()},
        moved=0 if step else None,
        horizon=None,
        decay=None,
    )


def run_of(layers: dict[str, Callable[[int], LayerPoint]], steps: list[int] = STEPS, **fields: object) -> RunComparison:
    points = {name: [make(step) for step in steps] for name, make in layers.items()}
    context = fields.pop("context_length", None)
    histories, notes = judge_layers(points, steps, "step", context, LEAST_CHANGE)  # type: ignore[arg-type]
    plain = RunComparison(
        checkpoints=tuple(RunCheckpoint(f"step-{step}.safetensors", step, step, ()) for step in steps),
        order=OrderSource.STORED,
        unit="step",
        context_length=context,  # type: ignore[arg-type]
        layers=histories,
        problems=(),
        notes=tuple(notes),
        device="cpu",
        seconds=0.4,
        ssmdiag_version="0.0",
        torch_version="0.0",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def wobble(step: int, phase: float, size: float = 0.004) -> float:
    return math.exp(size * math.sin(3.7 * step / 1000 + phase))


def still(name: str, rate: float = 4e-3, phase: float = 0.0) -> Callable[[int], LayerPoint]:
    return lambda step: point(name, step, rate * wobble(step, phase))


def falling(name: str, pace: float, rate: float = 4e-3) -> Callable[[int], LayerPoint]:
    return lambda step: point(name, step, rate * math.exp(-pace * step) * wobble(step, 1.0))


def flattening(name: str) -> Callable[[int], LayerPoint]:
    return lambda step: point(name, step, 4e-3 * math.exp(-1.5 * (1 - math.exp(-step / 30_000))) * wobble(step, 1.0))


def name(number: int) -> str:
    return f"backbone.layers.{number}.mixer"


CASES: dict[str, RunComparison] = {
    "converging": run_of(
        {
            name(0): still(name(0)),
            name(1): falling(name(1), 9e-4),
            name(2): falling(name(2), 1e-4, 0.02),
            name(3): falling(name(3), -1e-4),
            name(4): lambda step: point(name(4), step, 4e-3, tail=0.02 * math.exp(-2e-4 * step) * wobble(step, 0.3)),
        },
        context_length=2048,
    ),
    "broken-and-crossed": run_of(
        {
            name(0): still(name(0)),
            name(1): lambda step: point(name(1), step, 1e-3 - 2e-7 * step, unstable=3 * (step > 5000)),
            name(2): lambda step: point(name(2), step, 4e-3, nonfinite=12 * (step == 7000)),
        },
        problems=("step-3500.safetensors is empty (0 bytes). Save or download it again.",),
    ),
    "sixty-four-layers": run_of(
        {
            name(i): falling(name(i), 5e-4) if i in (17, 40) else still(name(i), 4e-3 * 1.02**i, float(i))
            for i in range(64)
        }
    ),
    "slowing": run_of(
        {
            name(0): flattening(name(0)),
            name(1): falling(name(1), 9e-5),
            name(2): lambda step: replace(falling(name(2), 9e-5)(step), learning_rate=1e-3 - 5e-9 * step),
            name(3): lambda step: replace(falling(name(3), 9e-5)(step), learning_rate=1e-3),
            name(4): lambda step: replace(falling(name(4), 9e-5)(step), learning_rate=1e-3 * (step < 59_000)),
            name(5): lambda step: replace(still(name(5), phase=step / 3000)(step), learning_rate=1e-3),
        },
        [1000 * i for i in range(60)],
        context_length=2048,
    ),
    "three-checkpoints": run_of({name(i): falling(name(i), 1e-4 * (1 + i)) for i in range(2)}, STEPS[:3]),
    "unchanged": run_of({name(0): lambda step: point(name(0), step, 4e-3)}, steering_changed={}),
    "steered": run_of(
        {name(0): lambda step: point(name(0), step, 4e-3)},
        steering_changed={name(0): ("dt_proj.weight", "x_proj.weight")},
    ),
}


FULL = ("converging", "slowing")
"""Cases of which the whole report has a golden file too."""


@pytest.mark.parametrize("name", [*CASES, *(f"{case}-full" for case in FULL)])
def test_the_text_is_its_golden_file(name: str, request: pytest.FixtureRequest) -> None:
    text = report(CASES[name.removesuffix("-full")], Settings(width=80, full=name.endswith("-full")))
    path = GOLDEN / f"{name}.text"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("layers", [1, 2, 5, 6, 24])
@pytest.mark.parametrize("count", [2, 5, 30, 100])
def test_a_short_report_fits_on_a_screen_whatever_happens(layers: int, count: int) -> None:
    kinds = (lambda i: falling(name(i), 1e-3), lambda i: still(name(i)), lambda i: flattening(name(i)))
    steps = [100 * number for number in range(count)]
    problems = tuple(f"step-{step}.safetensors: {name(3)}: its tensors are packed or quantised." for step in steps)
    for run in (
        run_of({name(i): kinds[i % 3](i) for i in range(layers)}, steps),
        run_of({name(i): falling(name(i), 1e-3 * (i + 1)) for i in range(layers)}, steps, problems=problems),
    ):
        text = report(run, Settings(width=80))
        assert len(text.splitlines()) <= 22
        assert len(report(run, Settings(width=80, full=True)).splitlines()) > 22
        if run.problems:
            assert text.count("not read: ") <= 2 + (count == 1)
            assert count == 2 or f"{count - 1} more, which --full lists" in text


def test_few_other_layers_are_named_in_the_answer_and_many_are_counted() -> None:
    for layers, said in ((4, "other layers: 1-3 converging"), (24, "of the 23 other layers 23 converging")):
        run = run_of({name(i): falling(name(i), 1e-3 * (i + 1)) for i in range(layers)})
        assert said in answer(run, label_layers([layer.name for layer in run.layers])).text


def test_one_mode_is_one_and_an_interval_without_width_is_not_said() -> None:
    one = run_of({"0": lambda step: replace(falling("0", 1e-3)(step), nonfinite=int(step == STEPS[-1]))})
    assert "1 mode is NaN or infinite, from" in answer(one, ["0"]).text
    assert not re.search(r"(\S+) steps? \(\1 to \1\)", report(one, Settings(full=True)))


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*CASES, *(f"{case}-full" for case in FULL)}


@pytest.mark.one_in(11)
@pytest.mark.parametrize("width", [40, 60, 80, 140, 200])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_asked_and_ascii_is_ascii(case: str, width: int) -> None:
    text = report(CASES[case], Settings(width=width))
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert report(CASES[case], Settings(width=width, unicode=False)).isascii()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_stands_in_the_document(case: str) -> None:
    data = run_document(CASES[case])
    assert [layer["name"] for layer in data["layers"]] == [layer.name for layer in CASES[case].layers]


def test_a_screen_holds_a_run_of_sixty_four_layers() -> None:
    assert len(report(CASES["sixty-four-layers"], Settings()).splitlines()) <= 25


STATUSES = {
    "converging": "problem",
    "broken-and-crossed": "problem",
    "sixty-four-layers": "problem",
    "slowing": "problem",
    "three-checkpoints": "undetermined",
    "unchanged": "ok",
    "steered": "undetermined",
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_line_is_the_answer_that_json_has(case: str) -> None:
    data, labels = run_document(CASES[case]), [layer.name for layer in CASES[case].layers]
    said = answer(CASES[case], label_layers(labels))
    assert data["status"] == said.status == STATUSES[case]
    assert data["answer"] == said.text
    whole = " ".join(report(CASES[case], Settings(quiet=True)).split())
    assert whole.startswith(" ".join(said.line.split()))


def test_a_layer_that_nears_the_boundary_but_no_limit_is_a_warning() -> None:
    """Its pace is known and no limit comes within ten runs: it converges, and nothing is about to break."""
    run = run_of({name(0): falling(name(0), 2e-5, 0.5)})
    assert (answer(run, ["0"]).status, run.exit_code("converging"), run.exit_code("crossing")) == ("warning", 1, 0)


def test_a_layer_that_recedes_or_stands_still_is_no_fault() -> None:
    run = run_of({name(0): falling(name(0), -1e-4), name(1): still(name(1))})
    said = answer(run, ["0", "1"])
    assert (said.status, said.text[:56]) == ("ok", "no layer nears the boundary; layer 0 recedes from it: ma")


def test_a_mode_that_never_decays_by_design_is_ok_one_that_stopped_decaying_is_not() -> None:
    def marginal(family: str, since: int) -> Callable[[int], LayerPoint]:
        known = {"family": family, "time_invariant": family == "retention", "margin": 0.0}
        return lambda step: replace(point(name(0), step, 4e-3), marginal=3 * (step >= since), **known)

    def status(family: str, since: int) -> str:
        return answer(run_of({name(0): marginal(family, since)}), ["0"]).status

    assert [status("retention", 0), status("mamba", 0), status("mamba", 3000)] == ["ok", "warning", "problem"]
    (layer,) = run_of({name(0): marginal("retention", 0)}).layers
    assert layer.verdict is Verdict.STEADY


def test_a_change_is_shown_in_digits_that_differ() -> None:
    run = run_of({name(0): lambda step: point(name(0), step, 1e-3 * (1 + 0.0085 * (step > 3000)))}, [*STEPS[:3], 4000])
    text = " ".join(report(run, Settings()).split())
    assert "margin rose 0.85 % (1.00e-3 → 1.01e-3)" in text


def test_ticks_of_a_low_picture_do_not_run_into_each_other() -> None:
    picture = report(CASES["sixty-four-layers"], Settings()).partition("┌")[2]
    gutters = [line.split("┤")[0].strip() for line in picture.splitlines() if "┤" in line]
    assert gutters
    assert all(re.fullmatch(r"((bf16|fp16|context) )?[\d.]+[kM]?", gutter) for gutter in gutters), gutters
