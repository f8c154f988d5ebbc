"""One layer that cannot be examined is named and lost alone; who looks for a fault of ssmdiag finds it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ssmdiag.assessment.memory
from ssmdiag import Recurrence, diagnose, extract_recurrences, known_families, read_checkpoint
from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import CheckpointError, LayerError
from ssmdiag.families.layer import Layer
from ssmdiag.guard import guard
from ssmdiag.reports import Settings, formats, render
from ssmdiag.reports.json import layer_document
from ssmdiag.rules import Limits, Observation, Rule, known_rules
from ssmdiag.rules.selection import select_rules
from tests.families.synthetic import state_dict

Write = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
MAMBA = next(family for family in known_families() if family.name == "mamba")
PATHS = tuple(f"net.layers.{number}" for number in range(3))
STRANGE = PATHS[1]


@pytest.fixture
def model(write_model: Write) -> Path:
    """A Mamba-1 of three layers, in each of which all is well."""
    state = {}
    for number, path in enumerate(PATHS):
        state |= state_dict(MAMBA.spellings[0], seed=number, path=path)
    return write_model(state)


@pytest.fixture
def failing_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the measure of memory fail wherever the strange layer is among the layers measured."""
    measure = ssmdiag.assessment.memory.assess_memories

    def fail(recurrences: Sequence[Recurrence], context: int, **others: object) -> object:
        if any(recurrence.layer == STRANGE for recurrence in recurrences):
            raise ZeroDivisionError("float division by zero")
        return measure(recurrences, context, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(ssmdiag.assessment.memory, "assess_memories", fail)


def numbers(result: Diagnosis) -> dict[str, str]:
    return {layer.name: json.dumps(layer_document(layer)) for layer in result.layers}


def without_strange(found: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in found.items() if name != STRANGE}


def test_the_guard_names_the_layer_what_was_done_and_the_exception() -> None:
    said = r"^net\.1: its kernel failed with IndexError: index 3 is out of range\."
    with pytest.raises(LayerError, match=said) as caught, guard("net.1", "its kernel"):
        raise IndexError("index 3 is out of range.\nand more")
    assert isinstance(caught.value.__cause__, IndexError)
    assert "SSMDIAG_DEBUG=1" in str(caught.value)


def test_errors_that_are_explained_already_pass_the_guard_as_they_are() -> None:
    with pytest.raises(CheckpointError, match=r"^torn$"), guard("net.1", "its kernel"):
        raise CheckpointError("torn")


def test_ctrl_c_is_no_fault_of_a_layer() -> None:
    with pytest.raises(KeyboardInterrupt), guard("net.1", "its kernel"):
        raise KeyboardInterrupt


def test_a_layer_that_cannot_be_read_costs_no_other(model: Path) -> None:
    def read(layer: Layer) -> Iterator[Recurrence]:
        if layer.path == STRANGE:
            raise torch.linalg.LinAlgError("the input matrix is singular")
        yield from MAMBA.read(layer)

    sound, result = diagnose(model, tails=False), diagnose(model, families=[replace(MAMBA, read=read)], tails=False)
    (problem,) = result.problems
    assert problem.startswith(
        f"{STRANGE}: reading it as Mamba-1 failed with LinAlgError: the input matrix is singular."
    )
    assert numbers(result) == without_strange(numbers(sound))
    assert result.exit_code() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("failing_measure")
def test_a_layer_that_cannot_be_measured_costs_no_other(model: Path) -> None:
    result = diagnose(model)
    (problem,) = result.problems
    assert problem.startswith(f"{STRANGE}: its examination failed with ZeroDivisionError: float division by zero.")
    assert [layer.name for layer in result.layers] == [PATHS[0], PATHS[2]]
    assert {finding.layer for finding in result.findings} <= {PATHS[0], PATHS[2], None}


@pytest.mark.usefixtures("failing_measure")
def test_the_traceback_of_what_the_guard_caught_can_be_seen(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ssmdiag"):
        diagnose(model)
    assert "ZeroDivisionError: float division by zero" in caplog.text
    assert "Traceback" in caplog.text


def failing_rule(looks_at: str) -> Rule:
    def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
        if looks_at == "checkpoint" or evidence.recurrence.layer == STRANGE:
            raise KeyError("no_such_threshold")
        yield Observation("seen", count=1)

    rule = next(rule for rule in known_rules() if rule.looks_at == looks_at)
    return replace(rule, code="SSM999", name="broken-rule", examine=examine)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("looks_at", "where"), [("layer", STRANGE), ("checkpoint", "model")])
def test_a_rule_that_fails_is_named_and_the_others_run(model: Path, looks_at: str, where: str) -> None:
    sound = diagnose(model, tails=False)
    selection = select_rules()
    selection = replace(
        selection, rules=(failing_rule(looks_at), *selection.rules), limits={**selection.limits, "SSM999": {}}
    )
    result = diagnose(model, rules=selection, tails=False)
    (problem,) = result.problems
    assert problem.startswith(f"{where}: rule SSM999 (broken-rule) failed with KeyError: 'no_such_threshold'.")
    assert numbers(result) == numbers(sound)
    own = [finding for finding in result.findings if finding.code == "SSM999"]
    assert [finding.layer for finding in own] == ([PATHS[0], PATHS[2]] if looks_at == "layer" else [])
    assert [finding for finding in result.findings if finding.code != "SSM999"] == list(sound.findings)


@pytest.mark.one_in(8)
@pytest.mark.usefixtures("failing_measure")
@pytest.mark.parametrize("form", formats())
def test_every_format_says_which_layer_was_lost(model: Path, form: str) -> None:
    result = diagnose(model)
    text = render([result], form, Settings(width=200))
    assert "ZeroDivisionError" in text
    assert STRANGE in text


def test_a_kernel_that_cannot_be_computed_is_left_out_of_the_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmdiag.kernel import file

    compute = file.compute_kernel

    def fail(recurrence: Recurrence, *others: object, **options: object) -> object:
        if recurrence.layer == STRANGE:
            raise torch.linalg.LinAlgError("singular")
        return compute(recurrence, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(file, "compute_kernel", fail)
    checkpoint = read_checkpoint(model)
    written = file.write_kernels(extract_recurrences(checkpoint), 32, tmp_path / "k.safetensors", source=checkpoint)
    assert list(written.tensors) == [f"{PATHS[0]}.retention", f"{PATHS[2]}.retention"]
    (problem,) = written.problems
    assert problem.seen == f"{STRANGE}: its retention failed with LinAlgError: singular."


def test_no_file_of_kernels_is_written_where_no_layer_has_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmdiag.kernel import file

    def fail(*given: object, **options: object) -> object:
        raise MemoryError

    monkeypatch.setattr(file, "compute_kernel", fail)
    checkpoint = read_checkpoint(model)
    with pytest.raises(LayerError, match=r"^net\.layers\.0: its retention failed with MemoryError\."):
        file.write_kernels(extract_recurrences(checkpoint), 32, tmp_path / "k.npz", source=checkpoint)
    assert not (tmp_path / "k.npz").exists()


def test_a_conversion_proves_the_layers_beside_one_that_cannot_be_compared(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmdiag.compare import conversion

    match = conversion.match_spectra

    def fail(a: Recurrence, b: Recurrence, allowed: float) -> object:
        if a.layer == STRANGE:
            raise RuntimeError("sizes differ")
        return match(a, b, allowed)

    monkeypatch.setattr(conversion, "match_spectra", fail)
    proof = conversion.prove_conversion(model, model)
    assert [layer.a for layer in proof.layers] == [PATHS[0], PATHS[2]]
    (problem,) = proof.problems
    assert problem.startswith(f"{STRANGE}: its comparison failed with RuntimeError: sizes differ.")
    assert proof.exit_code() == 2


def test_a_run_goes_on_without_a_layer_that_cannot_be_examined_at_one_step(
    model: Path, write_model: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmdiag.compare import run

    point = run.read_point

    def fail(step: int, recurrence: Recurrence, *others: object, **options: object) -> object:
        if recurrence.layer == STRANGE and step == 2:
            raise OverflowError("math range error")
        return point(step, recurrence, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "read_point", fail)
    state = {name: stored.load() for name, stored in read_checkpoint(model).items()}
    paths = [write_model(state, name=f"step-{step}") for step in (1, 2, 3)]
    compared = run.compare_run(paths)
    assert len(compared.layers) == 3
    (problem,) = compared.problems
    assert problem.startswith(f"step-2: {STRANGE}: its examination failed with OverflowError: math range error.")
    assert compared.exit_code() == 2
