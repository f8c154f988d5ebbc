"""What a probe wrote, read back: only for the model it was measured on, and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ssmdiag
from ssmdiag.errors import ProbeFileError
from ssmdiag.families.recognition import recognise
from ssmdiag.probing.digest import digest_recurrence
from ssmdiag.probing.saved import read_probe
from tests.families.tiny_transformers import tiny_model
from tests.rules.healthy import save
from tests.rules.probed import Document, observed


def test_what_was_written_is_read(tmp_path: Path) -> None:
    model, path = observed(tmp_path)
    found, written = read_probe(path), json.loads(path.read_text())
    assert [layer.name for layer in found.layers] == [layer["name"] for layer in written["layers"]]
    assert [layer.hold for layer in found.layers] == [layer["observed"]["hold"] for layer in written["layers"]]
    assert (found.length, found.tokens, found.tested) == (64, 128, 32)
    report = ssmdiag.diagnose(model, memory=False, probe=found)
    assert {"SSM601", "SSM602", "SSM603", "SSM604"} <= set(report.rules)
    assert not {"SSM601", "SSM602", "SSM603", "SSM604"} & set(ssmdiag.diagnose(model, memory=False).rules)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_in_a_narrower_dtype_has_the_digest_of_its_file_in_that_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = tiny_model("mamba2").float()
    file = save(tmp_path / "model", dict(model.state_dict()), {})
    live = digest_recurrence(recognise(ssmdiag.read_module(model.to(dtype))).layers)
    assert live is not None
    assert live.dtype == str(dtype).removeprefix("torch.")
    stored = recognise(ssmdiag.read_checkpoint(file)).layers
    assert digest_recurrence(stored, live.dtype) == live
    with pytest.raises(ValueError, match="dtype is one of"):
        digest_recurrence(stored, "int8")
    assert digest_recurrence([]) is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    _, path = observed(tmp_path)
    other = save(tmp_path / "other", dict(tiny_model("mamba2", seed=1).state_dict()), {})
    with pytest.raises(ProbeFileError, match="measured on another model") as refused:
        ssmdiag.diagnose(other, memory=False, probe=read_probe(path))
    assert "digest" in refused.value.sentence


def test_the_same_weights_without_a_prefix_are_the_same_model(tmp_path: Path) -> None:
    model, path = observed(tmp_path)
    state = {name.removeprefix("backbone."): tensor.load() for name, tensor in ssmdiag.read_checkpoint(model).items()}
    bare = save(tmp_path / "bare", state, {})

    def change(found: Document) -> None:
        found["layers"][1]["observed"]["hold"] = 0.0

    (tmp_path / "again").mkdir()
    _, path = observed(tmp_path / "again", change)
    (finding,) = (
        f for f in ssmdiag.diagnose(bare, memory=False, probe=read_probe(path)).findings if f.code == "SSM601"
    )
    assert finding.layer == "layers.1.mixer"


def _set(**values: Any) -> Callable[[Document], None]:
    return lambda found: found.update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(schema_version=2), "schema_version is 2"),
        (_set(recurrence=None), "without a recurrence"),
        (_set(recurrence={"sha256": "0", "dtype": "int3"}), "recurrence.dtype is 'int3'"),
        (_set(length="long"), "'long' is no count"),
        (lambda found: found.pop("layers"), "KeyError: 'layers'"),
        (lambda found: found["layers"][0]["observed"].update(hold=2), "2 is no share"),
        (lambda found: found["layers"][0]["observed"]["half_life"].update(p99=None), "TypeError"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, change: Callable[[Document], Any], said: str) -> None:
    _, path = observed(tmp_path, change)
    with pytest.raises(ProbeFileError, match="not what ssmdiag probe wrote") as refused:
        read_probe(path)
    assert said in refused.value.sentence


def test_no_file_and_no_json_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ProbeFileError, match="cannot be read"):
        read_probe(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text('{"schema')
    with pytest.raises(ProbeFileError, match="is not JSON"):
        read_probe(tmp_path / "torn.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ProbeFileError, match="not what ssmdiag probe wrote"):
        read_probe(tmp_path / "list.json")
