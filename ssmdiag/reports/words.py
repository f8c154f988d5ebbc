"""Numbers and sentences of reports, short enough to be read at a glance."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.printable import plural as plural
from ssmdiag.printable import printable

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.diagnosis import RemoteSource
    from ssmdiag.reports.interface import Settings

ASCII = str.maketrans({
    "×": "x", "τ": "tau", "λ": "lambda", "\u0304": "", "Δ": "dt", "π": "pi", "α": "alpha", "β": "beta", "σ": "sigma",
    "κ": "kappa", "ℓ": "l", "∞": "inf", "≥": ">=", "≤": "<=", "·": ".", "…": "...", "–": "-", "−": "-", "—": "-",
    "│": "|", "┤": "|", "├": "|", "└": "+", "┘": "+", "┌": "+", "┐": "+", "─": "-", "┬": "+", "┴": "+", "┼": "+",
    "▲": "^", "→": "->", "•": "*", "⢕": ".", "²": "^2",
    "±": "+-", "₀": "0",
})  # fmt: skip
"""ASCII replacements for the characters that reports use, for outputs that cannot carry them."""


def in_ascii(text: str) -> str:
    """Return the text in ASCII, as near as it comes.

    >>> in_ascii("τ ≥ 3 · λ̄")
    'tau >= 3 . lambda'
    """
    return text.translate(ASCII).encode("ascii", "replace").decode()


def checkpoint_name(path: str) -> str:
    """Return what a user calls the checkpoint: its file, its directory, or its name on the hub.

    >>> checkpoint_name("runs/step-100.ckpt"), checkpoint_name("hub/models--tiiuae--falcon-mamba-7b/snapshots/5337fd")
    ('step-100.ckpt', 'tiiuae/falcon-mamba-7b')
    >>> checkpoint_name("hf://tiiuae/falcon-mamba-7b@main")
    'tiiuae/falcon-mamba-7b'
    """
    if path.startswith("hf://"):
        return printable("/".join(path.removeprefix("hf://").partition("@")[0].split("/")[:2]))
    whole = Path(path).absolute()
    hub = next((part for part in whole.parts if part.startswith("models--")), None)
    file = Path(path).name or whole.resolve().name
    return printable(hub.removeprefix("models--").replace("--", "/") if hub else file)


def steps(value: float | None) -> str:
    """Return a number of steps in at most five characters.

    >>> [steps(v) for v in (0.034, 1.66, 85.2, 1234.0, 85_200.0, 3.4e7, float("inf"))]
    ['0.03', '1.7', '85', '1.2k', '85k', '34M', '∞']
    """
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    if value < 9.95:
        return f"{value:.1f}" if value >= 0.095 else f"{value:.1g}"
    if value < 999.5:
        return f"{value:.0f}"
    for size, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if value < 999.5 * size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0e}"


def brief(number: int) -> str:
    """Return a count in at most four characters.

    >>> brief(12), brief(81_920)
    ('12', '82k')
    """
    return str(number) if number < 1000 else steps(number)


def decade(exponent: int) -> str:
    """Return a power of ten as a tick on an axis in steps.

    >>> [decade(e) for e in (-1, 0, 2, 4, 6)]
    ['0.1', '1', '100', '10k', '1M']
    """
    if exponent < 0:
        return f"{10.0**exponent:g}"
    return f"{10 ** (exponent % 3)}{('', 'k', 'M', 'G', 'T')[exponent // 3]}"


def margin(value: float | None) -> str:
    """Return 1 − |λ̄| with two digits, under 0.01 with an exponent.

    >>> margin(0.3345), margin(8.3e-4), margin(-0.02), margin(0.0), margin(0.0099), margin(0.00996)
    ('0.33', '8.3e-4', '−0.02', '0', '9.9e-3', '0.01')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{size:.2g}" if size >= 0.00995 else f"{size:.1e}".replace("e-0", "e-")
    return ("−" if value < 0 else "") + text


def moved(source: RemoteSource) -> str:
    """Return how much of what is not on this machine was moved, and of which version."""
    version = (source.revision or "").strip('W/"')
    of = f", revision {version[:12]}" if version else ""
    size = f"{source.bytes / 1e6:.1f} MB" if source.bytes >= 1e6 else f"{source.bytes / 1e3:.0f} kB"
    return f"{size} moved in {plural(source.requests, 'request')}{of}"


def apart(first: float, last: float) -> tuple[str, str]:
    """Return two values of 1 − |λ̄| with two digits, or as many as it takes to tell them apart.

    >>> apart(0.018, 0.013), apart(1.0e-3, 1.0085e-3), apart(0.5, 0.5)
    (('0.018', '0.013'), ('1.00e-3', '1.01e-3'), ('0.5', '0.5'))
    """
    said = margin(first), margin(last)
    for digits in range(3, 16):
        if said[0] != said[1] or first == last:
            break
        said = _with_digits(first, digits), _with_digits(last, digits)
    return said


def _with_digits(value: float, digits: int) -> str:
    plain = f"{value:#.{digits}g}" if abs(value) >= 0.0095 else f"{value:.{digits - 1}e}".replace("e-0", "e-")
    return plain.replace("-", "−", 1) if value < 0 else plain


def in_steps(value: float | None) -> str:
    """Return a number of steps with its unit.

    >>> in_steps(1.0), in_steps(0.4), in_steps(6.0), in_steps(1234.0)
    ('1 step', '0.4 steps', '6 steps', '1.2k steps')
    """
    return plural(steps(value).removesuffix(".0"), "step")


def share_read(read: int, size: int) -> str:
    """Return how much of a file was read, and of how much, in one unit.

    >>> share_read(31_400, 62_720), share_read(22_400_000, 5_536_000_000)
    ('31 of 63 kB', '0.022 of 5.5 GB')
    """
    scale, unit = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    digits = [f"{value / scale:.0f}" if value >= 9.95 * scale else f"{value / scale:.2g}" for value in (read, size)]
    return f"{digits[0]} of {digits[1]} {unit}"


def factor(value: float | None) -> str:
    """Return by what factor a mode grows with a step: at least two digits of its excess over 1.

    >>> [factor(v) for v in (1.02, 1.5, 1.0001, 1.0000000123, 37.2, None)]
    ['1.02', '1.5', '1.0001', '1.000000012', '37.2', '–']
    """
    if value is None or not 1 < value < 2:
        return "–" if value is None else f"{value:.4g}"
    return f"{value:.{max(3, 1 - math.floor(math.log10(value - 1)))}f}".rstrip("0")


def families(titles: Iterable[str]) -> str:
    """Return the families of a model's layers, and how many layers each has.

    >>> families(["S4D", "Mamba-1", "S4D"])
    'S4D, 2 layers + Mamba-1, 1 layer'
    """
    return " + ".join(f"{title}, {plural(count, 'layer')}" for title, count in Counter(titles).items())


def margin_symbol(settings: Settings) -> str:
    """Return the heading of a column of margins."""
    return "1−|λ̄|" if settings.unicode else "1-|l|"


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters, cut between words.

    >>> shortened("layer a 0, b 1, c 2", 12)
    'layer a 0, …'
    """
    if len(text) <= most:
        return text
    return f"{text[: most - 1].rpartition(' ')[0]} …"


def extent(layers: Sequence[LayerDiagnosis]) -> str:
    """Return how many layers there are, and how many modes: convolutions have none."""
    modes = sum(layer.channels * layer.modes for layer in layers if layer.taps is None)
    return plural(len(layers), "layer") + (f", {plural(modes, 'mode')}" if modes or not layers else "")


def capitalised(text: str) -> str:
    """Return text with its first letter large.

    >>> capitalised("a guess: λ̄")
    'A guess: λ̄'
    """
    return f"{text[:1].upper()}{text[1:]}"


def heading(guess: str | None, width: int) -> str:
    """Return the lines that go above a report whose numbers rest on a guess; none where they do not."""
    return f"{textwrap.fill(f'{capitalised(guess)}.', width - 1, break_on_hyphens=False)}\n" if guess else ""
