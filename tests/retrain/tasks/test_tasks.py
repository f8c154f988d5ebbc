"""Tasks: targets against sums done by hand, scipy, numpy and the released code's own numbers."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task, known_tasks
from ssmdiag.retrain.tasks.listops import TOKENS, draw_expression, evaluate

KERNELS = {
    "lf-exp": lambda t: np.exp(-t),
    "lf-poly": lambda t: 1 / (1 + 0.1 * t) ** 1.1,
    "lf-shift": lambda t: np.where((t > 9) & (t < 11), 1.0, 0.0),
    "lf-twoparts": lambda t: np.exp(-t) + np.exp(-((t - 9.0) ** 2)),
    "lf-airy": lambda t: scipy.special.airy(t - 6.0)[0],
}
"""ρ as radarFudan/StableSSM has it in src/data/components/lf/datagen.py."""


def make(name: str, **settings: object) -> TaskData:
    return find_task(name).make(TaskSettings(**{"samples": 20, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KERNELS)
def test_targets_are_the_sum_over_the_past(name: str) -> None:
    data = make(name)
    assert data.length == 100
    x = data.inputs[..., 0].double().numpy()
    y = np.zeros_like(x)
    for t in range(100):
        for s in range(t + 1):
            y[:, t] += KERNELS[name](np.float64(s)) * x[:, t - s]
    assert np.abs(data.targets[..., 0].numpy() - y).max() < 3e-6
    assert data.kernel is not None
    assert np.allclose(data.kernel.numpy(), KERNELS[name](np.arange(100.0)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "lag", "value"),
    [
        # Printed by the rhos of radarFudan/StableSSM at 64315ac.
        ("lf-exp", 3, 0.049787068367863944),
        ("lf-poly", 10, 0.46651649576840371),
        ("lf-poly", 90, 0.07943282347242815),
        ("lf-shift", 9, 0.0),
        ("lf-shift", 10, 1.0),
        ("lf-shift", 11, 0.0),
        ("lf-twoparts", 9, 1.0001234098040868),
        ("lf-airy", 0, -0.3291451736298231),
        ("lf-airy", 6, 0.3550280538878172),
    ],
)
def test_kernels_have_the_values_of_the_released_code(name: str, lag: int, value: float) -> None:
    kernel = make(name).kernel
    assert kernel is not None
    assert float(kernel[lag]) == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_inputs_are_white_noise_of_variance_one() -> None:
    x = make("lf-exp", samples=2000).inputs.double()
    assert float(x.mean()) == pytest.approx(0, abs=0.01)
    assert float(x.var()) == pytest.approx(1, abs=0.02)
    assert float((x[:, 1:] * x[:, :-1]).mean()) == pytest.approx(0, abs=0.01)


def test_delays_are_the_inputs_of_so_many_steps_ago() -> None:
    data = make("delay", length=40)
    assert data.outputs == 5
    for k, delay in enumerate((1, 2, 4, 8, 16)):
        assert data.targets[:, delay:, k].equal(data.inputs[:, :-delay, 0])
        assert not data.targets[:, :delay, k].any()
    assert float(data.inputs.abs().max()) <= 1


def test_images_have_the_length_they_have() -> None:
    assert make("digits", length=64, samples=4).length == 64
    with pytest.raises(ConfigurationError, match="--length 32: an image has 64 pixels"):
        make("digits", length=32)


def test_digits_are_scikit_learns_without_overlap() -> None:
    data = make("digits", samples=None)
    assert (len(data.inputs), len(data.validation_inputs), data.length, data.outputs) == (1438, 359, 64, 10)
    assert float(data.inputs.min()) == 0
    assert float(data.inputs.max()) == 1
    together = torch.cat([data.targets, data.validation_targets]).bincount()
    assert together.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def slow_value(text: str) -> int:
    """Evaluate by rewriting the expression as Python's own."""
    names = {"[MIN": "min((", "[MAX": "max((", "[MED": "med((", "[SM": "total((", "]": ")),"}
    source = "".join(names.get(token, f"{token},") for token in text.split())
    functions = {"med": lambda v: int(np.median(v)), "total": lambda v: sum(v) % 10, "min": min, "max": max}
    return int(eval(source, {"__builtins__": {}}, functions)[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),  # arXiv 1804.06028
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),  # arXiv 2011.04006, §2.2.1
        ("[MED 1 2 ]", 1),
        ("[MED 8 9 1 4 ]", 6),
        ("[SM 9 9 9 ]", 7),
        ("7", 7),
    ],
)
def test_expressions_have_their_published_values(text: str, value: int) -> None:
    assert evaluate(text.split()) == slow_value(text) == value


@pytest.mark.parametrize("text", ["", "[MIN", "[MIN ]", "1 2", "] 1", "[MIN 1 2", "12", "[FIRST 1 2 ]"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot stand|not one whole"):
        evaluate(text.split())


def test_drawn_expressions_obey_the_rules() -> None:
    generator = random.Random(0)
    most_arguments = deepest = 0
    operators: dict[str, int] = {}
    for _ in range(300):
        tokens = draw_expression(generator, 25, 100)
        assert 25 <= len(tokens) <= 100
        counts = [0]
        for token in tokens:
            if token == "]":
                arguments = counts.pop()
                most_arguments = max(most_arguments, arguments)
                assert 2 <= arguments <= 10
                continue
            counts[-1] += 1
            if token.startswith("["):
                operators[token] = operators.get(token, 0) + 1
                counts.append(0)
                deepest = max(deepest, len(counts))
        assert evaluate(tokens) == slow_value(" ".join(tokens))
    assert most_arguments == 10
    assert 6 <= deepest <= 10
    assert min(operators.values()) > 0.8 * max(operators.values())


def test_listops_are_padded_in_front_and_targets_are_their_values() -> None:
    data = make("listops", length=60, samples=20)
    assert (data.vocabulary, data.outputs, data.read_out) == (16, 10, "last step")
    for row, target in zip(data.inputs.tolist(), data.targets.tolist(), strict=True):
        text = " ".join(TOKENS[code] for code in row).strip()
        assert "  " not in text
        assert slow_value(text) == target
    with pytest.raises(ConfigurationError, match="--length 3"):
        make("listops", length=3)


def test_text_is_the_next_byte_and_validation_its_end(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(range(256)) * 4)
    data = make("text", path=path, length=32, samples=1000)
    assert (data.vocabulary, data.outputs, data.loss) == (256, 256, "cross-entropy")
    assert data.targets[:, :-1].equal(data.inputs[:, 1:])
    stream = torch.cat([data.inputs.flatten(), data.validation_inputs.flatten()])
    assert stream.tolist() == list(path.read_bytes()[: len(stream)])
    assert 2 <= len(data.validation_inputs) <= 4
    with pytest.raises(ConfigurationError, match="expected: --text FILE"):
        make("text")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        make("text", path=tmp_path / "absent")


def arrays(folder: Path, **given: object) -> Path:
    path = folder / "data.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in given.items()})
    return path


X, CODES = np.random.default_rng(0).normal(size=(10, 6)), np.random.default_rng(0).integers(0, 7, (10, 6))
CODES[0, 0] = 6


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (X, X, ("squared error", "every step", 1, None, (8, 6, 1), (8, 6, 1))),
        (X, X[..., None], ("squared error", "every step", 1, None, (8, 6, 1), (8, 6, 1))),
        (X, X[:, 0], ("squared error", "last step", 1, None, (8, 6, 1), (8, 1))),
        (X[..., None].repeat(3, -1), X[:, :2], ("squared error", "last step", 2, None, (8, 6, 3), (8, 2))),
        (X, CODES[:, 0], ("cross-entropy", "last step", 7, None, (8, 6, 1), (8,))),
        (CODES, CODES, ("cross-entropy", "every step", 7, 7, (8, 6), (8, 6))),
        (CODES.astype(np.uint8), X > 0, ("cross-entropy", "every step", 2, 7, (8, 6), (8, 6))),
    ],
)
def test_arrays_are_read_by_their_shapes_and_types(
    x: np.ndarray, y: np.ndarray, expected: tuple, tmp_path: Path
) -> None:
    data = make("arrays", path=arrays(tmp_path, x=x, y=y), samples=None)
    seen = (data.loss, data.read_out, data.outputs, data.vocabulary)
    assert (*seen, tuple(data.inputs.shape), tuple(data.targets.shape)) == expected
    assert len(data.validation_inputs) == 2
    # Every sample is still beside its own target, and none is lost.
    both = torch.cat([data.inputs, data.validation_inputs]).reshape(10, -1)
    targets = torch.cat([data.targets, data.validation_targets]).reshape(10, -1)
    for row, target in zip(both, targets, strict=True):
        place = next(k for k in range(10) if np.allclose(row.numpy(), x[k].reshape(-1), atol=1e-6))
        assert np.allclose(target.numpy(), np.asarray(y[place], float).reshape(-1), atol=1e-6)


def test_validation_arrays_of_the_users_own_are_used(tmp_path: Path) -> None:
    path = arrays(tmp_path, x=X, y=X[:, 0], x_validation=X[:3] + 1, y_validation=X[:3, 0] + 1)
    data = make("arrays", path=path, samples=None)
    assert np.allclose(data.validation_inputs[..., 0].numpy(), X[:3] + 1, atol=1e-6)
    assert np.allclose(data.inputs[..., 0].numpy(), X, atol=1e-6)


def test_a_shorter_length_keeps_what_is_answered(tmp_path: Path) -> None:
    data = make("arrays", path=arrays(tmp_path, x=X, y=X), length=4, samples=None)
    assert data.targets.equal(data.inputs)
    assert data.length == 4
    path = arrays(tmp_path, x=X, y=X[:, -1])
    data = make("arrays", path=path, length=4, samples=None)
    assert data.inputs[:, -1].equal(data.targets)


BROKEN = X.copy()
BROKEN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": X}, "has no y; it has x \\(10, 6\\)"),
        ({"x": X[:, 0], "y": X}, "x is floating point of shape \\(10,\\)"),
        ({"x": CODES[..., None], "y": CODES}, "x is integer of shape \\(10, 6, 1\\)"),
        ({"x": X, "y": X[:7]}, "x has 10 samples, y 7"),
        ({"x": X, "y": CODES[:, :3]}, "y has shape \\(10, 3\\) and x \\(10, 6, 1\\)"),
        ({"x": X, "y": X[:, None, None, :3]}, "y has shape \\(10, 1, 1, 3\\)"),
        ({"x": BROKEN, "y": X}, "1 of 60 numbers in x are not finite in float32, the first of them x\\[3, 2\\]"),
        ({"x": X * 1e300, "y": X}, "are not finite in float32"),
        ({"x": CODES - 3, "y": X}, "x is integer, from -3 to 3"),
        ({"x": X, "y": CODES * 10**6}, "y is integer, from 0 to 6,000,000"),
        ({"x": X.astype(complex), "y": X}, "x is complex128"),
        ({"x": X, "y": X, "x_validation": X}, "has no y_validation"),
        ({"x": X, "y": X, "x_validation": X[:, :5], "y_validation": X}, "x_validation torch.float32 \\(10, 5\\)"),
    ],
)
def test_arrays_no_model_can_learn_from_are_refused_with_what_was_seen(given: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make("arrays", path=arrays(tmp_path, **given))


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    text, single, objects = tmp_path / "a.npz", tmp_path / "b.npy", tmp_path / "c.npz"
    text.write_text("not arrays")
    np.save(single, X)
    np.savez(objects, x=np.array([{}], dtype=object), y=X)
    for path in (text, objects, tmp_path / "absent.npz"):
        with pytest.raises(ConfigurationError, match="cannot be read as arrays"):
            make("arrays", path=path)
    with pytest.raises(ConfigurationError, match="has no x and no y; it has nothing"):
        make("arrays", path=single)
    with pytest.raises(ConfigurationError, match=r"expected: --data FILE\.npz"):
        make("arrays")


def test_an_unknown_task_is_told_which_there_are() -> None:
    with pytest.raises(SsmdiagError) as caught:
        find_task("copying")
    assert all(task.name in str(caught.value) for task in known_tasks())


def test_the_length_is_the_users_where_there_is_a_choice() -> None:
    for name in ("lf-poly", "delay", "listops"):
        assert make(name, length=24).length == 24
    assert math.isclose(len(make("lf-poly", samples=None, length=8).inputs), 12_800)
