"""Runs with planted drifts, two models with planted memories: what is found is what was planted."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ssmdiag.compare.run
from ssmdiag.compare.layer_point import ROUNDS_TO_ONE
from ssmdiag.compare.models import compare_models, same_structure
from ssmdiag.compare.run import RunComparison, compare_run
from ssmdiag.compare.run_order import OrderSource, order_checkpoints
from ssmdiag.compare.trend import Verdict
from ssmdiag.errors import AssumptionError, DifferentModelsError, SsmdiagError
from ssmdiag.recurrence.modal import Recurrence

EXAMPLES = Path(__file__).parents[2] / "examples"
CHANNELS, MODES = 24, 4


def mamba(
    log_rates: Mapping[str, torch.Tensor], *, step: float = 0.01, prefix: str = "layers.{}."
) -> dict[str, torch.Tensor]:
    """Return a Mamba of these A_log, (channel, mode) each, with Δ = `step` everywhere."""
    bias = step + math.log(-math.expm1(-step))
    state = {}
    for name, a_log in log_rates.items():
        at = prefix.format(name)
        state[f"{at}A_log"] = a_log.float().contiguous()
        state[f"{at}dt_proj.bias"] = torch.full((len(a_log),), bias)
    return state


def base(seed: int = 0) -> torch.Tensor:
    """Return A_log of S4D-Real, jittered per channel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.arange(1.0, MODES + 1).log() + 0.1 * torch.rand(CHANNELS, MODES, generator=generator)


def write_run(
    directory: Path,
    steps: list[int],
    a_log_at: Callable[[int, str], torch.Tensor],
    *,
    layers: tuple[str, ...] = ("0", "1", "2"),
    name: str = "step-{}.safetensors",
    stored: bool = True,
) -> list[Path]:
    """Write a run whose A_log at a step and in a layer is what the function says."""
    paths = []
    for step in steps:
        path = directory / name.format(step)
        state = mamba({layer: a_log_at(step, layer) for layer in layers})
        save_file(state, path, metadata={"step": str(step)} if stored else None)
        paths.append(path)
    return paths


def steady(step: int, layer: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * int(layer) + step)
    return base(int(layer)) + 0.002 * torch.randn(CHANNELS, MODES, generator=generator)


def drifting(step: int, layer: str) -> torch.Tensor:
    """Layer 1 as in state-spaces/mamba#996: the first modes' A_log falls by 1e-3 at every step, towards −∞."""
    a_log = steady(step, layer)
    if layer == "1":
        a_log[:, 0] -= 1e-3 * step
    return a_log


STEPS = [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]


def test_a_mode_that_drifts_to_the_boundary_is_found_with_its_pace_and_the_step_it_stops_decaying(
    tmp_path: Path,
) -> None:
    run = compare_run(write_run(tmp_path, [*STEPS[:4], 4000], drifting), memory="none")
    assert run.verdict is Verdict.CONVERGING
    assert [layer.verdict for layer in run.layers] == [Verdict.STEADY, Verdict.CONVERGING, Verdict.STEADY]
    layer = run.layers[1]
    assert layer.slowest is not None
    assert layer.slowest.slope.value == pytest.approx(-1e-3, rel=0.01)
    assert layer.slowest.slope.low <= -1e-3 <= layer.slowest.slope.high
    rate = layer.first.rate.min if layer.first.rate else math.nan
    limits = {limit.name: limit for limit in layer.limits}
    for name in ("float16", "float32"):
        true_step = math.log(rate / ROUNDS_TO_ONE[name]) / 1e-3
        limit = limits[name]
        if true_step < 4000:
            assert limit.passed == 1000 * math.ceil(true_step / 1000)
            assert limit.projection is None
        else:
            assert limit.projection is not None
            assert limit.projection.at == pytest.approx(true_step, rel=0.01)
            assert limit.projection.earliest <= true_step <= limit.projection.latest
    assert run.exit_code() == 0
    assert (run.exit_code("converging"), run.exit_code("crossing")) == (1, 1)


def test_a_run_that_stays_is_steady_and_fails_nothing(tmp_path: Path) -> None:
    run = compare_run(write_run(tmp_path, STEPS, steady), memory="none")
    assert {layer.verdict for layer in run.layers} == {Verdict.STEADY}
    assert run.verdict is Verdict.STEADY
    assert run.exit_code("converging") == 0
    assert all(limit.projection is None for layer in run.layers for limit in layer.limits)


def test_a_layer_whose_memory_shortens_recedes(tmp_path: Path) -> None:
    def shortening(step: int, layer: str) -> torch.Tensor:
        return steady(step, layer) + (1e-4 * step if layer == "1" else 0.0)

    run = compare_run(write_run(tmp_path, STEPS, shortening), memory="none")
    assert [layer.verdict for layer in run.layers] == [Verdict.STEADY, Verdict.RECEDING, Verdict.STEADY]
    assert run.verdict is Verdict.RECEDING
    assert run.exit_code("converging") == 0


def test_many_slow_modes_that_near_the_boundary_are_seen_though_the_slowest_stands(tmp_path: Path) -> None:
    def piling_up(step: int, layer: str) -> torch.Tensor:
        a_log = steady(step, layer)
        a_log[0, 0] = -3.0
        if layer == "1":
            a_log[1:9, 0] -= 3e-4 * step
        return a_log

    run = compare_run(write_run(tmp_path, STEPS, piling_up), memory="none")
    layer = run.layers[1]
    assert (layer.verdict, layer.slowest_verdict, layer.by_tail) == (Verdict.CONVERGING, Verdict.STEADY, True)
    assert layer.next_limit is None
    assert run.exit_code("converging") == 1


@pytest.mark.parametrize("name", ROUNDS_TO_ONE)
def test_a_decay_rounds_to_one_in_a_float_type_exactly_from_its_limit_on(name: str) -> None:
    for factor, rounds in ((1 - 1e-9, True), (1 + 1e-3, False)):
        decay = torch.tensor(math.exp(-factor * ROUNDS_TO_ONE[name]), dtype=torch.float64)
        assert bool(decay.to(getattr(torch, name)) == 1) is rounds


def test_a_rate_stored_as_it_is_is_projected_along_its_own_line_to_zero(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "x"\nweight = "*.rnn.rate"\naxes = "channel mode"\nmap = "none"\ndomain = "rate"\n'
    )
    from ssmdiag.cli.options import load_families

    families = load_families(tmp_path / "map.toml")
    paths = []
    for k, step in enumerate(STEPS):
        rate = 0.05 - 5e-6 * step + 1e-5 * math.sin(7 * k)
        path = tmp_path / f"step-{step}.safetensors"
        save_file({"x.rnn.rate": torch.tensor([[rate, 0.5]])}, path, metadata={"step": str(step)})
        paths.append(path)
    run = compare_run(paths, families=families, memory="none")
    boundary = next(limit for limit in run.layers[0].limits if limit.name == "boundary")
    assert boundary.projection is not None
    assert boundary.projection.at == pytest.approx(10_000, rel=0.01)
    assert boundary.projection.earliest <= 10_000 <= boundary.projection.latest

    over = tmp_path / "step-11000.safetensors"
    save_file({"x.rnn.rate": torch.tensor([[-0.005, 0.5]])}, over, metadata={"step": "11000"})
    crossed = compare_run([*paths, over], families=families, memory="none")
    assert crossed.verdict is Verdict.CROSSED
    assert next(limit for limit in crossed.layers[0].limits if limit.name == "boundary").passed == 11_000
    assert crossed.exit_code("crossing") == 1


def test_a_layer_on_the_boundary_from_the_start_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "x"\nweight = "*.rnn.rate"\naxes = "channel mode"\nmap = "none"\ndomain = "rate"\n'
    )
    from ssmdiag.cli.options import load_families

    paths = []
    for step in STEPS:
        paths.append(tmp_path / f"step-{step}.safetensors")
        save_file({"x.rnn.rate": torch.tensor([[0.0, 0.5]])}, paths[-1], metadata={"step": str(step)})
    run = compare_run(paths, families=load_families(tmp_path / "map.toml"), memory="none")
    assert run.verdict is Verdict.CROSSED
    assert run.exit_code("converging") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "verdicts"),
    [
        ("lru", [Verdict.SETTLED] * 3),
        ("s4d", [Verdict.STEADY, Verdict.UNDETERMINED, Verdict.STEADY]),
    ],
)
def test_the_shipped_runs(model: str, verdicts: list[Verdict]) -> None:
    run = compare_run(sorted((EXAMPLES / f"{model}-digits").glob("*.safetensors"), reverse=True))
    assert [layer.verdict for layer in run.layers] == verdicts
    assert (run.order, run.unit, run.context_length) == (OrderSource.STORED, "step", 64)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 100, 250, 500, 1000, 1500, 2000]
    if model == "lru":
        slowest = [point.slowest for point in run.layers[2].points]
        assert (slowest[0], slowest[-1]) == (pytest.approx(55, rel=0.01), pytest.approx(76, rel=0.01))
    else:
        assert run.layers[1].last.margin < run.layers[1].first.margin  # type: ignore[operator]
    for layer in run.layers:
        assert [point.horizon is not None for point in layer.points] == [True] + [False] * 5 + [True]
    assert run.problems == ()


@pytest.mark.slow
def test_horizon_and_law_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS[:3], steady, layers=("0",))
    for memory, expected in (("none", [0, 0, 0]), ("ends", [1, 0, 1]), ("all", [1, 1, 1])):
        run = compare_run(paths, memory=memory, context_length=512)
        assert [point.decay is not None for point in run.layers[0].points] == list(map(bool, expected))


def test_the_order_is_that_of_the_stored_steps_whatever_the_names(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS, drifting, name="{}-x.safetensors")
    renamed = [path.rename(tmp_path / f"final-{9 - i}.safetensors") for i, path in enumerate(paths)]
    run = compare_run(renamed, memory="none")
    assert run.order is OrderSource.STORED
    assert [checkpoint.step for checkpoint in run.checkpoints] == STEPS
    assert run.verdict is Verdict.CONVERGING


def test_without_stored_steps_the_numbers_in_the_names_count_and_100_comes_after_20(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [100, 20, 3, 1000], steady, stored=False, name="mamba2-{}.safetensors")
    run = compare_run(paths, memory="none")
    assert (run.order, run.unit) == (OrderSource.NAMES, "step")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [3, 20, 100, 1000]


def test_steps_in_thousands_are_thousands(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [500, 1000, 10_000], steady, stored=False, name="x{}.safetensors")
    names = ("step-500.safetensors", "step-1k.safetensors", "step-10k.safetensors")
    run = compare_run([path.rename(tmp_path / name) for path, name in zip(paths, names, strict=True)], memory="none")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [500, 1000, 10_000]


def test_without_any_number_the_order_given_counts(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [1, 2, 3], steady, stored=False)
    named = [path.rename(tmp_path / name) for path, name in zip(paths, ("b.st", "a.st", "last.st"), strict=True)]
    run = compare_run(named, memory="none")
    assert (run.order, run.unit) == (OrderSource.GIVEN, "checkpoint")
    assert [Path(checkpoint.path).name for checkpoint in run.checkpoints] == ["b.st", "a.st", "last.st"]


def test_two_checkpoints_of_one_step_count_once_and_it_is_said(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS, drifting)
    copy = tmp_path / "final.safetensors"
    copy.write_bytes(paths[-1].read_bytes())
    run = compare_run([*paths, copy, paths[0]], memory="none")
    assert len(run.checkpoints) == len(STEPS)
    assert "final.safetensors is left out: step-7000.safetensors is of step 7,000 too" in run.notes
    assert run.exit_code() == 0


def test_one_unreadable_checkpoint_in_the_middle_is_named_and_the_rest_compared(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS, drifting)
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    save_file({"embedding": torch.zeros(3)}, paths[5], metadata={"step": "5000"})
    run = compare_run(paths, memory="none")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 1000, 2000, 4000, 6000, 7000]
    assert len(run.problems) == 2
    assert any("step-3000.safetensors" in problem for problem in run.problems)
    assert any("no recurrent layer recognised in step-5000.safetensors" in problem for problem in run.problems)
    assert run.verdict is Verdict.CONVERGING
    assert run.exit_code("converging") == 2


def test_fewer_than_two_readable_checkpoints_are_an_error_that_says_why(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS[:2], steady)
    with pytest.raises(SsmdiagError, match="one checkpoint alone"):
        compare_run([paths[0], paths[0]])
    paths[1].write_bytes(b"")
    with pytest.raises(SsmdiagError, match=r"(?s)1 of 2 checkpoints could be read:.*step-1000.safetensors is empty"):
        compare_run(paths)
    with pytest.raises(AssumptionError):
        compare_run(write_run(tmp_path, STEPS[:2], steady), assume={"colour": "red"})


def test_three_different_models_are_no_run(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS[:1], steady)
    paths += [EXAMPLES / f"{name}-digits" / "step-02000.safetensors" for name in ("lru", "s4d")]
    with pytest.raises(DifferentModelsError, match=r"3 × Mamba-1 \(24 channels, 4 modes\), and 3 × LRU"):
        compare_run(paths)


@pytest.mark.parametrize(
    ("names", "stored", "expected"),
    [
        (["step-30.pt", "step-4.pt"], [None, None], (OrderSource.NAMES, "step", [1, 0])),
        (["step-30.pt", "step-4.pt"], [7, 7], (OrderSource.NAMES, "step", [1, 0])),
        (["step-30.pt", "step-4.pt"], [7, None], (OrderSource.NAMES, "step", [1, 0])),
        (["step-30.pt", "step-4.pt"], [7, 8], (OrderSource.STORED, "step", [0, 1])),
        (["epoch_2.ckpt", "epoch_10.ckpt", "epoch_1.ckpt"], [None] * 3, (OrderSource.NAMES, "epoch", [2, 0, 1])),
        (["lr3-b2.pt", "lr4-b1.pt"], [None] * 2, (OrderSource.GIVEN, "checkpoint", [0, 1])),
        (["last.pt", "epoch_3.pt"], [None] * 2, (OrderSource.GIVEN, "checkpoint", [0, 1])),
        (["run2/step-7.pt", "run1/step-7.pt"], [7, 7], (OrderSource.GIVEN, "checkpoint", [0, 1])),
        (["10/m.pt", "9/m.pt", "200/m.pt"], [None] * 3, (OrderSource.NAMES, "step", [1, 0, 2])),
    ],
)
def test_steps_come_from_the_files_then_from_the_one_number_that_varies_then_from_the_order_given(
    names: list[str], stored: list[int | None], expected: tuple[OrderSource, str, list[int]]
) -> None:
    run = order_checkpoints(names, stored)
    assert (run.source, run.unit, run.order) == expected


@pytest.mark.parametrize(
    ("layers", "channels"), [(("0", "1"), CHANNELS), (("0", "1", "2", "3"), CHANNELS), (("0", "1", "2"), 8)]
)
def test_another_number_of_layers_or_channels_midway_is_another_model_and_no_run(
    layers: tuple[str, ...], channels: int, tmp_path: Path
) -> None:
    paths = write_run(tmp_path, STEPS, drifting)
    save_file(mamba({i: base(int(i))[:channels] for i in layers}), paths[3], metadata={"step": "3000"})
    with pytest.raises(DifferentModelsError, match=r"step-0\.safetensors and .*step-3000\.safetensors are different"):
        compare_run(paths, memory="none")


def test_layers_under_other_names_are_matched_by_their_order(tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS, drifting)
    for path, step in zip(paths[5:], STEPS[5:], strict=True):
        state = mamba({i: drifting(step, i) for i in ("0", "1", "2")}, prefix="student.blocks.{}.mixer.")
        save_file(state, path, metadata={"step": str(step)})
    run = compare_run(paths, memory="none")
    assert [len(layer.points) for layer in run.layers] == [8, 8, 8]
    assert run.layers[1].verdict is Verdict.CONVERGING
    assert any("matched by their order" in note for note in run.notes)


def test_a_layer_that_turns_nan_is_broken_from_that_step_on(tmp_path: Path) -> None:
    def breaking(step: int, layer: str) -> torch.Tensor:
        a_log = steady(step, layer)
        if layer == "2" and step >= 6000:
            a_log[3, 1] = math.nan
        return a_log

    run = compare_run(write_run(tmp_path, STEPS, breaking), memory="none")
    assert run.verdict is Verdict.BROKEN
    assert run.layers[2].last.nonfinite == 1
    assert "layers.2: modes that are not finite from step 6,000 on" in run.notes
    assert run.exit_code("crossing") == 1


def test_a_mode_that_stops_decaying_has_crossed(tmp_path: Path) -> None:
    def stopping(step: int, layer: str) -> torch.Tensor:
        a_log = steady(step, layer)
        if layer == "0" and step >= 5000:
            a_log[0, 0] = -math.inf
        return a_log

    run = compare_run(write_run(tmp_path, STEPS, stopping), memory="none")
    # exp(−∞) = 0: the rate is exactly zero, from a weight that is not finite.
    assert run.layers[0].verdict in (Verdict.CROSSED, Verdict.BROKEN)
    assert run.exit_code("converging") == 1


def test_only_one_checkpoint_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Recurrence]] = []
    most = 0
    original = ssmdiag.compare.run.read_point

    def watch(step: int, recurrence: Recurrence, *arguments: object, **options: object) -> object:
        nonlocal most
        alive.append(weakref.ref(recurrence))
        most = max(most, sum(reference() is not None for reference in alive))
        return original(step, recurrence, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ssmdiag.compare.run, "read_point", watch)
    compare_run(write_run(tmp_path, STEPS, steady), memory="none")
    assert len(alive) == len(STEPS) * 3
    assert most <= 2


def test_progress_counts_checkpoints(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    compare_run(
        write_run(tmp_path, STEPS[:3], steady),
        memory="none",
        on_checkpoint=lambda done, all_: seen.append((done, all_)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def slowest_changes(run: RunComparison) -> list[int | None]:
    return [layer.last.moved for layer in run.layers]


def test_modes_that_moved_are_counted_from_the_first_checkpoint(tmp_path: Path) -> None:
    def moving(step: int, layer: str) -> torch.Tensor:
        a_log = base(int(layer))
        a_log[: int(layer), 2] += 0.06 if step else 0.0
        a_log[:, 3] += 0.04 if step else 0.0
        return a_log

    assert slowest_changes(compare_run(write_run(tmp_path, [0, 10], moving), memory="none")) == [0, 1, 2]


def model(tmp_path: Path, name: str, time_constants: list[float], layers: int = 2) -> Path:
    """Write a Mamba whose every channel has these time constants."""
    a_log = -torch.tensor(time_constants, dtype=torch.float64).mul(0.01).log().expand(8, -1)
    path = tmp_path / name
    save_file(mamba({str(i): a_log for i in range(layers)}), path)
    return path


def test_a_model_lacks_the_time_constants_that_only_the_other_has(tmp_path: Path) -> None:
    short = model(tmp_path, "a.safetensors", [2.0, 3.0, 4.0, 20.0])
    long = model(tmp_path, "b.safetensors", [2.0, 20.0, 200.0, 2000.0], layers=3)
    pair = compare_models(short, long, context_length=4096)
    (gap,) = pair.gaps
    assert (gap.lacking, gap.low, gap.high) == ("a", 100.0, 10_000.0)
    assert (gap.share, gap.share_lacking) == (0.5, 0.0)
    assert set(gap.layers) == {"layers.0", "layers.1", "layers.2"}
    (mirrored,) = compare_models(long, short, context_length=4096).gaps
    assert (mirrored.lacking, mirrored.low, mirrored.high) == ("b", 100.0, 10_000.0)
    assert pair.exit_code() == 0


def test_models_of_one_memory_lack_nothing(tmp_path: Path) -> None:
    a, b = (model(tmp_path, name, [2.0, 30.0, 400.0]) for name in ("a.safetensors", "b.safetensors"))
    assert compare_models(a, b, context_length=64).gaps == ()


@pytest.mark.slow
def test_rows_by_depth_hold_every_layer_once(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a.safetensors", [3.0], 5), model(tmp_path, "b.safetensors", [3.0], 40)
    pair = compare_models(a, b, context_length=64)
    rows = pair.by_depth()
    assert len(rows) == 12
    assert [x.name for row in rows for x in row.a] == [x.name for x in pair.a.layers]
    assert [x.name for row in rows for x in row.b] == [x.name for x in pair.b.layers]


def test_structure_is_told_apart_without_reading_values(tmp_path: Path) -> None:
    lru, s4d = (EXAMPLES / f"{name}-digits/step-00000.safetensors" for name in ("lru", "s4d"))
    assert same_structure(lru, lru.with_name("step-02000.safetensors"))
    assert not same_structure(lru, s4d)
    two, three = model(tmp_path, "a.safetensors", [1.0], 2), model(tmp_path, "b.safetensors", [1.0], 3)
    wide = model(tmp_path, "c.safetensors", [1.0, 2.0], 2)
    assert not same_structure(two, three)
    assert not same_structure(two, wide)


def test_settings_beside_a_run_that_cannot_be_read_are_said_once(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [0, 1000, 2000, 3000], drifting)
    (tmp_path / "config.json").write_text("{")
    run = compare_run(paths, memory="none")
    (problem,) = run.problems
    assert "config.json cannot be read" in problem
    assert run.exit_code("never") == 2
