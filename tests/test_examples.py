"""examples/: the shipped checkpoints, the script that trained them, on random sequences instead of digits; and the one
that trains on Python's sources, on a few made up here.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssmdiag import Recurrence, diagnose, extract_recurrences, read_checkpoint
from ssmdiag.probing.models import open_model

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = ("s4d", "lru")
SHIPPED_STEPS = [0, 100, 250, 500, 1000, 1500, 2000]
LAYERS = 3
SHAPES = {"s4d": (32, 20), "lru": (1, 20)}
"""(channel, mode): an S4D layer has 32 systems of its own, an LRU one for all inputs."""


def load(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    module = ModuleType(name)
    # Not imported: that would leave a __pycache__ among the examples.
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("train_digits")


@pytest.fixture(scope="module")
def on_bytes() -> ModuleType:
    return load("train_bytes")


def shipped(model: str) -> list[Path]:
    return sorted((EXAMPLES / f"{model}-digits").glob("*.safetensors"))


def train_two_steps(script: ModuleType, model: str, output: Path) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    sequences = torch.rand(96, script.SEQUENCE_LENGTH, 1, generator=generator)
    classes = torch.randint(script.CLASSES, (96,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        return script.train(model, (sequences, classes), (sequences, classes), steps=2, seed=3, output=output)


def impulse_response(layer: torch.nn.Module, length: int) -> Tensor:
    """Return the module's own float32 response, without the skip term D: (input, lag, output)."""
    channels = len(layer.D)
    impulses = torch.zeros(channels, length, channels)
    impulses[:, 0] = torch.eye(channels)
    with torch.no_grad():
        response = layer(impulses)
        response[:, 0] -= torch.diag(layer.D)
    return response.double()


def kernel(recurrence: Recurrence, length: int) -> Tensor:
    """Return κ Re Σ_n C_n B̄_n λ̄_nᵗ as (input, lag, output), in float64."""
    powers = (recurrence.log_eigenvalues[..., None] * torch.arange(length)).exp()
    B, C = recurrence.input_matrix, recurrence.output_matrix
    assert B is not None
    assert C is not None
    if recurrence.channels > 1:
        K = torch.diag_embed(torch.einsum("hn,hn,hnt->th", C[0], B, powers)).movedim(0, 1)
    else:
        K = torch.einsum("on,ni,nt->ito", C, B, powers[0])
    return recurrence.kernel_factor * K.real


def test_examples_take_less_than_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("model", MODELS)
def test_shipped_checkpoints_tell_their_train_steps_in_order(model: str) -> None:
    assert [read_checkpoint(path).train_step for path in shipped(model)] == SHIPPED_STEPS


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("model", "position"), list(itertools.product(MODELS, range(len(SHIPPED_STEPS)))))
def test_shipped_checkpoints_have_finite_stable_eigenvalues_in_every_layer(model: str, position: int) -> None:
    recurrences = extract_recurrences(shipped(model)[position])
    assert [recurrence.family for recurrence in recurrences] == [model] * LAYERS
    assert len({recurrence.layer for recurrence in recurrences}) == LAYERS
    for recurrence in recurrences:
        assert recurrence.log_eigenvalues.shape == SHAPES[model]
        assert recurrence.log_eigenvalues.isfinite().all()
        assert (recurrence.rate > 0).all()
        assert recurrence.assumptions == ()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_shipped_checkpoints_are_diagnosed_without_remainder(model: str) -> None:
    diagnosis = diagnose(shipped(model)[-1])
    assert diagnosis.problems == ()
    assert diagnosis.unrecognised == ()
    assert diagnosis.context_length == 64


@pytest.mark.parametrize("model", MODELS)
def test_shipped_checkpoints_reach_95_percent(model: str) -> None:
    first, *_, last = (float(read_checkpoint(path).hyper_parameters["accuracy"]) for path in shipped(model))
    assert first < 0.2
    assert last >= 0.95


@pytest.mark.parametrize("model", MODELS)
def test_shipped_checkpoints_fit_the_script_that_wrote_them(model: str, script: ModuleType) -> None:
    with torch.random.fork_rng(devices=[]):
        classifier = script.Classifier(model)
    for path in shipped(model):
        classifier.load_state_dict(load_file(path))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model", MODELS)
def test_kernel_of_a_trained_model_is_the_sum_over_its_recurrence(
    model: str, script: ModuleType, tmp_path: Path
) -> None:
    classifier = train_two_steps(script, model, tmp_path)
    recurrences = extract_recurrences(tmp_path / "step-00002.safetensors")
    for layer, recurrence in zip(classifier.layers, recurrences, strict=True):
        own = impulse_response(layer, script.SEQUENCE_LENGTH)
        error = (own - kernel(recurrence, script.SEQUENCE_LENGTH)).abs().max() / own.abs().max()
        assert error < 1e-5


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_trains_the_same_weights(model: str, script: ModuleType, tmp_path: Path) -> None:
    for run in ("one", "two"):
        train_two_steps(script, model, tmp_path / run)
    one, two = (load_file(tmp_path / run / "step-00002.safetensors") for run in ("one", "two"))
    before = load_file(tmp_path / "one" / "step-00000.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], before[name]) for name in one)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.json",
        "step-00000.safetensors",
        "step-00002.safetensors",
    ]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("elements", [24, 72, 10**6])
def test_the_scan_on_bytes_and_its_gradient_are_those_of_the_recurrence(
    elements: int, on_bytes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_bytes, "ELEMENTS", elements)
    draw = torch.Generator().manual_seed(0)
    step, x = (torch.rand(5, 2, 3, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    B, C = (torch.randn(5, 2, 4, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    A = (-torch.rand(3, 4, generator=draw, dtype=torch.float64)).requires_grad_()
    h, y = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for t in range(5):
        h = (step[t, ..., None] * A).exp() * h + (step[t] * x[t])[..., None] * B[t, :, None]
        y.append((h * C[t, :, None]).sum(-1))
    torch.testing.assert_close(on_bytes.Scan.apply(step, A, x, B, C), torch.stack(y))
    assert torch.autograd.gradcheck(on_bytes.Scan.apply, (step, A, x, B, C))


def test_the_5_gram_is_counted_and_smoothed(on_bytes: ModuleType) -> None:
    text = b"abcdeabcdfabcde"
    ngram = on_bytes.Ngram(np.frombuffer(text, dtype=np.uint8))
    bits = ngram.bits(np.frombuffer(b"abcdexyzwv", dtype=np.uint8), 0.5)
    assert bits[0] == pytest.approx(-np.log2((2 + 0.5) / (3 + 128)))  # abcd thrice, twice before e
    assert bits[-1] == pytest.approx(8)  # xyzw was never seen
    assert ngram.tuned(np.frombuffer(text, dtype=np.uint8)) == min(on_bytes.ADDED)


def test_the_model_on_bytes_is_trained_saved_and_read_by_transformers(on_bytes: ModuleType, tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"file{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 20)
    texts = on_bytes.read_sources(tmp_path)
    assert all(len(text) > 1000 for text in texts.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = on_bytes.Mamba(16, modes=4, depth=2)
    before = on_bytes.bits_per_byte(model, on_bytes.windows(texts["held out"], 64, 4), "cpu")
    on_bytes.train(model, texts["train"], minutes=0.01, batch=2, device="cpu", seed=0, say=lambda text: None)
    assert on_bytes.bits_per_byte(model, on_bytes.windows(texts["held out"], 64, 4), "cpu") < before
    on_bytes.save(model, tmp_path / "model", 1, texts["held out"])
    (layer, _) = diagnose(tmp_path / "model").layers
    assert layer.family == "mamba"
    live = open_model(tmp_path / "model")
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), live(tokens).logits)


def test_the_shipped_mamba_on_bytes_is_the_recurrence_of_what_the_script_makes(on_bytes: ModuleType) -> None:
    recurrences = extract_recurrences(EXAMPLES / "mamba-bytes")
    config = json.loads((EXAMPLES / "mamba-bytes" / "config.json").read_text(encoding="utf-8"))
    assert config == on_bytes.Mamba(128).config
    assert [tuple(recurrence.log_eigenvalues.shape) for recurrence in recurrences] == [(256, 16)] * 3
    A_log = load_file(EXAMPLES / "mamba-bytes" / "model.safetensors")["backbone.layers.2.mixer.A_log"]
    step = load_file(EXAMPLES / "mamba-bytes" / "model.safetensors")["backbone.layers.2.mixer.dt_proj.bias"]
    rate = torch.nn.functional.softplus(step.double())[:, None] * A_log.double().exp()
    torch.testing.assert_close(recurrences[2].rate, rate)
