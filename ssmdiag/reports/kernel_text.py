"""One layer's memory on the screen: the answer, its decay law, the kernel with its laws through it."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from ssmdiag.memory import summarise_memory
from ssmdiag.reports import words
from ssmdiag.reports.json import SCHEMA_VERSION, decay_document, plain
from ssmdiag.reports.pictures import decay_picture
from ssmdiag.status import Status

if TYPE_CHECKING:
    from ssmdiag.memory import LayerMemory
    from ssmdiag.reports.interface import Settings


def report(
    memory: LayerMemory, settings: Settings, *, path: str, channel: int | None, stated_context: int | None
) -> str:
    """Return the report of one layer; `stated_context` is None where nothing gave a context."""
    what = "kernel" if memory.is_kernel else "retention at the nominal point"
    where = memory.layer + (f", channel {channel}" if channel is not None else "")
    context = f"{memory.context:,} lags" + ("" if stated_context else " (no context is given: --length sets it)")
    paragraphs = [
        f"{words.checkpoint_name(path)}  {where}  {what}, {context}",
        memory.whole.describe(0),
        horizons(memory),
    ]
    lines = [line for text in paragraphs for line in textwrap.wrap(text, settings.width - 1, break_on_hyphens=False)]
    if not settings.quiet:
        if settings.plots and bool(memory.whole.fitted[0]):
            lines += ["", *decay_picture(summarise_memory(memory)[1], "", settings)]
        if memory.channels.channels > 1:
            counts = ", ".join(f"{count:,} {law.value}" for law, count in memory.channels.counts().items() if count)
            lines += ["", f"  channels by themselves: {counts}"]
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    return text if settings.unicode else text.translate(words.ASCII).encode("ascii", "replace").decode()


def horizons(memory: LayerMemory) -> str:
    """Return one sentence on the horizon, or on why there is none."""
    lags, status = memory.horizon.lags, memory.horizon.status
    known = lags[status == Status.KNOWN].sort().values
    parts = []
    if known.numel() == 1:
        parts.append(f"99 % of its energy has passed after {words.steps(float(known[0]))} steps.")
    elif known.numel():
        median, longest = float(known[known.numel() // 2]), float(known[-1])
        parts.append(
            f"99 % of a channel's energy has passed after {words.steps(median)} steps (median), "
            f"{words.steps(longest)} at most."
        )
    for code in Status:
        count = int((status == code).sum())
        if code is not Status.KNOWN and count:
            parts.append(f"{words.plural(count, 'channel')}: {code.sentence}.")
    return " ".join(parts)


def document(memory: LayerMemory, *, path: str, channel: int | None) -> dict[str, Any]:
    """Return the same as plain data."""
    lags = memory.horizon.lags
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "checkpoint": {"path": path},
            "layer": memory.layer,
            "channel": channel,
            "family": memory.family,
            "profile": "kernel" if memory.is_kernel else "retention",
            "context_length": memory.context,
            "horizon": [None if math.isnan(value) else value for value in lags.tolist()],
            "decay": decay_document(summarise_memory(memory)[1]),
            "lags": memory.edges.tolist(),
            "mean_square": memory.mean_square.nansum(0).tolist(),
        }
    )
