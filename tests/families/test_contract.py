"""What every family promises, tested on every spelling that discovery finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssmdiag import diagnose, known_families, read_checkpoint, recognise
from ssmdiag.families import Family, Spelling
from ssmdiag.families.recognition import LOOKS_RECURRENT
from tests.families.synthetic import config, path_for, state_dict

SPELLINGS = [
    pytest.param(family, spelling, id=f"{family.name}:{spelling.name}")
    for family in known_families()
    for spelling in family.spellings
]
each_spelling = pytest.mark.parametrize(("family", "spelling"), SPELLINGS)

Write = Callable[..., Path]


@pytest.mark.one_in(2)
@each_spelling
def test_a_family_recognises_what_it_declares_and_no_other_claims_it(
    family: Family, spelling: Spelling, write_model: Write
) -> None:
    found = recognise(read_checkpoint(write_model(state_dict(spelling), config(family, spelling))))
    assert [(layer.family.name, layer.spelling.name) for layer in found.layers] == [(family.name, spelling.name)]
    assert found.problems == ()
    assert found.layers[0].defect is None


@pytest.mark.one_in(4)
@each_spelling
def test_what_is_read_is_a_finite_spectrum_with_its_sources(
    family: Family, spelling: Spelling, write_model: Write
) -> None:
    state = state_dict(spelling)
    layer = recognise(read_checkpoint(write_model(state, config(family, spelling)))).layers[0]
    for recurrence in layer.read():
        assert recurrence.log_eigenvalues.dtype == torch.complex128
        assert not recurrence.log_eigenvalues.isnan().any()
        assert recurrence.family == family.name
        assert recurrence.layer.startswith(path_for(spelling))
        assert set(recurrence.tensors) <= set(state)
        # A gate without a bias has the same nominal decay whatever its weights; then a note must say so.
        assert recurrence.weights or recurrence.notes, "neither a weight nor a reason why there is none"
        assert recurrence.tensors or not recurrence.weights
        assert (recurrence.operating_point is None) == recurrence.time_invariant
        for weight in recurrence.weights:
            assert weight.name in state
        if recurrence.input_matrix is not None:
            assert recurrence.output_matrix is not None
            assert recurrence.input_matrix.dtype.is_complex


@pytest.mark.one_in(5)
@each_spelling
def test_a_missing_tensor_is_named(family: Family, spelling: Spelling, write_model: Write) -> None:
    """Without any one tensor the layer is either another known spelling or a near miss that names it."""
    full = state_dict(spelling)
    for number, local in enumerate(list(spelling.tensors)[1:]):
        name = f"{path_for(spelling)}.{local}"
        state = {key: value for key, value in full.items() if key != name}
        found = recognise(read_checkpoint(write_model(state, config(family, spelling), name=f"without{number}")))
        if not found.layers and len(spelling.tensors) > 1:
            assert any(name in miss.reason for miss in found.near_misses), (name, found.near_misses)


@pytest.mark.one_in(6)
@each_spelling
def test_reading_does_not_depend_on_other_layers(family: Family, spelling: Spelling, write_model: Write) -> None:
    """Two layers in one file read as each alone: nothing leaks from one to the next."""
    if "layers.3" not in path_for(spelling):
        paths = [path_for(spelling, 3), f"other.{path_for(spelling, 4)}"]
    else:
        paths = [path_for(spelling, 3), path_for(spelling, 11)]
    states = [state_dict(spelling, seed=seed, path=path) for seed, path in enumerate(paths)]
    both = recognise(read_checkpoint(write_model(states[0] | states[1], config(family, spelling)))).layers
    assert [layer.path for layer in both] == paths
    for layer, state, name in zip(both, states, ("first", "second"), strict=True):
        alone = recognise(read_checkpoint(write_model(state, config(family, spelling), name=name))).layers[0]
        for a, b in zip(layer.read(), alone.read(), strict=True):
            if family.name != "hgrn":  # its lower bounds accumulate over the model's layers
                torch.testing.assert_close(a.log_eigenvalues, b.log_eigenvalues, rtol=0, atol=0, equal_nan=True)


@pytest.mark.one_in(20)
@each_spelling
def test_every_spelling_can_be_diagnosed(family: Family, spelling: Spelling, write_model: Write) -> None:
    result = diagnose(write_model(state_dict(spelling), config(family, spelling)))
    assert result.exit_code() == 0
    assert all(layer.nonfinite == 0 for layer in result.layers)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
def test_every_value_of_every_option_can_be_read(family: Family, write_model: Write) -> None:
    for number, spelling in enumerate(family.spellings):
        layer = recognise(
            read_checkpoint(write_model(state_dict(spelling), config(family, spelling), name=f"s{number}"))
        ).layers[0]
        for option in family.options:
            assert option.usual in option.choices or "number" in option.choices
            for choice in option.choices:
                if choice != "number":
                    layer.read(**{option.name: choice})


@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
def test_every_family_says_what_it_is(family: Family) -> None:
    assert family.name.replace("_", "").isalnum(), "plain names: they are typed after --assume family="
    assert family.title
    assert family.paper
    assert family.memory in ("exact", "nominal")
    assert family.spellings
    assert len({spelling.name for spelling in family.spellings}) == len(family.spellings)


@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
def test_a_family_has_a_clock_where_its_decay_depends_on_the_input(family: Family) -> None:
    # The slope of a nonlinear recurrence turns with its state: it has no rates that a clock could drive.
    observable = family.memory == "nominal" and "linearised" not in family.traits
    assert (family.clock is not None) == observable


@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
def test_a_family_whose_writing_replaces_says_so_to_rules_and_to_readers(family: Family) -> None:
    assert ("overwrites" in family.traits) == ("overwritten" in family.caveat)


def test_family_names_are_unique_and_equal_their_files() -> None:
    import ssmdiag.families

    folder = Path(ssmdiag.families.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"} - ssmdiag.families.MACHINERY
    assert {family.name for family in known_families()} == files


def test_families_import_no_torch() -> None:
    code = (
        "import sys; from ssmdiag.families import known_families; known_families(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recurrent_leftover_is_reported(write_model: Write) -> None:
    family = known_families()[0]
    state = state_dict(family.spellings[0]) | {"net.other.rnn.log_decay": torch.zeros(4)}
    assert LOOKS_RECURRENT.search("net.other.rnn.log_decay")
    found = recognise(read_checkpoint(write_model(state, config(family, family.spellings[0]))))
    assert found.unrecognised == ("net.other.rnn.log_decay",)
