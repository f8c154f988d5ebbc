"""One layer's memory on the screen: the answer, its decay law, the kernel with its laws through it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssmdiag.assessment.memory import summarise_memory
from ssmdiag.decay.comparison import AT_BOUND
from ssmdiag.decay.grid import SHORTEST_OFFSET
from ssmdiag.decay.tail import TAIL_STATUSES
from ssmdiag.decay.verdict import LAWS, STATUSES, Law
from ssmdiag.families import has_fixed_decay
from ssmdiag.kernel.status import Status
from ssmdiag.printable import module_name, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import AT_REST, Answer, attention
from ssmdiag.reports.console import joined, most_lines, styled, wrap
from ssmdiag.reports.json import LAGS, SCHEMA_VERSION, decay_document, pick, plain, tail_document
from ssmdiag.reports.pictures import decay_picture, decay_strip

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.assessment.memory import LayerDecay, LayerMemory
    from ssmdiag.decay.comparison import ChannelDecay, DecayComparison
    from ssmdiag.kernel.file import WrittenKernels
    from ssmdiag.reports.interface import Settings

FREE = {
    "exponent": (Law.POLYNOMIAL, Law.TRUNCATED),
    "rate": (Law.EXPONENTIAL, Law.TRUNCATED),
    "offset": (Law.POLYNOMIAL, Law.TRUNCATED),
}
"""Laws that have each parameter."""


@dataclass(frozen=True)
class Shown:
    """What is shown of which file."""

    path: str
    channel: int | None = None
    """The one channel of its layer; None for all."""
    stated_context: int | None = None
    """None where no context is known."""
    branches: tuple[str, ...] = ()
    """Names of all recurrences of the layer."""
    layers: tuple[str, ...] = ()
    """Families of the layers of which it is the first that can be read; empty where it was asked for."""
    skipped: int = 0
    """How many layers before it could not be read."""
    wrong: tuple[str, ...] = ()
    """What is wrong with the checkpoint, as parts of the answer."""
    label: str = ""
    """What tells it from these layers, such as its number."""
    attention_layers: tuple[str, ...] = ()
    """Paths of the attention layers of the model; empty where the layer was asked for."""
    chosen: str | None = None
    """Which checkpoint of its run it is; None where the path is that of a checkpoint."""


def report(memory: LayerMemory, settings: Settings, shown: Shown) -> str:
    """Return the report of one layer."""
    memory, shown = printable_record((memory, shown))
    decay = summarise_memory(memory)[1]
    what = "kernel" if memory.is_kernel else "retention" + " with the gates at rest" * (not memory.time_invariant)
    where = module_name(memory.layer) + (f", channel {shown.channel}" if shown.channel is not None else "")
    given = "" if shown.stated_context else " (no context is given: --length sets it)"
    context = f"{words.plural(memory.context, 'lag')}{given}"
    said = answer(memory, decay, shown)
    lines = [styled(line, said.style, settings) for line in wrap(said.line, settings)]
    if settings.quiet:
        return joined(lines, settings)
    head = f"{words.checkpoint_name(shown.path)}  {where}  {what}, {context}"
    for text in (head, shown.chosen):
        lines += wrap(text, settings) if text else []
    below: list[str] = []
    if settings.plots and bool(memory.whole.fitted[0]):
        layer = f"layer {shown.label}" if shown.label else module_name(memory.layer)
        short = layer if shown.channel is None else f"channel {shown.channel}"
        picture = decay_picture(decay, "", settings) if settings.full else decay_strip(decay, f"{short}, rms", settings)
        below += ["", *picture]
    more = details(memory, decay, shown) if settings.full else _elsewhere(memory, shown)
    below += ["", *_indented(more, settings)] if more else []
    sentences = [
        *re.split(r"(?<=\.) (?=[A-Z\d])", decay.sentence),
        horizons(memory) if settings.full else _unknown(memory),
    ]
    return joined([*lines, *_fitting(sentences, len(lines) + len(below), settings), *below], settings)


def _fitting(sentences: Sequence[str], others: int, settings: Settings) -> list[str]:
    """Return a paragraph's lines; of a short report without the last sentences where it else has too many."""
    for count in range(len(sentences), 0, -1):
        paragraph = wrap(" ".join(sentences[:count]).strip(), settings)
        if settings.full or len(paragraph) + others <= most_lines(settings):
            break
    return paragraph


def answer(memory: LayerMemory, decay: LayerDecay, shown: Shown) -> Answer:
    """Return the law that the layer decays by, if one was found, and how far it reaches; and which layer it is."""
    told = _answer(memory, decay, is_told=any(code in text for text in shown.wrong for code in ("SSM101", "SSM401")))
    which = ""
    if len(shown.layers) > 1:
        which = f"layer {shown.label}, {_first(shown)} {words.plural(len(shown.layers), 'recurrent layer')}: "
    said = [*shown.wrong, which + told.text, *attention(shown.attention_layers)]
    return Answer("problem" if shown.wrong else told.status, "; ".join(said))


def _first(shown: Shown) -> str:
    return "the first readable of" if shown.skipped else "the first of"


def _answer(memory: LayerMemory, decay: LayerDecay, *, is_told: bool) -> Answer:
    """Return what is known of the layer; `is_told` where what is wrong with the checkpoint is said before it."""
    status = memory.horizon.status
    rest = "" if memory.time_invariant else f" {AT_REST}"
    broken = [
        f"{words.plural(count, 'channel')}: {code.sentence}"
        for code in (Status.NOT_FINITE, Status.GROWS)
        if (count := int((status == code).sum()))
    ]
    broken = [] if is_told else broken
    law, window = decay.law
    found = decay.whole.law not in (Law.UNDETERMINED, Law.FINITE) or decay.tail is not None
    reach, (endless, beyond) = _passed(memory, "" if found else rest), _lasting(memory)
    known = bool(reach)
    if memory.taps is not None:
        taps, last = words.plural(memory.taps, "tap"), int((_known(memory) or [memory.taps - 1])[-1])
        said = [f"a convolution of {taps}: nothing older than {words.plural(last, 'step')} reaches its output"]
    elif law == "flat" and endless and not beyond and not _known(memory):
        design = ", by design" * has_fixed_decay(memory.family)
        said = [f"never decays{design}{rest}, and holds what is written until it is overwritten"]
    else:
        lags = f" over lags {window[0]:,} to {window[1]:,}" if window else ""
        said = [f"{_NAMED.get(law, f'decays: {law}')}{lags}{rest}"] if found else []
        said += [reach] if reach else []
        said += [] if found else ["no one law is told" if reach else f"neither law nor horizon is known{rest}"]
    return Answer("problem" if broken else "ok" if known else "undetermined", "; ".join([*broken, *said]))


def _known(memory: LayerMemory) -> list[float]:
    """Return the horizons that are known, in steps, the longest last."""
    lags: list[float] = memory.horizon.lags[memory.horizon.status == Status.KNOWN].sort().values.tolist()
    return lags


def _lasting(memory: LayerMemory) -> tuple[int, int]:
    """Return how many channels' energy never runs out, and how many's lasts for more than 2⁴⁰ steps."""
    status = memory.horizon.status
    return int((status == Status.BOUNDARY).sum()), int((status == Status.BEYOND).sum())


def _passed(memory: LayerMemory, rest: str = "") -> str:
    """Return when 99 % of the energy has passed, in the median channel and at most; empty where nothing is known."""
    known, (endless, beyond) = _known(memory), _lasting(memory)
    if not (count := len(known) + endless + beyond):
        return ""
    longer = [f"never in {endless:,} of {count:,}"] if endless else []
    longer += [f"after more than 10¹² steps in {beyond:,} of {count:,}"] if beyond else []
    if not known and len(longer) == 1:
        return f"its energy never runs out{rest}" if endless else f"99 % of its energy takes more than 10¹² steps{rest}"
    if count // 2 >= len(known):
        most = [f"after {words.in_steps(known[-1])}{' at most' * (len(known) > 1)} in {len(known):,} of {count:,}"]
        return f"99 % of the energy has passed {' and '.join([*(most if known else []), *longer])} channels{rest}"
    median, longest = known[count // 2], words.steps(known[-1])
    reach = f"99 % of its energy has passed after {words.in_steps(median)}{rest}"
    if not longer and words.steps(median) == longest:
        return reach
    return f"{reach} in the median channel, {' and '.join(longer) or f'{longest} at most'}"


_NAMED = {
    "exponential": "decays exponentially",
    "polynomial": "decays polynomially",
    "truncated": "decays polynomially, with an exponential cut-off,",
    "flat": "does not decay",
    "flat tail": "its tail does not decay",
    "exp. tail": "its tail decays exponentially",
    "exp. tails": "its tail decays as a sum of exponentials",
    "exp. band": "its tail decays as a band of exponentials",
}
"""What a layer does, by the law that the table of `inspect` has."""


def details(memory: LayerMemory, decay: LayerDecay, shown: Shown) -> list[str]:
    """Return sentences on the fits, on how steep each decade is, on the channels and the other layers."""
    return [*_fits(decay.whole), *_exponents(decay), *_remarks(memory, shown)]


def horizons(memory: LayerMemory) -> str:
    """Return sentences on the horizon, and on why channels have none; a convolution's own says where it ends."""
    passed = "" if memory.taps is not None else _passed(memory)
    return " ".join([f"{words.capitalised(passed)}." * bool(passed), _unknown(memory)]).strip()


def _unknown(memory: LayerMemory) -> str:
    """Return a sentence for each reason why channels have no horizon."""
    counts = {code: int((memory.horizon.status == code).sum()) for code in Status if code is not Status.KNOWN}
    return " ".join(f"{words.plural(count, 'channel')}: {code.sentence}." for code, count in counts.items() if count)


def with_error(value: float, error: float) -> str:
    """Return a number with its standard error, to two digits of it and five of the number.

    >>> with_error(1.09987, 0.0034), with_error(2.0511e-05, 1.7e-7), with_error(12345.6, 310.0), with_error(0.5, 0.0)
    ('1.0999 ± 0.0034', '2.051e-05 ± 1.7e-07', '12,346 ± 310', '0.5 ± 0')
    """
    size = abs(value)
    if not (math.isfinite(error) and error > 0 and size > 0):
        return f"{value:.4g} ± {error:.2g}"
    last = 1 - math.floor(math.log10(error))
    first = math.floor(math.log10(size))
    if not 1e-3 <= size < 1e6:
        return f"{value:.{min(max(first + last, 1), 4)}e} ± {error:.1e}"
    decimals = max(min(last, 4 - first), 0)
    return f"{value:,.{decimals}f} ± " + (f"{error:.1g}" if error < 10.0**-decimals else f"{error:,.{decimals}f}")


def _fits(decay: ChannelDecay) -> list[str]:
    """Return one sentence on the residual of each law, and one on the parameters of the chosen law."""
    if decay.residual_db is None:
        return []
    left = [f"{law.value} {f'{dB:.2g}' if dB >= 1e-3 else '<0.001'} dB" for law, dB in decay.residual_db.items()]
    said = [f"rms residuals: {', '.join(left)}"]
    units = {"exponent": "exponent {}", "offset": "t₀ {} steps", "rate": "rate {} per step"}
    parameters = []
    for name, unit in units.items():
        value, error = getattr(decay, name), getattr(decay, f"{name}_error")
        if value is not None and error is not None:
            parameters.append(unit.format(with_error(value, error)))
    if decay.offset_at_bound:
        parameters.append(f"t₀ at its bound of {SHORTEST_OFFSET:g} steps")
    return [*said, f"{decay.law.value}: {', '.join(parameters)} (standard errors)"] if parameters else said


def _exponents(decay: LayerDecay) -> list[str]:
    """Return one sentence on how steep the envelope is in each decade of lags."""
    each = ", ".join(f"{exponent:.2g} over {first:,}–{last:,}" for first, last, exponent in decay.exponents)
    return [f"local exponent −d log e/d log t: {each}"] if each else []


def _remarks(memory: LayerMemory, shown: Shown) -> list[str]:
    said = []
    if memory.channels.channels > 1:
        counts = ", ".join(f"{count:,} {law.value}" for law, count in memory.channels.counts().items() if count)
        said.append(f"channels by themselves: {counts}")
        tails = ", ".join(f"{count:,} {law.value}" for law, count in memory.remaining.tails.counts().items() if count)
        said.append(f"their tails by the modes: {tails}")
    return [*said, *_elsewhere(memory, shown)]


def _elsewhere(memory: LayerMemory, shown: Shown) -> list[str]:
    """Return what else of the checkpoint can be shown."""
    said = []
    if others := [name for name in shown.branches if name != memory.layer]:
        said.append(f"also in this layer: {', '.join(others)}; --layer {json.dumps(others[0])} shows it")
    if len(shown.layers) > 1:
        families = f" ({words.families(shown.layers)})" if len(set(shown.layers)) > 1 else ""
        said.append(f"{_first(shown)} {len(shown.layers):,} layers{families}; --layer shows another")
    return said


def file_report(written: WrittenKernels, settings: Settings, *, output: str, stated_context: int | None) -> str:
    """Return what was written to a file, and which of it is no ordinary kernel."""
    written, output = printable_record((written, output))
    tensors = written.tensors.values()
    kinds = [name.rpartition(".")[2] for name in written.tensors]
    counts = [words.plural(kinds.count(kind), kind) for kind in ("kernel", "retention") if kind in kinds]
    default = "" if stated_context else " (no context is given: --length sets it)"
    said = [f"{output}: {' and '.join(counts)} of {written.length:,} lags{default}, {_size(written.size)}"]
    for code in Status:
        found = {about["layer"]: about["status"].get(code.name.lower(), 0) for about in tensors}
        said += _among(found, "channel", code.sentence)
    said += _among({about["layer"]: about["not_finite"] for about in tensors}, "value", "written as NaN or infinity")
    return joined([said[0], *_indented(said[1:], settings)], settings)


def _size(count: int) -> str:
    scale, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e5 else (1e3, "kB")
    return f"{count / scale:.1f} {unit}"


def _among(counts: dict[str, int], noun: str, sentence: str) -> list[str]:
    if not (where := [layer for layer, count in counts.items() if count]):
        return []
    layers = where[0] if len(where) == 1 else f"{len(where):,} layers, {where[0]} the first"
    return [f"{words.plural(sum(counts.values()), noun)} of {layers}: {sentence}"]


def document(memory: LayerMemory, shown: Shown) -> dict[str, Any]:
    """Return the same as plain data, the channels one by one besides."""
    found = summarise_memory(memory)[1]
    decay = decay_document(found)
    decay["layer"]["offset_error"] = found.whole.offset_error
    horizon = memory.horizon.lags.tolist()
    status = _names([code.name.lower() for code in Status], memory.horizon.status)
    return plain({
        "schema_version": SCHEMA_VERSION,
        **pick(answer(memory, found, shown), "status answer=text"),
        "checkpoint": {"path": shown.path, "chosen": shown.chosen},
        "layer": memory.layer,
        **pick(shown, "branches channel attention_layers"),
        "layers": len(shown.layers) or 1,
        "family": memory.family,
        "profile": "kernel" if memory.is_kernel else "retention",
        "context_length": memory.context,
        "horizon": horizon,
        "decay": decay,
        "channels": columns(memory.channels) | _remaining(memory) | {"horizon": horizon, "horizon_status": status},
        "lags": memory.edges.tolist(),
        "mean_square": memory.mean_square.nansum(0).tolist(),
    })  # fmt: skip


def columns(channels: DecayComparison) -> dict[str, list[Any]]:
    """Return law, parameters and window of every channel; None where a law does not have them."""
    import torch

    laws = [law.value for law in LAWS]
    data: dict[str, list[Any]] = {
        "law": _names(laws, channels.law),
        "status": _names([status.name.lower() for status in STATUSES], channels.status),
    }
    for name, among in FREE.items():
        for field in (name, f"{name}_error"):
            values = torch.full(channels.law.shape, torch.nan, dtype=torch.float64, device=channels.law.device)
            for law in among:
                values = getattr(channels.fits[law], field).where(channels.law == LAWS.index(law), values)
            if field == "offset_error":
                offset = torch.as_tensor(data["offset"], dtype=torch.float64, device=values.device)
                values = values.where(offset > AT_BOUND * SHORTEST_OFFSET, torch.nan)
            data[field] = values.tolist()
    windows = torch.stack([channels.first, channels.last], 1).tolist()
    fitted = channels.fitted.tolist()
    return data | {"window": [window if known else None for window, known in zip(windows, fitted, strict=True)]}


def _remaining(memory: LayerMemory) -> dict[str, list[Any]]:
    """Return the tail, and the lags of 50, 90 and 99 % of the energy, of every channel."""
    tails, passing = memory.remaining.tails, memory.remaining.channels
    rows = [tails.row(index) for index in range(memory.channels.channels)]
    data: dict[str, list[Any]] = {
        "tail": [tail and tail_document(tail) for tail in rows],
        "tail_reason": _names([status.value for status in TAIL_STATUSES], tails.status),
        "slowest_rate": tails.slowest.tolist(),
    }
    if passing is not None:
        data["lags"] = [dict(zip(LAGS, lags, strict=True)) for lags in passing.lags.tolist()]
        data["heaviness"] = passing.heaviness.tolist()
    return data


def render(data: dict[str, Any]) -> str:
    """Return the document as JSON, one line for each list: there may be 300,000 channels."""
    return _render(data, "") + "\n"


def _render(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inside = indent + "  "
    entries = [f"{inside}{json.dumps(key)}: {_render(entry, inside)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _names(names: Sequence[str], index: Tensor) -> list[str]:
    return [names[position] for position in index.tolist()]


def _indented(paragraphs: Iterable[str], settings: Settings) -> list[str]:
    return [line for text in paragraphs for line in wrap(f"  {text}", settings)]
