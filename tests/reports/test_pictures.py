"""Pictures on screens: seen on a dark and on a light ground, within the width."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE
from ssmdiag.reports import Settings
from ssmdiag.reports.folding import Row, fold, label_layers
from ssmdiag.reports.pictures import decay_picture, disc, run_picture, time_constant_strip
from ssmdiag.reports.retrain.pictures import kernel_picture
from tests.reports.example_diagnoses import layer, remembering

BRIGHT = Settings(width=100, colour=True)
LAYERS = [remembering(layer(number, complex_=True)) for number in range(3)]
CURVES = {letter: [1.0, 0.5, 0.2 + 0.1 * at] for at, letter in enumerate("abcdefghi")}
DECAY = LAYERS[0].decay
assert DECAY is not None

PICTURES = {
    "disc": disc(fold(LAYERS, label_layers([one.name for one in LAYERS]), all_layers=True), BRIGHT),
    "decay": decay_picture(DECAY, "kernel: ", BRIGHT),
    "run": run_picture({k: [(0.0, v[0]), (9.0, v[2])] for k, v in CURVES.items()}, {"context": 0.7}, BRIGHT),
    "kernel": kernel_picture([1.0, 0.5, 0.25], CURVES, BRIGHT),
}
NOT_ON_EVERY_SCREEN = re.compile(r"\x1b\[(?:\d+;)*(?:4[0-8]|10[0-7]|3[07]|90|97|38;5;(?:0|7|8|15))(?:;\d+)*m")


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_has_no_ground_of_its_own_and_no_black_or_white(picture: str) -> None:
    text = "\n".join(PICTURES[picture])
    assert "\x1b[" in text
    assert NOT_ON_EVERY_SCREEN.findall(text) == []


def test_a_context_below_every_time_constant_has_its_own_place() -> None:
    bins = len(layer(0).histogram)
    slow = replace(layer(0), histogram=(0,) * (bins - 1) + (4,))
    ruler, bar, mark = time_constant_strip([Row("0", [slow])], 2048, FIRST_DECADE, BINS_PER_DECADE, Settings())
    assert ruler.split() == ["layer", "1k", "10k", "100k", "1M", "10M", "100M"]
    assert ruler.index("1k") < mark.index("▲") < ruler.index("10k")
    assert ruler.index("10M") < bar.index("█") < ruler.index("100M")
