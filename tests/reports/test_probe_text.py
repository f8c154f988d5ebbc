"""Observed memory on plain numbers: golden texts at 80 and 140 columns, read in review; every width renders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from ssmdiag.probing.law import ObservedLaw
from ssmdiag.probing.probe import ObservedMemory, ProbedLayer, ProbedMemory, Unobserved
from ssmdiag.probing.retention import HalfLives
from ssmdiag.probing.rounded import FORMATS, StateError
from ssmdiag.probing.use import ContextLoss, Cutting, Use
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.reports import Settings
from ssmdiag.reports.json import render
from ssmdiag.reports.probe.json import Shown, document
from ssmdiag.reports.probe.text import report

GOLDEN = Path(__file__).parent / "golden_probe"
LAGS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)
SHOWN = Shown("models/byte-mamba", ("book.txt", "code.py"))
NO_LAW = ObservedLaw(
    "undetermined", (0, 511), "polynomial for all positions together, but for 71% of resamplings only", 0.71
)


def life(median: float, tail: float, *, bounds: tuple[str, ...] = ()) -> HalfLives:
    return HalfLives(0.1, 0.4, median, tail, 2 * tail, 3 * tail, bounds)


def layer(number: int, median: float, tail: float, law: ObservedLaw, **options: object) -> ProbedLayer:
    """Return a layer with these half-lives that forgets like a power, and of which the weights say 1.5 steps."""
    bounds: tuple[str, ...] = ("p99", "max") if tail > 200 else ()
    observed = ObservedMemory(
        half_life=life(median, tail, bounds=bounds),
        censored=0.031 if bounds else 0.0,
        reset=0.4 / (number + 1),
        hold=0.002 + 0.1 * number,
        retention=tuple((lag, (1 + lag / median) ** -0.5) for lag in LAGS),
        law=law,
        channels_sampled=64,
        rounded_state={name: StateError(4e-4 * 3**k, 9e-3 * 5**k) for k, name in enumerate(FORMATS)},
        rounded_reason=None,
    )
    whole = ProbedLayer(
        name=f"backbone.layers.{number}.mixer",
        family="mamba",
        title="Mamba-1",
        channels=1536,
        modes=16,
        nominal=Quantiles(0.2, 0.5, 1.2, 1.5, 1.8),
        nominal_retention=tuple((lag, 2 ** (-lag / 1.5)) for lag in LAGS),
        overwrites=False,
        observed=observed,
    )
    return replace(whole, **options)  # type: ignore[arg-type]


USE = Use(
    distance="KL divergence, nats",
    by_cutting=Cutting(
        half=3, nine_tenths=21, all_but_a_hundredth=196, tested=512,
        intervals={"half": (2, 3), "nine_tenths": (18, 25), "all_but_a_hundredth": (170, 230)},
        effect=1.7, noise=1e-9, lost=tuple((lag, 2 ** (-lag / 30)) for lag in LAGS),
    ),
    by_replacement=((0, 2.0), (1, 0.5)),
    loss=1.625,
    loss_by_context=(ContextLoss(0, 3.0, 1.4, 1.3, 1.5), ContextLoss(64, 1.7, 0.1, 0.02, 0.2)),
    useful=64,
    sees_ahead=False,
    texts=4,
    length=1024,
    tokens=70_000,
    keeps_positions=False,
)  # fmt: skip

SELECTIVE = ProbedMemory(
    model="MambaForCausalLM",
    layers=(
        layer(0, 1.3, 20.0, ObservedLaw("exponential", (0, 63), "one law", 1.0)),
        layer(1, 12.0, 198.0, NO_LAW),
        layer(2, 36.0, 1403.0, ObservedLaw("polynomial", (0, 511), "one law", 0.97)),
    ),
    without_clock=(),
    use=USE,
    use_reason=None,
    length=1024,
    texts=4,
    left_out=(),
    digest=None,
    device="cpu",
    dtype="float32",
    seed=0,
)
HYBRID = replace(
    SELECTIVE,
    layers=(
        layer(0, 40.0, 300.0, NO_LAW, family="gated_delta_net", title="Gated DeltaNet", overwrites=True),
        layer(1, 1.0, 2.0, NO_LAW, observed=None, error="backbone.layers.1.mixer: its step is NaN from token 3 on."),
    ),
    without_clock=(
        Unobserved("layers.2", "RetNet", "its decay does not depend on the input: the weights alone say it"),
    )
    * 2,
    use=None,
    use_reason="the model's answer is NaN at step 3 of sequence 0.",
    left_out=("batch 2: its texts have 31 steps, fewer than 1,024",),
)
ALONE = replace(
    SELECTIVE,
    model="LSTM",
    layers=(),
    use=replace(USE, sees_ahead=True, loss=None, loss_by_context=None, useful=None),
)
CASES = {
    "selective": (SELECTIVE, []),
    "hybrid": (HYBRID, []),
    "no-layer": (ALONE, []),
    "two-texts": (SELECTIVE, [(replace(SHOWN, texts=("random.bin",)), SELECTIVE)]),
}  # fmt: skip


NAMES = [f"{case}-{width}" for case in CASES for width in (80, 140)] + ["selective-80-full", "hybrid-140-full"]


@pytest.mark.parametrize("name", NAMES)
def test_the_text_equals_its_golden_file(name: str, request: pytest.FixtureRequest) -> None:
    case, width = name.removesuffix("-full").rsplit("-", 1)
    memory, others = CASES[case]
    got = report(memory, SHOWN, Settings(width=int(width), full=name.endswith("-full")), others)
    path = GOLDEN / f"{name}.text"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(got, encoding="utf-8")
    assert got == path.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)


@pytest.mark.one_in(7)
@pytest.mark.parametrize("options", [{}, {"unicode": False}, {"plots": False}, {"quiet": True}], ids=str)
@pytest.mark.parametrize("width", [50, 80, 140])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_asked(case: str, width: int, options: dict[str, bool]) -> None:
    memory, others = CASES[case]
    got = report(memory, SHOWN, Settings(width=width, **options), others)
    assert max(cell_len(line) for line in got.splitlines()) <= width
    assert options.get("unicode", True) or got.isascii()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("width", [80, 99, 100, 140])
@pytest.mark.parametrize("case", ["selective", "hybrid"])
def test_no_column_is_lost(case: str, width: int) -> None:
    heads = " ".join(report(CASES[case][0], SHOWN, Settings(width=width, full=True)).split())
    for heading in ("at rest", "observed", "95 %", "99 %", "beyond", "hold", "reset", "law,", "over lags", "none said"):
        assert heading in heads


def test_small_errors_of_a_rounded_state_are_whole_at_80_columns() -> None:
    small = {name: StateError(2.2e-6 * 5**k, 1.9e-5 * 5**k) for k, name in enumerate(FORMATS)}
    layers = [replace(one, observed=replace(one.observed, rounded_state=small)) for one in SELECTIVE.layers]  # type: ignore[type-var]
    got = report(replace(SELECTIVE, layers=tuple(layers)), SHOWN, Settings(width=80, plots=False, full=True))
    assert "…" not in got
    assert "<0.001 / 0.002" in got


def test_of_channels_that_were_chosen_no_layer_is_first_for_sure() -> None:
    some = " ".join(report(SELECTIVE, SHOWN, Settings(width=80, full=True)).split())
    assert "of the channels looked at, those of layer 2 retain longest: half of a state" in some
    whole = replace(SELECTIVE, layers=tuple(replace(one, channels=64) for one in SELECTIVE.layers))
    every = " ".join(report(whole, SHOWN, Settings(width=80, full=True)).split())
    assert "layer 2 retains longest: half of a state" in every
    assert "can change with more --channels" in some
    assert "--channels" not in every


STATUSES = {"selective": "ok", "hybrid": "problem", "no-layer": "ok", "two-texts": "ok"}


@pytest.mark.parametrize("case", CASES)
def test_the_first_line_is_the_answer_that_json_has(case: str) -> None:
    memory, others = CASES[case]
    data = document(memory, SHOWN, others)
    assert data["status"] == STATUSES[case]
    text = report(memory, SHOWN, Settings(width=80), others)
    assert " ".join(text.split()).startswith(" ".join(f"{data['status'].upper()} {data['answer']}".split()))
    assert len(text.splitlines()) <= (35 if others else 26 if data["status"] == "problem" else 22)


def test_answers_that_use_no_past_are_a_warning_and_what_noise_hides_is_undetermined() -> None:
    def status(**changes: object) -> str:
        cutting = replace(USE.by_cutting, **changes)  # type: ignore[arg-type]
        return document(replace(SELECTIVE, use=replace(USE, by_cutting=cutting)), SHOWN)["status"]

    assert [status(none=True), status(untold=("half",))] == ["warning", "undetermined"]


@pytest.mark.parametrize("case", CASES)
def test_the_document_is_json_without_nan(case: str) -> None:
    memory, others = CASES[case]
    found = json.loads(render(document(memory, SHOWN, others)))
    assert len(found["compared"]) == len(others)
    assert found["text"] == ["book.txt", "code.py"]
    assert [one["name"] for one in found["layers"]] == [one.name for one in memory.layers]
    forever = replace(life(1.0, 5.0), max=math.inf)
    if memory.layers and memory.layers[0].observed:
        first = replace(memory.layers[0], observed=replace(memory.layers[0].observed, half_life=forever))
        found = json.loads(render(document(replace(memory, layers=(first,)), SHOWN)))
        assert found["layers"][0]["observed"]["half_life"]["max"] == "inf"
