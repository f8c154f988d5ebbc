"""The one escape: nothing it lets through acts on a terminal or a CI runner, and what is read back is read exactly."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.printable import harmless, printable, printable_record

ANY = st.text(st.characters(codec=None))
"""Lone surrogates too."""
COMMAND = re.compile(r"^\s*::|##\w*\[", re.MULTILINE)
"""What GitHub's and Azure's runners and TeamCity look for in a line."""


def acts(text: str, layout: str = "") -> list[str]:
    """Return the characters that a terminal obeys or nobody sees, but for those of the layout."""
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    direction = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI", "BN"}
    joiners = "\u200c\u200d"
    return [
        character
        for character in text
        if (unicodedata.category(character) in kinds or unicodedata.bidirectional(character) in direction)
        and character not in layout + joiners
    ]


@given(ANY)
def test_a_printable_text_is_one_line_that_acts_on_nothing(text: str) -> None:
    shown = printable(text)
    assert acts(shown) == []
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"##\w*\[", shown)
    assert printable(shown) == shown


@given(st.lists(st.sampled_from([*"\x1b[31m\r\n\t :#vso[x\u202e\x9b\u2028\u00a0\u3000"]), max_size=12).map("".join))
def test_no_line_of_a_harmless_text_is_a_command(text: str) -> None:
    shown = harmless(text, colours=True)
    assert not COMMAND.search(re.sub(r"\x1b\[[0-9;]*m", "", shown))
    assert acts(re.sub(r"\x1b\[[0-9;]*m", "", shown), "\t\n") == []
    assert harmless(shown, colours=True) == shown
    assert acts(harmless(text), "\t\n") == []
    assert shown.count("\n") == text.count("\n")


@given(st.dictionaries(ANY, ANY, max_size=3), st.booleans())
def test_json_passes_both_gates_without_a_change_of_value(data: dict[str, str], ascii_: bool) -> None:
    for text in (harmless(json.dumps(data, ensure_ascii=ascii_, indent=2)), harmless(json.dumps(data))):
        assert json.loads(text) == data
        assert acts(text, "\n") == []
        assert not COMMAND.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "layers.0.σ_τ",
        "模型.层.0",
        "модель",
        "🙂👩\u200d💻🏳️",
        "א.ב",
        "naïve·½ – 1−|λ̄| ⢕▁█│",
        "a::b",
        "##",
        "C:\\x",
        "[bold]",
    ],
)
def test_legitimate_names_stay_as_they_are(text: str) -> None:
    assert printable(text) == harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[2J\x9b\x7f\x00", r"\u001b[2J\u009b\u007f\u0000"),
        ("\u202egnp\u2069\u200e\u061c", r"\u202egnp\u2069\u200e\u061c"),
        ("a\u200bb\ufeff\xad\u2028", r"a\u200bb\ufeff\u00ad\u2028"),
        ("wei\u200dght", r"wei\u200dght"),
        ("\udc80\ud800", r"\udc80\ud800"),
        ("\U000e0041", r"\udb40\udc41"),
        ("##[add-mask]x ##vso[task] ##teamcity[x]", r"\u0023#[add-mask]x \u0023#vso[task] \u0023#teamcity[x]"),
    ],
)
def test_what_hides_or_acts_is_shown_as_its_code(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_our_own_line_ends_and_colours_pass_the_second_gate_and_nothing_else() -> None:
    assert harmless("\x1b[1;31mred\x1b[0m\n  │ τ\n", colours=True) == "\x1b[1;31mred\x1b[0m\n  │ τ\n"
    assert harmless("\x1b[1;31mred\n") == "\\u001b[1;31mred\n"
    assert harmless("\x1b]0;title\x07\x1b[2J", colours=True) == r"\u001b]0;title\u0007\u001b[2J"
    shown = "\u3000\x1b[1m \\u003a:stop-commands::x"
    assert harmless("\u3000\x1b[1m ::stop-commands::x", colours=True) == shown
    assert harmless("::error::ours", commands=True) == "::error::ours"


class _Kind(StrEnum):
    ODD = "odd\n"


@dataclass(frozen=True)
class _Layer:
    name: str
    sizes: tuple[int, ...]
    values: torch.Tensor

    @cached_property
    def title(self) -> str:
        return self.name.upper()


@dataclass(frozen=True, slots=True)
class _Model:
    layers: tuple[_Layer, ...]
    by_name: dict[str, _Layer]
    where: Path
    kind: _Kind


def _model(name: str) -> _Model:
    layer = _Layer(name, (1, 2), torch.ones(2))
    assert layer.title
    return _Model((layer, layer), {name: layer}, Path(name), _Kind.ODD)


def test_every_string_of_a_record_is_printable_however_deep_it_lies() -> None:
    raw = _model("a\nb")
    shown = printable_record(raw)
    assert shown.layers[0].name == shown.layers[0].title.lower() == str(shown.where) == r"a\nb"
    assert list(shown.by_name) == [r"a\nb"]
    assert shown.by_name[r"a\nb"] is shown.layers[0] is shown.layers[1], "what was one object stays one"
    assert shown.layers[0].values is raw.layers[0].values
    assert shown.kind is _Kind.ODD
    assert raw.layers[0].name == "a\nb", "the record itself keeps the names"


def test_a_record_of_ordinary_names_is_handed_on_as_it_is() -> None:
    raw = _model("layers.0.σ")
    assert printable_record(raw) is raw


def test_the_message_of_an_error_breaks_no_line_but_its_own() -> None:
    error = SsmdiagError(
        "x\n  next: rm -rf /", expected="\x1b[31m", advice="a\rb", details=["one\n::add-mask::x"], sample=["", "k = 1"]
    )
    assert str(error).split("\n") == [
        r"x\n  next: rm -rf /", r"  one\n::add-mask::x", r"  expected: \u001b[31m", r"  next: a\rb", "", "k = 1",
    ]  # fmt: skip
    assert "\n" not in LayerError("a\nb", details=["c\nd"]).sentence
    assert error.seen == "x\n  next: rm -rf /", "programs get what was seen"
