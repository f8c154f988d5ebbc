"""The comparison of arms on plain numbers: golden texts at 80 columns, read in review; every width and case renders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from ssmdiag.reports import Settings
from ssmdiag.reports.retrain import markdown, text
from ssmdiag.reports.retrain.json import render
from ssmdiag.reports.retrain.laws import law_columns, law_remark
from ssmdiag.reports.retrain.words import settings_of
from ssmdiag.retrain.arms import Arm, Budget, product_of
from ssmdiag.retrain.results import ArmResult, LearnedKernel, LearnedLaw, PerturbationCurve, Point, RetrainResult
from ssmdiag.retrain.tasks import TargetLaw
from tests.reports.example_diagnoses import layer

GOLDEN = Path(__file__).parent / "golden_retrain"
TARGET = tuple((1 + 0.1 * lag) ** -1.1 for lag in range(100))
LAW = TargetLaw("polynomial", exponent=1.1, offset=10.0)
BETAS = (0.0, *(1e-3 * 2**i for i in range(11)))


def run(arm: Arm, final: float, *, after: float = 150.0, diverged: int | None = None) -> ArmResult:
    """Return an arm whose loss falls from 8 to `final`, and whose slowest half-life goes from 1,000 to 10 × `after`."""
    steps = range(0, 1001 if diverged is None else diverged, 50)
    history = tuple(Point(step, final + (8 - final) * math.exp(-step / 100)) for step in steps)
    last = layer(0, half_life=after)
    return ArmResult(
        arm=arm,
        diverged_at=diverged,
        history=history,
        seconds_per_step=0.0125,
        before=(layer(0),),
        after=() if diverged else (last if after > 0 else replace(last, margin=-2e-3),),
    )


def with_curves(result: ArmResult, tilt: float) -> ArmResult:
    kernel = tuple(value * (1 + tilt * lag / 100) for lag, value in enumerate(TARGET))
    losses = tuple(result.history[-1].loss * (1 + (beta / (0.1 * (1 + tilt))) ** 2) for beta in BETAS)
    noisy = PerturbationCurve(BETAS, losses, losses, 10, 256)
    return replace(result, kernel=LearnedKernel(kernel, abs(tilt) / 10, learned(tilt)), perturbation=noisy)


def learned(tilt: float) -> LearnedLaw:
    """Return a law near the target's; none for a kernel of a large tilt, t₀ at its bound for one of a negative."""
    left = {"flat": 6.7, "exponential": 2.0, "polynomial": 0.06 * (1 + 40 * tilt**2), "truncated": 0.03}
    if tilt > 0.2:
        return LearnedLaw(LAW, False, "truncated fits much better", (0, 99), left)
    bound = tilt < 0
    errors = (None, None) if bound else (0.0063, 0.15)
    return LearnedLaw(
        LAW, True, None, (0, 99), left, 1.1 + tilt / 100, errors[0], 99.0 if bound else 10.13, errors[1], bound
    )


def result_of(arms: Sequence[ArmResult], task: str = "lf-poly", **fields: object) -> RetrainResult:
    plain = RetrainResult(
        task=task,
        model="S4D, 1 layer, width 64, 32 modes",
        budget=Budget(),
        arms=tuple(arms),
        device="cpu",
        context=100,
        target=TARGET,
        notes=("direct starts at Re λ = −0.5; the authors' code starts it at +0.5, where every mode grows",),
        seconds=93.0,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def sweep() -> RetrainResult:
    arms = product_of(param=("exp", "best", "direct"), lr=(5e-6, 5e-5, 5e-4, 5e-3, 0.05, 0.5, 5.0), seed=(0, 1))
    runs = []
    for arm in arms:
        lost = arm.lr > (0.05 if arm.param == "direct" else 0.5)
        runs.append(
            run(arm, 7e-4 * (1 + abs(math.log(arm.lr / 0.05))) + 1e-5 * arm.seed, diverged=300 if lost else None)
        )
    return result_of(runs)


def frozen() -> RetrainResult:
    arms = product_of(
        param=("best(b=0.05)",),
        freeze=("none", "eigenvalues", "both"),
        init=("short", "long"),
        recurrence_lr=(1e-4, None),
    )
    runs = [run(arm, 0.1 + 0.01 * k, after=100 + 3 * k) for k, arm in enumerate(arms)]
    return result_of(runs, task="delay", target=())


def interrupted() -> RetrainResult:
    """Return a comparison with an arm that is done, one that diverged, one that was stopped, and one not begun."""
    done, lost, stopped = run(Arm("exp"), 0.0021), run(Arm("direct"), 1.0, diverged=60), run(Arm("best"), 0.0011)
    half = replace(stopped, history=stopped.history[:7], before=(), after=(), interrupted_at=341)
    return result_of([done, lost, half], interrupted_at=341, notes=("not begun: relu-lr0.01-seed0",))


CASES = {
    "three-maps": result_of([
        with_curves(run(Arm("exp"), 0.0021), 0.1),
        with_curves(run(Arm("best"), 0.0011, after=400.0), -0.03),
        replace(with_curves(run(Arm("direct"), 0.0023), 0.3), after=(replace(layer(0), margin=-2.2e-3),)),
    ]),
    "sweep": sweep(),
    "frozen": frozen(),
    "all-diverged": result_of([run(Arm("direct"), 1.0, diverged=1), run(Arm("exp"), 1.0, diverged=60)]),
    "interrupted": interrupted(),
    "one": result_of([run(Arm("relu"), 0.5)], notes=()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_text_equals_its_golden_file(case: str, request: pytest.FixtureRequest) -> None:
    got = text.report(CASES[case], Settings(width=80))
    path = GOLDEN / f"{case}.text"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(got, encoding="utf-8")
    assert got == path.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.one_in(9)
@pytest.mark.parametrize("width", [50, 60, 80, 140])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_asked_and_no_heading_is_cut(case: str, width: int) -> None:
    got = text.report(CASES[case], Settings(width=width))
    assert max(cell_len(line) for line in got.splitlines()) <= width
    if width >= 60:
        cells = [cell for line in got.splitlines() for cell in line.split()]
        assert not [cell for cell in cells if cell.endswith("…") and cell != "…"]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", CASES)
def test_ascii_is_ascii_plain_is_plain_and_coloured_is_coloured(case: str) -> None:
    assert text.report(CASES[case], Settings(unicode=False)).isascii()
    assert "\x1b" not in text.report(CASES[case], Settings())
    assert "\x1b[" in text.report(CASES[case], Settings(colour=True))


def test_quiet_is_the_answer_alone() -> None:
    lines = text.report(CASES["three-maps"], Settings(quiet=True, width=300)).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("best ends lowest, at 0.0015; all others at 0.0025 or above.")


def test_a_map_past_the_boundary_and_the_noise_borne_are_in_the_answer() -> None:
    said = text.report(CASES["three-maps"], Settings(quiet=True, width=1000))
    assert "Ends past the stability boundary, and will blow up on longer sequences: direct." in said
    # Losses are 1 + (β/0.13)² for direct, at β = 0.001 · 2^k: 0.128 is the last within twice.
    assert "Noise on the rates at most doubles the loss up to β: direct 0.13; best 0.064; exp 0.064." in said


def test_of_a_sweep_each_setting_is_shown_at_its_best_rate_and_its_window_told() -> None:
    got = text.report(CASES["sweep"], Settings(width=140, plots=False))
    assert got.splitlines()[0].startswith("No clear difference")
    grid = next(line for line in got.splitlines() if line.startswith("c direct"))
    assert grid.split().count("×") == 2
    assert "memory and curves are those of the first seed" in got


@pytest.mark.parametrize("case", CASES)
def test_markdown_has_a_row_for_each_setting_and_lr(case: str) -> None:
    lines = [line for line in markdown.render(CASES[case]).splitlines() if line.startswith("|")]
    settings = {replace(arm.arm, seed=0) for arm in CASES[case].arms}
    assert len(lines) == 2 + len(settings)
    assert len({line.count("|") for line in lines}) == 1


def test_json_has_kernels_and_noise() -> None:
    document = json.loads(render(CASES["three-maps"]))
    assert document["target_kernel"] == pytest.approx(TARGET)
    first = document["arms"][0]
    assert first["kernel"]["error"] == pytest.approx(0.01)
    law = first["kernel"]["law"]
    assert law["asked"] == {"law": "polynomial", "exponent": 1.1, "offset": 10.0, "rate": None}
    assert (law["describes"], law["reason"], law["window"]) == (True, None, [0, 99])
    assert (law["exponent"], law["exponent_error"], law["rate"]) == (pytest.approx(1.101), 0.0063, None)
    assert law["residual_db"] == pytest.approx({"flat": 6.7, "exponential": 2, "polynomial": 0.084, "truncated": 0.03})
    assert not document["arms"][2]["kernel"]["law"]["describes"]
    assert first["perturbation"]["betas"] == pytest.approx(BETAS)
    assert first["perturbation"]["borne"] == pytest.approx(0.064)
    sweep = json.loads(render(CASES["sweep"]))
    assert sweep["arms"][-1]["kernel"] is None
    assert sweep["arms"][-1]["perturbation"] is None


def said_of(*runs: ArmResult) -> str:
    return text.report(result_of(runs), Settings(quiet=True, width=1000)).splitlines()[0]


def test_an_opponent_that_diverged_is_in_the_answer() -> None:
    said = said_of(run(Arm("direct"), 1.0, diverged=2), run(Arm("exp"), 1.0))
    assert said == "exp ends at a loss of 1. direct diverged at step 2."
    seeds = [run(Arm("direct", seed=seed), 1.0, diverged=7 + seed) for seed in range(2)]
    said = said_of(*seeds, run(Arm("exp"), 1.0), run(Arm("exp", seed=1), 1.0, diverged=9))
    assert "direct diverged in every run, the first at step 7. 3 runs of 4 diverged." in said


def test_settings_that_cannot_be_told_apart_are_named_together() -> None:
    said = said_of(
        *(run(Arm(param, seed=seed), final + 0.02 * seed)
          for param, final in (("exp", 0.1), ("best", 0.11), ("direct", 0.3)) for seed in (0, 1))
    )  # fmt: skip
    assert said.startswith("exp ends lowest, at 0.11 (so does best: their seeds overlap); direct at 0.31.")
    assert said_of(run(Arm("exp"), 0.1), run(Arm("best"), 0.103)).startswith(
        "No clear difference, within 5 %: exp 0.1; best 0.1"
    )


def test_a_setting_that_lost_a_seed_does_not_end_lowest_on_the_rest() -> None:
    lucky = [run(Arm("direct"), 0.01), run(Arm("direct", seed=1), 1.0, diverged=40)]
    said = said_of(*lucky, run(Arm("exp"), 0.1), run(Arm("exp", seed=1), 0.1))
    assert said.startswith("exp ends at a loss of 0.1. 1 run of 4 diverged.")


def test_a_rate_at_which_nothing_is_learned_is_not_usable() -> None:
    rates = (1e-6, 1e-3, 1e-1)
    runs = [run(Arm(param, lr=rate), 5.0 if rate > 1e-6 else 8.0) for param in ("exp", "best") for rate in rates]
    assert "Decades of learning rate within 2× the best loss: exp 2; best 2." in said_of(*runs)


def test_laws_stand_beside_the_one_asked_for_and_a_kernel_of_another_has_none() -> None:
    said = text.report(CASES["three-maps"], Settings(width=100, plots=False))
    rows = [" ".join(line.split()) for line in said.splitlines()]
    start = rows.index("law learned 1.1 10 off, dB off, dB off, dB")
    assert rows[start + 1 : start + 4] == [
        "a exp 1.1010 ± 0.0063 10.13 ± 0.15 0.084 2 0.03",
        "b best 1.1 99 (bound) 0.062 2 0.03",
        "c direct – – 0.28 2 0.03",
    ]
    sentence = (
        "the target's law, polynomial, does not describe the learned kernel over lags 0 to 99 (0.28 dB rms off): "
        "truncated fits much better"
    )
    assert f"c: {sentence}" in " ".join(rows)
    page = markdown.render(CASES["three-maps"])
    assert f"- direct, lr 0.01: {sentence}\n" in page
    assert "| p, target 1.1 | t₀, target 10 | polynomial off, dB |" in page
    assert "law learned" not in text.report(CASES["sweep"], Settings(width=100))


def test_a_kernel_too_short_to_fit_is_said_to_be_that() -> None:
    short = LearnedLaw(TargetLaw("exponential", rate=1.0), False, "the memory ends within a few steps", None)
    result = replace(run(Arm("exp"), 0.1), kernel=LearnedKernel(TARGET, 0.01, short))
    assert law_remark(result, "a") == (
        "a: no law can be fitted to the learned kernel: the memory ends within a few steps"
    )
    heading = ["β, target\n1", "exponential\noff, dB", "polynomial\noff, dB", "truncated\noff, dB"]
    assert law_columns([result, run(Arm("best"), 0.1)]) == [(name, ["–", "–"]) for name in heading]


def test_every_field_of_an_arm_but_learning_rate_and_seed_is_named_where_arms_differ_in_it() -> None:
    others = {
        "param": "best", "freeze": "step", "init": "long", "recurrence_lr": 0.1, "weight_decay": 0.5,
    }  # fmt: skip
    assert {*others, "lr", "seed"} == {field.name for field in fields(Arm)}
    for name, value in others.items():
        first, second = settings_of([Arm("exp"), replace(Arm("exp"), **{name: value})]).values()  # type: ignore[arg-type]
        assert first != second
