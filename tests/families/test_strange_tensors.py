"""Tensors that no model should have, each once found to end in a traceback: an error that names them, or numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssmdiag import Family, Spelling, diagnose, find_map, known_families, recognise
from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.recurrence.discretisation import bilinear_matrix, matrix_eigenvalues
from ssmdiag.recurrence.maps import MAPS
from ssmdiag.recurrence.modal import Recurrence
from tests.families.mutations import hold, make_case
from tests.families.synthetic import config, path_for, state_dict

SPELLINGS = {
    f"{family.name}:{spelling.name}": (family, spelling) for family in known_families() for spelling in family.spellings
}


def found(name: str) -> tuple[Family, Spelling]:
    """Return the first spelling whose name begins like this."""
    return next(value for key, value in SPELLINGS.items() if key.startswith(name))


def problem(name: str, changes: dict[str, Callable[[Tensor], Tensor]], **settings: object) -> str:
    """Return what is said of a spelling's layer with some of its tensors changed."""
    family, spelling = found(name)
    state = state_dict(spelling, optional=True)
    for local, change in changes.items():
        state[f"{path_for(spelling)}.{local}"] = change(state[f"{path_for(spelling)}.{local}"])
    (said,) = diagnose(hold(state, config(family, spelling) | settings)).problems
    return said


@pytest.mark.parametrize("map", sorted(MAPS))
def test_no_bound_of_a_map_overflows(map: str) -> None:
    """A_log of 1e19 in float32 may move by 5e11 when it is rounded, and e to that is no float."""
    bound = find_map(map).bound
    assert bound(5e11) == bound(1e300) == math.inf or not math.isinf(bound(5e11))


def test_a_huge_log_rate_is_judged_by_all_rules() -> None:
    _, spelling = found("mamba:state-spaces")
    state = state_dict(spelling)
    state[f"{path_for(spelling)}.A_log"][1, 2] = 1e19
    result = diagnose(hold(state, {}))
    assert result.problems == ()
    assert result.layers[0].channels == 4


REAL = {
    "dss:ag1988/dss, exp, two": "Lambda_im",
    "kda:GLM-5-next": "A_log",
    "linoss:jaredbmit": "A_diag",
    "mamba:VMamba": "A_logs",
    "retention": "decay",
    "s4:state-spaces/s4 v2": "log_dt",
    "s5:lindermanlab/S5, bidirectional": "Lambda_re",
}


@pytest.mark.parametrize("name", REAL)
def test_complex_where_real_is_meant_is_named(name: str) -> None:
    local = REAL[name]
    said = problem(name, {local: lambda values: values.to(torch.complex64)})
    assert f"{local} is complex64" in said
    assert "Expected real numbers" in said


def test_complex_with_an_axis_of_re_and_im_is_named() -> None:
    for name, local in {"dss:ag1988/dss, softmax": "Lambda", "s4:state-spaces/s4 v1": "krylov.C"}.items():
        said = problem(name, {local: lambda values: values.to(torch.complex128)})
        assert f"{local} is complex128" in said
        assert "without it" in said or "Expected real numbers" in said


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", SPELLINGS)
def test_axes_of_nothing_are_named(name: str) -> None:
    """No channels, no modes, no inputs: whichever axis is empty, the layer says so."""
    family, spelling = SPELLINGS[name]
    tokens = " ".join(dims.rpartition(":")[2] for dims in spelling.tensors.values()).replace("*", " ").split()
    for axis in sorted({token for token in tokens if not token.isdigit() and token != "_"}):
        state = state_dict(spelling, sizes={axis: 0})
        for layer in recognise(hold(state, config(family, spelling) | {"l_max": 64})).layers:
            if any(0 in layer.shape(local) for local in layer.names):
                with pytest.raises(LayerError, match="is empty: its shape is"):
                    layer.read()


def test_a_part_that_is_empty_is_named_as_such_and_not_as_one_that_does_not_belong() -> None:
    """As a shard of ZeRO-3 that was never gathered, beside a part that was."""
    said = problem("mamba:state-spaces", {"A_log": lambda w: w[:0], "dt_proj.bias": lambda w: w[:0]})
    assert "A_log is empty: its shape is (0, 4)." in said


@pytest.mark.one_in(40)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_weight_that_is_zero_needs_no_guard(name: str) -> None:
    """As an output matrix that training begins from zero."""
    family, spelling = SPELLINGS[name]
    state = state_dict(spelling)
    for zero in state:
        changed = state | {zero: torch.zeros_like(state[zero])}
        try:
            said = " ".join(diagnose(hold(changed, config(family, spelling))).problems)
        except SsmdiagError as error:
            said = str(error)
        assert " failed with " not in said, zero


def test_packed_gates_without_a_shape_are_named() -> None:
    said = problem("min_gru:minGRU", {"to_hidden_and_gate.weight": lambda values: values.to(torch.int32)})
    assert "do not say how many channels" in said


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (torch.tensor(math.inf), "L is float32 (), inf."),
        (torch.tensor(-3), "L is int64 (), -3."),
        (torch.tensor(2.5), "L is float32 (), 2.5."),
        (torch.zeros(2), "L is float32 (2,)."),
        (torch.tensor(4 + 0j), "L is complex64 ()."),
    ],
)
def test_a_length_that_is_none_is_named(value: Tensor, seen: str) -> None:
    said = problem("s4:state-spaces/s4 v3", {"L": lambda _: value})
    assert seen in said
    assert "Expected one number, zero or positive and whole" in said


def test_a_singular_matrix_leaves_nan_in_its_own_channel_alone() -> None:
    A = torch.tensor([[[2.0, 0.0], [0.0, -1.0]], [[-0.5, 1.0], [-1.0, -0.5]]], dtype=torch.complex128)
    B, C, step = torch.ones(2, 2).to(A), torch.ones(1, 2, 2).to(A), torch.ones(2, 1, dtype=torch.float64)
    both = bilinear_matrix(A, B, C, step, 8)  # 1 − ΔA/2 has the eigenvalue 0
    alone = bilinear_matrix(A[1:], B[1:], C[:, 1:], step[1:], 8)
    for part in ("state_matrix", "input_matrix"):
        assert getattr(both, part)[0].isnan().all()
        assert torch.equal(getattr(both, part)[1:], getattr(alone, part))
    assert both.output_matrix[:, 0].isnan().all()
    assert torch.equal(both.output_matrix[:, 1:], alone.output_matrix)


def test_eigenvalues_of_a_matrix_that_is_not_finite_are_nan() -> None:
    matrices = torch.stack([torch.full((2, 2), math.inf), torch.diag(torch.tensor([1.0, 2.0]))]).double()
    values = matrix_eigenvalues(matrices)
    assert values[0].isnan().all()
    assert values[1].real.sort().values.tolist() == [1.0, 2.0]


def record(**fields: object) -> Recurrence:
    ell = torch.full((3, 2), -0.1 + 0.2j, dtype=torch.complex128)
    given = {"log_eigenvalues": ell, "layer": "net.0", "family": "mine", "spelling": "mine", "time_invariant": True}
    return Recurrence(**given | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"log_eigenvalues": torch.zeros(3, 0, dtype=torch.complex128)}, "3 channels of 0 modes"),
        ({"step": torch.ones(2, 1)}, r"step has shape \(2, 1\)"),
        ({"input_matrix": torch.ones(3, 4), "output_matrix": torch.ones(1, 3, 2)}, "do not fit 3 channels of 2 modes"),
        ({"input_matrix": torch.ones(3, 2), "output_matrix": torch.ones(1, 4, 2)}, "do not fit 3 channels of 2 modes"),
        ({"input_matrix": torch.ones(3, 2), "output_matrix": torch.ones(0, 3, 2)}, "do not fit 3 channels of 2 modes"),
        ({"input_matrix": torch.ones(2, 5), "output_matrix": torch.ones(7, 2)}, "do not fit 3 channels of 2 modes"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(fields: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        record(**fields)


def test_a_mutation_is_the_same_for_the_same_seed() -> None:
    first, second = make_case(123), make_case(123)
    assert first.said == second.said
    assert list(first.state) == list(second.state)
