"""One of a thing is one thing: `1 step`, never `1 steps`."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssmdiag import compare_run, diagnose
from ssmdiag.errors import SsmdiagError
from ssmdiag.printable import plural
from ssmdiag.reports import Settings, formats, render
from ssmdiag.reports.compare.run import report
from ssmdiag.reports.retrain import markdown, text
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.watching.alarm import Alarm
from tests.reports.example_diagnoses import diagnosis, layer, remembering
from tests.reports.test_compare_text import falling, run_of, still
from tests.reports.test_retrain_text import result_of, run
from tests.rules.healthy import initial_state, save
from tests.watching.test_warnings import layer as reading

VERBS = "is|has|was|grows|does|decays|forgets|converges|recedes|keeps|moves|nears|holds"
"""After `layer 1`, and after a count of one."""
ONE_OF_SEVERAL = re.compile(
    rf"(?<![\d.,–-])\b1 (?:(?!(?:{VERBS})\b)[a-z]{{2,}}s\b|of [\d,]+ [a-z]+ (?:of \S+ )?(?:are|have|lie)\b)"
)


def wrong(text: str) -> list[str]:
    """Return where one of a thing is written as several."""
    return ONE_OF_SEVERAL.findall(" ".join(text.split()))


def test_one_of_several_is_seen() -> None:
    assert wrong("half gone every 1 steps") == ["1 steps"]
    assert wrong("1 modes are NaN") == ["1 modes"]
    assert wrong("1 of 32 values of D are 0") == ["1 of 32 values of D are"]
    assert not wrong("1 step, 11 steps, 0.1 steps, 1 is the most, 2 of 3 layers")


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("form", [each for each in formats() if each in ("text", "markdown", "github", "junit")])
def test_reports_of_a_checkpoint_count_as_one_speaks(form: str, count: int) -> None:
    layers = [replace(remembering(layer(i)), nonfinite=count, unstable=count, channels=1, modes=1) for i in range(2)]
    for some in (layers, layers[:1]):
        shown = diagnosis(*some, context_length=count or None, problems=count * ("damaged",))
        for full in (False, True):
            assert not wrong(render([shown], form, Settings(full=full)))


@pytest.mark.parametrize("count", [1, 2])
def test_reports_of_a_run_count_as_one_speaks(count: int) -> None:
    def broken(step: int) -> object:
        return replace(still("0")(step), nonfinite=count, channels=1, modes=count)

    def grown(step: int) -> object:
        return replace(still("1")(step), unstable=count, channels=1, modes=count)

    for steps in ([0, 1], [0, 1, 2, 3, 4, 5]):
        for kind in (broken, grown, falling("2", 1.0), falling("3", math.log(2)), still("4")):
            run = run_of({"0": kind}, steps)  # type: ignore[dict-item]
            for full in (False, True):
                assert not wrong(report(run, Settings(full=full)))


@pytest.mark.parametrize("count", [1, 2])
def test_warnings_count_as_one_speaks(count: int) -> None:
    for bad in (
        replace(reading(), nonfinite=count, modes=count),
        replace(reading(margin=1e-9), half_life=float(count)),
    ):
        for said in Alarm(1e-6).hear(count, [bad]):
            assert not wrong(said)


def test_a_count_that_is_written_already_keeps_its_digits() -> None:
    assert [plural(said, "step") for said in ("0.5", "1", "1.0", "1k")] == [
        "0.5 steps",
        "1 step",
        "1.0 steps",
        "1k steps",
    ]


def test_a_comparison_of_arms_counts_as_one_speaks() -> None:
    for steps, runs in ((1, 1), (2, 3)):
        compared = result_of([run(Arm("relu", seed=k), 0.5) for k in range(runs)], budget=Budget(steps=steps, batch=1))
        assert not wrong(markdown.render(compared))
        assert not wrong(text.report(compared, Settings(full=True)))


@pytest.mark.parametrize("values", [1, 4])
def test_findings_count_as_one_speaks(tmp_path: Path, values: int) -> None:
    """One value that is clamped, that rounding moves, that was never written: of one, and of several."""
    fresh = initial_state("linoss")
    layer = {name.removeprefix("blocks.0.ssm."): tensor for name, tensor in fresh.items() if "blocks.0.ssm." in name}
    layer["A_diag"], layer["steps"] = torch.tensor([-0.1, 1e-6, 1.0, 1.0][:values]), layer["steps"][:values]
    layer["B"], layer["C"], layer["D"] = layer["B"][:values, :values], layer["C"][:values, :values], layer["D"][:values]
    layer["D"][0] = 1e17
    path = save(tmp_path / "clamped", {f"blocks.0.ssm.{name}": tensor.clone() for name, tensor in layer.items()}, {})
    said = [finding.message for finding in diagnose(path, memory=False).findings]
    for begins in ("D is beyond", "A_diag lies where"):
        assert any(message.startswith(f"1 of {plural(values, 'value')} of {begins}") for message in said)
    assert not wrong("\n".join(said))


def test_one_checkpoint_that_cannot_be_read_is_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(SsmdiagError) as refused:
        compare_run([tmp_path / "model.safetensors"])
    assert "0 of 1 checkpoint could be read" in str(refused.value)
