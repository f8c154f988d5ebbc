"""Retraining models the tool does not build: a plain loop's numbers, files their own code reads, errors in words."""

from __future__ import annotations

import math
import resource
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from LRU_pytorch import LRU
from safetensors.torch import load_file, save_file
from torch import nn

from ssmdiag import diagnose
from ssmdiag.errors import CheckpointError, ConfigurationError, LayerError, MapError, SsmdiagError, UnknownFamilyError
from ssmdiag.retrain.arms import OWN, Arm, Budget, product_of
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.foreign import own_maps
from ssmdiag.retrain.results import RetrainResult
from ssmdiag.retrain.sources import ModelSource, function_source
from ssmdiag.retrain.state_file import read_state
from ssmdiag.retrain.streamed_batches import StreamedBatches
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.user_code import build_model, read_data
from tests.retrain import given_models
from tests.retrain.given_models import Net, pairs, sequences
from tests.retrain.small import compare_modules

GIVEN = "tests.retrain.given_models"
STABLE = "best(b=0.05)"
"""A map that holds the rates of every seed used here."""


def compare(
    arms: list[Arm] | tuple[Arm, ...],
    budget: Budget,
    model: str = "regressor",
    data: str = "pairs",
    **settings: Any,
) -> RetrainResult:
    source = function_source(f"{GIVEN}:{model}")
    return compare_modules(arms, source, read_data(f"{GIVEN}:{data}", budget.batch), budget, task=data, **settings)


def test_the_models_of_these_tests_answer_as_the_code_they_come_from() -> None:
    layer, (x, _) = Net().lru, sequences(3, 1)
    x = x.expand(-1, -1, 3) * torch.tensor([1.0, -0.5, 2.0])
    answers = [layer(x), LRU.forward(layer, x)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(answer.square().sum(), list(layer.parameters())) for answer in answers]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)


def trained_plainly(arm: Arm, steps: int, batch: int) -> Net:
    """Train as a user would by hand: shuffled epochs, AdamW, a cosine."""
    model = build_model(f"{GIVEN}:regressor", arm.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=arm.lr, weight_decay=0.0)
    x, y = sequences(22, 1)
    for step in range(steps):
        epoch, place = divmod(step, len(x) // batch)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1_000_003 * arm.seed + epoch))
        picked = order[place * batch : (place + 1) * batch]
        optimiser.param_groups[0]["lr"] = arm.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        (model(x[picked]) - y[picked]).square().mean().backward()
        optimiser.step()
    return model


def test_an_arm_that_keeps_its_map_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    arm = Arm(OWN, lr=0.05, seed=3)
    result = compare([arm], Budget(7, 8, 7), folder=tmp_path)
    by_hand = trained_plainly(arm, 7, 8).state_dict()
    saved = load_file(result.arms[0].checkpoints[-1])
    assert saved.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_the_models_own_map_by_name_leaves_it_as_own_does(tmp_path: Path) -> None:
    module = build_model(f"{GIVEN}:regressor", 0)
    assert own_maps(module) == ("exp",)
    own, named = compare([Arm(OWN), Arm("exp")], Budget(3, 8, 1)).arms
    assert own.history == named.history


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[RetrainResult, Path]:
    folder = tmp_path_factory.mktemp("swapped")
    arms = product_of(param=[OWN, STABLE], freeze=["none", "eigenvalues"], lr=[0.05])
    return compare(arms, Budget(6, 8, 3, checkpoint_every=3), folder=folder), folder


def test_every_map_starts_as_the_same_function(swapped: tuple[RetrainResult, Path]) -> None:
    first = [arm.history[0].loss for arm in swapped[0].arms]
    assert first == pytest.approx([first[0]] * 4, rel=1e-6)
    learned_own, _, learned_best, _ = swapped[0].arms
    assert learned_own.history[-1].loss != pytest.approx(learned_best.history[-1].loss, rel=1e-6)


def test_checkpoints_load_strictly_into_the_original_code_and_score_as_reported(
    swapped: tuple[RetrainResult, Path],
) -> None:
    x, y = pairs()[1]
    for arm in swapped[0].arms:
        assert [path.name for path in arm.checkpoints] == [f"step-{k}.safetensors" for k in (0, 3, 6)]
        model = Net()
        model.load_state_dict(load_file(arm.checkpoints[-1]), strict=True)
        with torch.no_grad():
            loss = float((model(x) - y).square().mean())
        assert loss == pytest.approx(arm.final_loss, rel=1e-5)


def test_checkpoints_are_read_by_inspect_with_the_memory_that_was_reported(swapped: tuple[RetrainResult, Path]) -> None:
    for arm in swapped[0].arms:
        for path, layers in ((arm.checkpoints[0], arm.before), (arm.checkpoints[-1], arm.after)):
            found = diagnose(path, tails=False)
            assert found.context_length == given_models.STEPS
            assert found.train_step == int(path.stem.removeprefix("step-"))
            (read,), (reported,) = found.layers, layers
            assert read.half_life.median == pytest.approx(reported.half_life.median, rel=1e-6)
            assert read.horizon == reported.horizon


def test_frozen_eigenvalues_stay_and_everything_else_moves(swapped: tuple[RetrainResult, Path]) -> None:
    for arm in swapped[0].arms:
        first, last = load_file(arm.checkpoints[0]), load_file(arm.checkpoints[-1])
        still = {name for name in first if first[name].equal(last[name])}
        assert still == ({"lru.nu_log", "lru.theta_log"} if arm.arm.freeze == "eigenvalues" else set())


@pytest.mark.slow
def test_the_recurrence_has_a_learning_rate_of_its_own_and_no_weight_decay(tmp_path: Path) -> None:
    arm = Arm(STABLE, lr=0.05, recurrence_lr=0.0, weight_decay=0.5)
    result = compare([arm], Budget(3, 8, 3), folder=tmp_path)
    first, last = (load_file(result.arms[0].checkpoints[k]) for k in (0, -1))
    assert first["lru.nu_log"].equal(last["lru.nu_log"])
    assert not first["decoder.weight"].equal(last["decoder.weight"])
    assert "weight decay is on every weight but those of the recurrence" in result.notes


@pytest.mark.slow
def test_no_random_state_is_left_changed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compare([Arm(OWN)], Budget(2, 8, 1), "noisy", "loaders")
    assert torch.rand(1).equal(expected)


@pytest.mark.slow
def test_divergence_is_recorded_with_its_step_and_ends_the_arm_alone() -> None:
    wild, calm = compare([Arm(OWN, lr=1e30), Arm(OWN, lr=1e-3)], Budget(4, 8, 2)).arms
    assert wild.diverged_at == 1
    assert wild.final_loss is None
    assert wild.after == ()
    assert [point.step for point in wild.history] == [0]
    assert calm.diverged_at is None
    assert [point.step for point in calm.history] == [0, 2, 4]


def test_arms_see_the_same_batches_of_a_loader_that_shuffles() -> None:
    seen: dict[str, list[float]] = {}

    class Watched(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.setdefault("now", []).append(float(x.detach().sum()))
            return super().forward(x)

    source = ModelSource("watched", lambda seed: Watched())
    for name, arm in {"a": Arm(OWN), "b": Arm(STABLE, lr=0.1), "c": Arm(OWN, seed=1)}.items():
        compare_modules([arm], source, read_data(f"{GIVEN}:loaders", 8), Budget(5, 8, 5), task="t")
        seen[name] = seen.pop("now")
    assert seen["a"] == seen["b"] != seen["c"]
    assert len(set(seen["a"])) == 5
    # Two whole batches and a short one are an epoch: every sample once.
    assert sum(seen["a"][:3]) == pytest.approx(float(sequences(22, 1)[0].sum()), abs=1e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_inputs_may_be_a_tuple_or_a_mapping_of_tensors(form: str) -> None:
    class Scaled(Net):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, str]:
            return super().forward(x) * scale, "state"

    (x, y), (u, v) = pairs()

    def inputs(x: torch.Tensor) -> Any:
        scale = torch.ones(len(x), 1, 1)
        return (x, scale) if form == "tuple" else {"x": x, "scale": scale}

    made = SampledBatches((inputs(x), y), (inputs(u), v), 8, "squared error")
    torch.manual_seed(0)
    plain, scaled = Net(), Scaled()
    scaled.load_state_dict(plain.state_dict())
    one, other = (
        compare_modules([Arm(OWN)], ModelSource("m", lambda seed, m=module: m), data, Budget(3, 8, 1), task="t")
        for module, data in ((plain, SampledBatches((x, y), (u, v), 8, "squared error")), (scaled, made))
    )
    assert one.arms[0].history == other.arms[0].history


def test_a_task_that_is_read_at_the_last_step_is_learned_by_a_model_that_answers_at_every_one() -> None:
    x = torch.randn(12, 6, 1, generator=torch.Generator().manual_seed(0))
    classes = (x[:, -1, 0] > 0).long()
    data = TaskData(x, classes, x, classes, "cross-entropy", "last step", outputs=2)
    source = ModelSource("classifier", lambda seed: Net(outputs=2))
    result = compare_modules([Arm(OWN, lr=0.1)], source, SampledBatches.of(data, 12), Budget(30, 12, 30), task="sign")
    first, last = result.arms[0].history
    with torch.no_grad():
        assert last.accuracy > 0.9
        assert last.loss < first.loss


def test_weights_that_two_names_share_are_saved_under_both(tmp_path: Path) -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.decoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.again(nn.functional.gelu(self.lru(self.encoder(x))))

    source = ModelSource("tied", lambda seed: Tied())
    data = read_data(f"{GIVEN}:pairs", 8)
    result = compare_modules([Arm(STABLE)], source, data, Budget(2, 8, 2), task="t", folder=tmp_path)
    Tied().load_state_dict(load_file(result.arms[0].checkpoints[-1]), strict=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_state_of_before(tmp_path: Path) -> None:
    run = partial(compare, [Arm(OWN)], Budget(4, 8, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Any) -> None:
        if progress.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(SsmdiagError, match="cannot be written") as raised:
            run(folder=tmp_path, on_progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--resume" in str(raised.value)
    assert not list(tmp_path.rglob("*.tmp"))
    (state,) = tmp_path.glob("state-*.state")
    assert read_state(state)["run"]["step"] == 2
    assert run(folder=tmp_path, resume=True).arms[0].final_loss == run().arms[0].final_loss


@pytest.mark.slow
def test_a_state_of_another_budget_or_model_is_not_resumed(tmp_path: Path) -> None:
    arms = [Arm(OWN)]
    compare(arms, Budget(2, 8, 2), folder=tmp_path)
    with pytest.raises(ConfigurationError, match="--steps was 2, now 3"):
        compare(arms, Budget(3, 8, 2), folder=tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match=r"--model was .*regressor.*, now .*noisy"):
        compare(arms, Budget(2, 8, 2), "noisy", folder=tmp_path, resume=True)
    (state,) = tmp_path.glob("state-*.state")
    state.write_bytes(state.read_bytes()[:300])
    with pytest.raises(SsmdiagError, match="damaged"):
        compare(arms, Budget(2, 8, 2), folder=tmp_path, resume=True)


def test_a_map_that_cannot_reach_names_one_that_can_before_anything_is_trained() -> None:
    trained: list[Any] = []
    with pytest.raises(MapError, match=r"best\(b=[0-9.e-]+\) reaches beyond") as raised:
        compare([Arm(OWN), Arm("best(b=40)")], Budget(2, 8, 1), on_progress=trained.append)
    assert not trained
    named = str(raised.value).rpartition("next: ")[2].partition(" reaches")[0]
    assert compare([Arm(named)], Budget(1, 8, 1)).arms[0].diverged_at is None


def test_best_is_the_papers_in_an_experiment_whatever_the_models_rates() -> None:
    def fast(seed: int) -> nn.Module:
        model = Net()
        model.lru.nu_log.data[0] = math.log(3.0)
        return model

    with pytest.raises(MapError, match=r"best, f\(w\) = 1/\(w² \+ 0.5\), cannot hold"):
        compare_modules([Arm("best")], ModelSource("f", fast), read_data(f"{GIVEN}:pairs", 8), Budget(1, 8), task="t")


def test_weights_that_are_nan_are_named() -> None:
    def broken(seed: int) -> nn.Module:
        from ssmdiag.retrain.sources import without_nan

        model = Net()
        model.decoder.weight.data[0, 1] = math.nan
        return without_nan("broken", model)

    with pytest.raises(LayerError, match=r"1 of \d+ weights hold NaN: decoder.weight"):
        compare_modules([Arm(OWN)], ModelSource("b", broken), read_data(f"{GIVEN}:pairs", 8), Budget(1, 8), task="t")


def test_a_module_without_a_known_recurrence_is_told_what_is_closest() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nu_log, self.theta_log = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    source = ModelSource("unknown", lambda seed: Unknown())
    with pytest.raises(UnknownFamilyError, match="lru"):
        compare_modules([Arm(OWN)], source, read_data(f"{GIVEN}:pairs", 8), Budget(1, 8), task="t")


def test_a_start_of_another_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--init long"):
        compare([Arm(OWN, init="long")], Budget(1, 8))


def test_another_checkpoint_of_the_module_can_be_gone_on_from(tmp_path: Path) -> None:
    done = compare([Arm(STABLE, lr=0.05)], Budget(3, 8, 3), folder=tmp_path)
    source = function_source(f"{GIVEN}:regressor", done.arms[0].checkpoints[-1])
    result = compare_modules(
        [Arm(OWN), Arm(OWN, seed=1)], source, read_data(f"{GIVEN}:pairs", 8), Budget(1, 8, 1), task="t"
    )
    assert result.arms[0].history[0].loss == pytest.approx(done.arms[0].final_loss, rel=1e-5)
    assert any("seeds differ in their batches" in note for note in result.notes)
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not the weights of Net"):
        function_source(f"{GIVEN}:regressor", tmp_path / "other.safetensors").build(0)


# What users' functions return, and what they are told.

PAIR = "(torch.zeros(4, 3, 1), torch.zeros(4, 3, 1))"
BAD_DATA = {
    "a number": ("return 3", "returned int", "TaskData"),
    "four tensors": ("z = torch.zeros(2, 2); return z, z, z, z", "returned tuple of 4", "train, validation"),
    "one pair": (f"return {PAIR}", r"returned tuple of 2 \(float32", "train, validation"),
    "lengths differ": (
        f"return (torch.zeros(4, 3, 1), torch.zeros(5, 3, 1)), {PAIR}",
        r"training data are tuple of 2 \(float32 \(4, 3, 1\), float32 \(5, 3, 1\)\)",
        "as many samples",
    ),
    "a generator": (f"return (b for b in [{PAIR}]), [{PAIR}]", "can be read only once", "DataLoader"),
    "no batches": (f"return [{PAIR}], []", "validation batches are empty", "one batch"),
    "no pairs in batches": ("return [torch.zeros(2)], [3]", r"training data are list of 1 \(float32 \(2,\)\)", ""),
    "no targets in batches": ("return [3], [3]", "validation batch is int", "inputs, targets"),
    "of two kinds": (f"return {PAIR}, [{PAIR}]", "validation data list of 1", "both"),
    "no samples": (f"return (torch.zeros(0, 3, 1), torch.zeros(0, 3, 1)), {PAIR}", "no training samples", ""),
    "an unknown loss": (f"return {PAIR}, {PAIR}, 'hinge'", "the third value is 'hinge'", "squared error"),
    "NaN in inputs": (
        f"a, b = {PAIR}, {PAIR}; a[0][1, 2] = torch.nan; return a, b",
        "1 of 12 numbers in the inputs of the training data are NaN",
        "fill the gaps",
    ),
    "infinities in targets": (
        f"a, b = {PAIR}, {PAIR}; b[1][:2] = torch.inf; return a, b",
        "6 of 12 numbers in the targets of the validation data are infinite",
        "fill the gaps",
    ),
    "NaN in a mapping": (
        f"a, b = {PAIR}, {PAIR}; x = {{'u': a[0] * torch.nan}}; return (x, a[1]), ({{'u': b[0]}}, b[1])",
        "12 of 12 numbers in the input u of the training data are NaN",
        "",
    ),
    "an error of its own": ("raise KeyError('speech')", r"raised KeyError at .*given_.*py, line 3: 'speech'", ""),
    "an exit": ("raise SystemExit(3)", "raised SystemExit", ""),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_of_the_wrong_form_are_described(kind: str, write_function: Callable[[str], str]) -> None:
    body, seen, expected = BAD_DATA[kind]
    with pytest.raises(ConfigurationError, match=f"(?s){seen}.*{expected}"):
        read_data(write_function(body), 2)


def test_batches_that_begin_well_and_go_wrong_are_described(write_function: Callable[[str], str]) -> None:
    data = read_data(write_function(f"return [{PAIR}, 'spoilt'], [{PAIR}]"), 2)
    source = function_source(f"{GIVEN}:regressor")
    with pytest.raises(ConfigurationError, match="training batch is str"):
        compare_modules([Arm(OWN)], source, data, Budget(2, 2, 2), task="t")


def test_a_streamed_batch_with_nan_is_named_when_it_is_taken(write_function: Callable[[str], str]) -> None:
    source = function_source(f"{GIVEN}:regressor")
    spoilt = f"good, bad = {PAIR}, {PAIR}; bad[1][0] = torch.nan; return "
    for returned, seen in (
        ("[good, bad], [good]", "3 of 12 numbers in the targets of the training batch 1 are NaN"),
        ("[good], [good, bad]", "3 of 12 numbers in the targets of the validation batch are NaN"),
    ):
        data = read_data(write_function(spoilt + returned), 2)
        with pytest.raises(ConfigurationError, match=seen):
            compare_modules([Arm(OWN)], source, data, Budget(2, 2, 2), task="t")


def test_a_loss_of_the_users_own_may_be_given_targets_with_nan(write_function: Callable[[str], str]) -> None:
    mean = "lambda a, y: (a - y.nan_to_num()).square().mean()"
    name = write_function(f"good, bad = {PAIR}, {PAIR}; bad[1][0] = torch.nan; return bad, good, {mean}")
    source = function_source(f"{GIVEN}:regressor")
    result = compare_modules([Arm(OWN)], source, read_data(name, 4), Budget(1, 4, 1), task="t")
    assert result.arms[0].diverged_at is None


MISFITS = {
    "features": ("z = torch.zeros(4, 3, 2); return (z, z), (z, z)", r"takes no batch of inputs float32 \(4, 3, 2\)"),
    "answers": (
        "z = torch.zeros(4, 3, 1); y = torch.zeros(4, 3, 2); return (z, y), (z, y)",
        r"answers float32 \(4, 3, 1\)",
    ),
    "classes": (
        "z = torch.zeros(4, 3, 1); y = torch.full((4, 3), 7); return (z, y), (z, y)",
        "targets go from 7 to 7, and the model answers for 1 classes",
    ),
    "loss": (
        "z = torch.zeros(4, 3, 1); return (z, z), (z, z), lambda a, y: a - y",
        r"loss function returned float32 \(4,",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_data_that_do_not_fit_the_model_are_described(kind: str, write_function: Callable[[str], str]) -> None:
    body, seen = MISFITS[kind]
    data = read_data(write_function(body), 4)
    with pytest.raises(ConfigurationError, match=seen):
        compare_modules([Arm(OWN)], function_source(f"{GIVEN}:regressor"), data, Budget(1, 4), task="t")


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("given", "not the name of a function"),
        ("no_such_place:make", "there is no module no_such_place"),
        (f"{GIVEN}:regresor", "has no regresor.\n.*regressor"),
        (f"{GIVEN}:WIDTH", "is int"),
        (f"{GIVEN}:sequences", "takes .*count"),
        (f"{GIVEN}:pairs", r"returned tuple of 2"),
    ],
)
def test_a_model_function_that_cannot_be_used_is_described(name: str, seen: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){seen}"):
        build_model(name, 0)


def test_a_module_that_fails_on_import_is_told_where(write_function: Callable[[str], str]) -> None:
    name = write_function("return 1\nimport no_such_package")
    with pytest.raises(ConfigurationError, match=r"importing given_\w+ raised ModuleNotFoundError at .*py, line 4"):
        build_model(name, 0)


def test_seeds_give_models_of_their_own_and_the_same_ones_again() -> None:
    one, same, other = (build_model(f"{GIVEN}:regressor", seed).state_dict() for seed in (0, 0, 1))
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["encoder.weight"].equal(other["encoder.weight"])


def test_a_stream_begins_again_when_it_ends_and_where_it_is_asked() -> None:
    data = read_data(f"{GIVEN}:loaders", 8)
    assert isinstance(data, StreamedBatches)
    straight = [data.at(0, step)[0] for step in range(7)]
    assert [len(x) for x in straight] == [8, 8, 6, 8, 8, 6, 8]
    assert all(data.at(0, step)[0].equal(straight[step]) for step in (6, 2, 3))
    assert not torch.cat(straight[:3]).equal(torch.cat(straight[3:6]))


@pytest.fixture
def write_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module with a function of this body into the working directory; return its name for --data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body: str) -> str:
        module = f"given_{abs(hash((body, str(tmp_path))))}"
        function = "import torch\ndef make():\n" + textwrap.indent(body.partition("\n")[0], "    ")
        (tmp_path / f"{module}.py").write_text(f"{function}\n{body.partition(chr(10))[2]}\n")
        return f"{module}:make"

    return write


def test_the_records_are_those_of_the_built_in_model() -> None:
    from ssmdiag.reports.retrain.json import document as as_document

    result = compare([Arm(OWN)], Budget(2, 8, 2))
    document = as_document(result)
    assert document["arms"][0].keys() >= {*asdict(Arm(OWN)), "diverged_at", "final_loss", "memory", "checkpoint"}
    assert document["model"] == f"{GIVEN}:regressor: Net, {sum(p.numel() for p in Net().parameters()):,} parameters"
    assert document["notes"] == ["own is exp"]
