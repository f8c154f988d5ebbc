"""Models that save_pretrained wrote are opened live, or a sentence says why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag.errors import CheckpointError, ConfigurationError, SsmdiagError
from ssmdiag.probing.models import open_model, vocabulary_of
from ssmdiag.probing.use import measure_use
from tests.families.tiny_transformers import tiny_model


def saved(folder: Path, model_type: str = "mamba", **overrides: Any) -> Path:
    tiny_model(model_type, **overrides).save_pretrained(folder / "model")
    return folder / "model"


def test_a_folder_is_opened_as_the_model_that_was_saved(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = open_model(path)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, tiny_model("mamba").eval()(tokens).logits)
    assert not model.training
    assert not model.config.use_cache
    assert vocabulary_of(model) == 64
    assert vocabulary_of(torch.nn.Linear(1, 1)) is None
    assert next(open_model(path, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_use_is_measured_on_it(tmp_path: Path) -> None:
    model = open_model(saved(tmp_path))
    use = measure_use(model, [torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(0))], cuts=1)
    assert use.distance == "KL divergence, nats"
    assert use.loss is not None
    assert not use.by_cutting.none


def test_what_cannot_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    for name, words in {
        "file": "is a file",
        "absent": "does not exist",
        "empty": "no config.json",
        "strange": "transformers makes no causal language model of it",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            open_model(tmp_path / name)
    with pytest.raises(ConfigurationError, match="dtype int8"):
        open_model(tmp_path / "empty", dtype="int8")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SsmdiagError, match="needs transformers to run"):
        open_model(tmp_path / "empty")
