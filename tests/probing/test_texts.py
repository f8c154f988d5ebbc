"""Text files become windows of tokens, or a sentence that says why not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.texts import directory_tokenizer, read_texts


class Words:
    """A tokenizer of words, that puts a 1 before every text unless told not to."""

    def __call__(self, text: str, *, verbose: bool, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [1] * add_special_tokens + [2 + len(word) for word in text.split()]}


def test_texts_are_cut_into_windows_that_follow_one_another(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(bytes(range(50)))
    two.write_bytes(b"x" * 10)
    found = read_texts([one, two], vocabulary=256, length=10, windows=3)
    assert found.tolist() == [list(range(10)), list(range(10, 20)), list(range(20, 30)), [120] * 10]
    assert found.dtype == torch.int64
    assert len(read_texts([one], vocabulary=None, length=20)) == 2  # the last ten bytes fill no window


def test_a_tokenizer_is_used_without_tokens_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a bb ccc a bb ccc é")
    found = read_texts([tmp_path / "a.txt"], vocabulary=50_000, length=3, tokenizer=Words())
    assert found.tolist() == [[3, 4, 5], [3, 4, 5]]


def test_only_the_windows_of_a_long_file_are_read(tmp_path: Path) -> None:
    with (tmp_path / "long").open("wb") as file:
        file.truncate(10**11)  # sparse: reading it all would not end
    assert read_texts([tmp_path / "long"], vocabulary=256, length=16, windows=2).shape == (2, 16)
    (tmp_path / "words").write_text("word " * 1000)
    assert read_texts([tmp_path / "words"], vocabulary=None, length=50, windows=2, tokenizer=Words()).shape == (2, 50)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"short", {}, "5 bytes"),
        (b"", {}, "0 bytes"),
        (b"a b c", {"tokenizer": Words()}, "3 tokens"),
        ("é".encode() * 20, {"vocabulary": 128}, "bytes up to 195, and the model's vocabulary has 128"),
        (b"letters " * 30, {"vocabulary": 9, "tokenizer": Words()}, "tokens up to 9, and the model's vocabulary has 9"),
        (b"x" * 50, {"vocabulary": 50_280}, "no tokenizer beside the model, and its vocabulary of 50,280"),
    ],
)
def test_a_text_that_will_not_do_is_said_with_figures(
    content: bytes, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(SsmdiagError) as caught:
        read_texts([tmp_path / "text"], **({"vocabulary": 256, "length": 16} | options))
    assert words in str(caught.value)


def test_pipes_directories_and_strange_names_are_refused_on_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent\x1b[31m\n::name"):
        with pytest.raises(SsmdiagError, match="cannot be read") as caught:
            read_texts([path], vocabulary=256, length=4)
        assert "\x1b" not in str(caught.value)
        assert str(caught.value).splitlines()[1].startswith("  expected")
        assert str(caught.value).splitlines()[2].startswith("  next: list what is there: ls ")


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert directory_tokenizer(tmp_path) is None
    assert directory_tokenizer(tmp_path / "model.safetensors") is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SsmdiagError, match="its tokenizer cannot be read"):
        directory_tokenizer(tmp_path)
