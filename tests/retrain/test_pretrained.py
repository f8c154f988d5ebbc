"""Directories of transformers: the loss is the model's own, checkpoints load into its class, nothing is fetched."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssmdiag import diagnose
from ssmdiag.errors import CheckpointError, ConfigurationError, LayerError
from ssmdiag.probing.texts import directory_tokenizer
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.foreign import own_maps
from ssmdiag.retrain.next_token import next_token_data
from ssmdiag.retrain.sources import ModelSource, directory_source
from tests.families.tiny_transformers import tiny_model
from tests.retrain.small import compare_modules

LENGTH = 6
TEXT = "the state remembers what the input was, and forgets it. " * 6


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def saved(folder: Path, model_type: str = "mamba", dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    model = tiny_model(model_type, vocab_size=128, **overrides).to(dtype)
    model.save_pretrained(folder / "model")
    return folder / "model"


def text_file(folder: Path, text: str = TEXT) -> Path:
    (folder / "corpus.txt").write_text(text)
    return folder / "corpus.txt"


def batches(source: ModelSource, text: Path, tokenizer: Any = None, size: int = 4) -> SampledBatches:
    assert source.vocabulary is not None
    data = next_token_data(text, vocabulary=source.vocabulary, length=LENGTH, samples=40, tokenizer=tokenizer)
    return SampledBatches.of(data, size)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model_type", ["mamba", "mamba2"])
def test_a_directory_is_trained_and_its_checkpoints_load_into_its_class(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = saved(tmp_path, model_type)
    source = directory_source(path)
    (own,) = own_maps(source.build(0))
    arms = [Arm(OWN), Arm("heavy-tail", freeze="step")]
    result = compare_modules(
        arms, source, batches(source, text_file(tmp_path)), Budget(3, 4, 3), task="next byte", folder=tmp_path / "run"
    )
    assert f"own is {own}" in result.notes
    for arm in result.arms:
        assert arm.history[-1].loss < arm.history[0].loss
        assert 0 <= arm.history[-1].accuracy <= 1
        model = AutoModelForCausalLM.from_pretrained(path)
        model.load_state_dict(load_file(arm.checkpoints[-1]), strict=True)
        found = diagnose(arm.checkpoints[-1])
        assert [layer.half_life for layer in found.layers] == [layer.half_life for layer in arm.after]
        assert json.loads((arm.checkpoints[-1].parent / "config.json").read_text())["model_type"] == model_type


def test_the_loss_is_the_models_own(tmp_path: Path) -> None:
    path = saved(tmp_path)
    source, text = directory_source(path), text_file(tmp_path)
    data = batches(source, text)
    result = compare_modules([Arm(OWN)], source, data, Budget(0, 4, 1), task="t")
    model = source.build(0).eval()
    inputs, targets = data.held_out
    with torch.no_grad():
        # transformers shifts by itself: a window with its next token gives one loss for each of ours.
        windows = torch.cat([inputs, targets[:, -1:]], 1)
        expected = float(model(windows, labels=windows).loss)
    assert result.arms[0].final_loss == pytest.approx(expected, rel=1e-5)


def test_windows_follow_one_another_and_are_answered_by_the_next_byte(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    data = next_token_data(text, vocabulary=128, length=LENGTH, samples=10**6)
    content = TEXT.encode()
    windows = (len(content) - 1) // LENGTH
    every = torch.cat([data.inputs, data.validation_inputs])
    answers = torch.cat([data.targets, data.validation_targets])
    assert len(every) == windows
    assert bytes(every.flatten().tolist()) == content[: windows * LENGTH]
    assert bytes(answers.flatten().tolist()) == content[1 : windows * LENGTH + 1]
    assert len(data.validation_inputs) == round(windows / 10)


def test_only_as_much_text_is_read_as_is_asked_for(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    with text.open("wb") as file:
        file.write(b"ab" * 500)
        file.truncate(10**11)  # sparse: reading it all would not end
    data = next_token_data(text, vocabulary=128, length=LENGTH, samples=20)
    assert 20 <= len(data.inputs) <= 22


def test_a_tokenizer_in_the_directory_is_used(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = sorted(set(TEXT.split()))
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(["?", *words])}, unk_token="?"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    path = saved(tmp_path)
    assert directory_tokenizer(path) is None
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?").save_pretrained(path)
    tokenizer = directory_tokenizer(path)
    data = next_token_data(text_file(tmp_path), vocabulary=128, length=LENGTH, samples=10**4, tokenizer=tokenizer)
    every = torch.cat([data.inputs, data.validation_inputs]).flatten().tolist()
    assert [words[token - 1] for token in every] == TEXT.split()[: len(every)]


def test_a_stored_bfloat16_is_trained_in_float32_and_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path, dtype=torch.bfloat16)
    source = directory_source(path)
    module = source.build(0)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    stored = load_file(path / "model.safetensors")
    assert all(value.equal(stored[name].float()) for name, value in module.state_dict().items() if name in stored)
    assert source.notes == ("model is stored in bfloat16 and trained in float32",)


def test_weights_that_are_not_there_are_not_drawn_at_random(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = load_file(path / "model.safetensors")
    removed = next(name for name in state if name.endswith("A_log"))
    save_file({k: v for k, v in state.items() if k != removed}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights of MambaForCausalLM are not in it, such as .*A_log"):
        directory_source(path).build(0)


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = load_file(path / "model.safetensors")
    broken = next(name for name in state if name.endswith("dt_proj.weight"))
    state[broken].view(-1)[3] = torch.nan
    save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LayerError, match=r"1 of \d+ weights hold NaN: .*dt_proj.weight"):
        directory_source(path).build(0)


def test_code_in_the_directory_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    with pytest.raises(CheckpointError, match="code in the directory is not run"):
        directory_source(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{"])
def test_a_directory_whose_settings_are_torn_is_told_so(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Expecting"):
        directory_source(tmp_path).build(0)


@pytest.mark.parametrize("content", ['{"model_type": "no_such_model"}', '{"model_type": "vit"}', "[]"])
def test_a_directory_that_transformers_cannot_read_is_told_why(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="transformers makes no causal language model of it"):
        directory_source(tmp_path).build(0)


def test_a_directory_without_settings_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        directory_source(tmp_path)


def test_bytes_the_vocabulary_lacks_and_texts_too_short_are_told_with_figures(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="bytes up to 195, and the model's vocabulary has 128"):
        next_token_data(text_file(tmp_path, "café " * 20), vocabulary=128, length=LENGTH, samples=9)
    with pytest.raises(ConfigurationError, match="12 bytes"):
        next_token_data(text_file(tmp_path, "twelve bytes"), vocabulary=128, length=LENGTH, samples=9)
    with pytest.raises(ConfigurationError, match="0 bytes"):
        next_token_data(text_file(tmp_path, ""), vocabulary=128, length=LENGTH, samples=9)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        next_token_data(tmp_path / "absent.txt", vocabulary=128, length=LENGTH, samples=9)


@pytest.mark.slow
def test_a_saved_step_is_gone_on_from_with_its_weights_and_its_tokenizer(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / "tokenizer.json").write_text("{}")
    source = directory_source(path)
    feed = batches(source, text_file(tmp_path))
    first = compare_modules([Arm(OWN, lr=0.05)], source, feed, Budget(2, 4, 2), task="t", folder=tmp_path / "run")
    step = first.arms[0].checkpoints[-1]
    assert (step.parent / "tokenizer.json").read_text() == "{}"
    again = directory_source(step)
    assert again.vocabulary == source.vocabulary
    result = compare_modules([Arm(OWN), Arm("softplus")], again, feed, Budget(1, 4, 1), task="t")
    assert [arm.history[0].loss for arm in result.arms] == pytest.approx([first.arms[0].final_loss] * 2, rel=1e-5)
    state = load_file(step)
    save_file(dict(list(state.items())[1:]), step)
    with pytest.raises(CheckpointError, match="not the weights of MambaForCausalLM"):
        again.build(0)


@pytest.mark.parametrize("place", ["run", "run/best-lr0.01-seed0"])
def test_the_folder_of_a_run_names_a_checkpoint_to_go_on_from(place: str, tmp_path: Path) -> None:
    arm = tmp_path / "run/best-lr0.01-seed0"
    arm.mkdir(parents=True)
    for name in ("config.json", "step-0.safetensors", "step-4.safetensors"):
        (arm / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"name it: {arm}/step-4.safetensors"):
        directory_source(tmp_path / place)
