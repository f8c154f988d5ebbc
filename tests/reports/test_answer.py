"""The first line of every report: it says what was found, and never more than is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ssmdiag.assessment.spectrum import LayerDiagnosis
from ssmdiag.checkpoint.attention import attention_layers
from ssmdiag.diagnosis import Diagnosis, diagnose
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.reports import Settings, render
from ssmdiag.reports.answer import AT_REST, answer
from ssmdiag.reports.console import Column, Page
from tests.families.tiny_transformers import save_tiny
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer, remembering


def reaching(number: int, steps: float, *, exact: bool = True, **fields: object) -> LayerDiagnosis:
    horizon = Quantiles(*(steps * share for share in (0.1, 0.2, 0.5, 0.9, 1.0)))
    plain = remembering(layer(number, complex_=exact))
    return replace(plain, horizon=horizon, every_horizon=True, **fields)  # type: ignore[arg-type]


def test_a_memory_beyond_the_context_is_said_with_both_numbers() -> None:
    said = answer(diagnosis(reaching(0, 823.0), context_length=512))
    assert said.line == "OK  remembers about 820 steps, further than its context of 512"


def test_of_several_layers_within_the_context_only_their_own_reach_is_claimed() -> None:
    said = answer(diagnosis(reaching(0, 40.0), reaching(1, 340.0), context_length=2048))
    assert said.line == "OK  its layers remember up to about 340 of its 2,048 steps of context"


def test_a_context_that_nobody_gave_is_asked_for() -> None:
    said = answer(diagnosis(reaching(0, 1.0)))
    assert said.line == "OK  remembers about 1 step; its context is unknown: --length gives it"


def test_selective_layers_are_said_to_be_at_rest() -> None:
    for model in (
        diagnosis(reaching(0, 820.0, exact=False), context_length=512),
        diagnosis(reaching(0, 820.0), reaching(1, 20.0, exact=False), context_length=512),
        diagnosis(replace(layer(0), horizon=None)),
    ):
        assert AT_REST in answer(model).text
    assert AT_REST not in answer(diagnosis(reaching(0, 820.0))).text


@pytest.mark.parametrize("reach", [300.0, 820.0])
def test_an_attention_model_is_never_said_to_remember_as_its_recurrent_layers_do(reach: float) -> None:
    paths = ("layers.1.self_attn", "layers.3.self_attn")
    said = answer(diagnosis(reaching(0, reach), reaching(2, 20.0), context_length=512, attention_layers=paths))
    assert said.text.startswith("recurrent layers remember up to about")
    assert said.text.endswith("; 2 attention layers not judged")


def test_a_sample_of_channels_is_a_lower_bound() -> None:
    sampled = reaching(0, 820.0)
    for other in (replace(sampled, every_horizon=False), replace(sampled, horizon=None)):
        said = answer(diagnosis(sampled, replace(other, name="b.1"), context_length=4096))
        assert said.text == "its layers remember at least 820 of its 4,096 steps of context"


def test_an_endless_memory_has_no_number() -> None:
    said = answer(diagnosis(reaching(0, math.inf), context_length=512))
    assert said.line == "OK  remembers for more than 10¹² steps, further than its context of 512"


@pytest.mark.parametrize(("severity", "status"), [("error", "problem"), ("warning", "warning"), ("note", "ok")])
def test_the_worst_finding_decides(severity: str, status: str) -> None:
    layers = tuple(reaching(number, 820.0) for number in range(6))
    found = tuple(finding(number, code="SSM404", severity=severity) for number in range(6))
    said = answer(diagnosis(*layers, context_length=512, findings=found))
    assert said.status == status
    assert said.text.startswith("6 of 6 recurrent layers: ") is (severity != "note")
    assert ("(SSM404)" in said.text) is (severity != "note")


def test_a_mode_that_grows_is_a_problem_also_where_no_rule_was_asked() -> None:
    said = answer(diagnosis(layer(0), replace(layer(1), unstable=1, spectral_radius=1.02), rules=()))
    assert said.line == "PROBLEM  1 of 81,920 modes in layer 1 grows with every step, by a factor of 1.02"


def test_what_grows_is_not_said_to_be_kept() -> None:
    endless = reaching(0, math.inf)
    assert endless.half_life is not None
    endless = replace(endless, half_life=replace(endless.half_life, max=math.inf))
    kept = "its slowest modes never decay: what they hold lasts until it is overwritten"
    assert answer(diagnosis(endless)).line == f"OK  {kept}"
    grows = replace(endless, unstable=1, spectral_radius=1.02, marginal=0)
    assert answer(diagnosis(grows, rules=())).line.endswith("grows with every step, by a factor of 1.02")
    assert answer(diagnosis(replace(grows, marginal=1), rules=())).line.endswith(f"1.02; {kept}")
    # Linearised at zero: it is no fault that modes leave it, and no memory either.
    leaves = replace(grows, unstable=0)
    assert answer(diagnosis(leaves)).line == "UNDETERMINED  how far it remembers is not known: modes grow"
    rounded = replace(endless, spectral_radius=1 + 1e-9)
    assert answer(diagnosis(rounded)).line == f"OK  {kept}"


@pytest.mark.parametrize("case", ["guess", "assumed", "hybrid"])
def test_what_rests_on_a_guess_is_not_ok(case: str) -> None:
    plain = CASES[case]
    assert isinstance(plain, Diagnosis)
    said = answer(replace(plain, findings=()))
    assert said.status == "undetermined"


def test_a_setting_that_changes_nothing_is_no_caveat() -> None:
    plain = CASES["assumed"]
    assert isinstance(plain, Diagnosis)
    known = replace(plain, layers=(reaching(0, 820.0),), context_length=512)
    assert answer(known).line.startswith("UNDETERMINED  assuming parameterization = exp: remembers about 820 steps")
    (alternative,) = known.alternatives
    same = replace(alternative, others=(("best", alternative.slowest),))
    assert answer(replace(known, alternatives=(same,))).status == "ok"


def test_a_part_that_could_not_be_read_is_a_problem() -> None:
    said = answer(diagnosis(reaching(0, 820.0), context_length=512, problems=("shard 2 is missing",)))
    assert said.line.startswith("PROBLEM  only partly read (1 problem); remembers about 820 steps")
    assert answer(diagnosis(problems=("a", "b"))).line == "PROBLEM  not read (2 problems)"


@pytest.mark.parametrize("case", [case for case in CASES if case != "failed"])
def test_programs_get_the_same_line(case: str) -> None:
    result = CASES[case]
    assert isinstance(result, Diagnosis)
    data = json.loads(render([result], "json", Settings()))
    assert (data["status"], data["answer"]) == (answer(result).status, answer(result).text)


@pytest.mark.parametrize(
    ("model_type", "paths"),
    [
        ("jamba", ["model.layers.1.self_attn"]),
        ("falcon_h1", ["model.layers.0.self_attn", "model.layers.1.self_attn"]),
        ("qwen3_next", ["model.layers.3.self_attn"]),
        ("mamba", []),
        pytest.param("kimi_linear", ["model.layers.3.self_attn"], marks=pytest.mark.slow),
        pytest.param(
            "bailing_hybrid", ["model.layers.2.attention", "model.layers.5.attention"], marks=pytest.mark.slow
        ),
        pytest.param("recurrent_gemma", ["model.layers.2.temporal_block"], marks=pytest.mark.slow),
    ],
)
def test_attention_layers_are_told_from_linear_attention(model_type: str, paths: list[str], tmp_path: Path) -> None:
    _, path = save_tiny(model_type, tmp_path)
    assert list(diagnose(path, memory=False).attention_layers) == paths


def test_attention_of_other_senses_and_of_draft_heads_is_no_layer_over_the_context() -> None:
    names = ["visual.blocks.0.attn.qkv.weight", "mtp.layers.0.self_attn.q_proj.weight", "layers.3.attn.q_proj.weight"]
    assert attention_layers(names, []) == ("layers.3.attn",)


def test_a_block_of_gguf_can_hold_both_and_a_linear_attention_is_not_counted() -> None:
    both = ["blk.0.ssm_a", "blk.0.attn_q.weight"]
    linear = ["blk.1.ssm_a", "blk.1.attn_q.weight", "blk.1.ssm_conv1d_q.weight"]
    assert attention_layers([*both, *linear], [*both, *linear]) == ("blk.0",)


def test_a_name_too_long_for_its_column_is_folded_not_cut() -> None:
    name = "backbone.layers.0.mixer.with.a.long.name"
    for unicode in (True, False):
        page = Page(Settings(width=30, unicode=unicode))
        page.table([Column("layer", [name], "left", overflow="fold"), Column("half-life", ["123"])])
        assert "".join(line.split(" ")[0] for line in page.text().splitlines()[2:]) == name
