"""One layer's kernel as a page or a picture: its law, its envelope with the laws that were compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmdiag.assessment.memory import summarise_memory
from ssmdiag.printable import module_name
from ssmdiag.reports import words
from ssmdiag.reports.kernel_text import Shown, answer, details, document, horizons
from ssmdiag.reports.page.page import Page, digits, steps
from ssmdiag.reports.page.pictures import decay_plot
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerMemory
    from ssmdiag.reports.drawing.picture import Picture


def page(memory: LayerMemory, shown: Shown, guess: str | None = None, *, command: str = "") -> Page:
    """Return the page of one layer's kernel, or retention."""
    decay = summarise_memory(memory)[1]
    data = document(memory, shown)
    title = f"{words.checkpoint_name(shown.path)}, {module_name(memory.layer)}: {data['profile']}"
    made = Page(title, answer(memory, decay, shown))
    if guess:
        made.warn(guess)
    made.paragraph(shown.chosen or "")
    made.paragraph(decay.sentence)
    made.paragraph(horizons(memory))
    whole = data["decay"]["layer"]
    made.heading("Law")
    names = ("exponent", "rate", "offset")
    rows = [[name, digits(whole[name], 5), digits(whole[f"{name}_error"])] for name in names if whole[name] is not None]
    if rows:
        made.table(f"Parameters of the chosen law, {whole['law']}", ["parameter", "value", "standard error"], rows)
    if whole["residual_db"]:
        residuals = [[law, digits(value)] for law, value in whole["residual_db"].items()]
        made.table("Rms residuals of the laws", ["law", "dB"], residuals)
    lags = [[name, steps(whole["lags"][key])] for name, key in _PASSED.items()]
    made.table("Lags after which so much of the energy has passed", ["energy", "steps"], lags)
    made.remarks(details(memory, decay, shown))
    made.heading("Pictures")
    made.gallery([main_picture(memory)])
    made.settings(
        command,
        {
            "checkpoint": shown.path,
            "layer": module_name(memory.layer),
            "channel": shown.channel,
            "context length": shown.stated_context or "none is given: --length sets it",
            "lags": memory.context,
            "ssmdiag": __version__,
        },
    )
    return made


_PASSED = {"50 %": "half", "90 %": "nine_tenths", "99 %": "ninety_nine"}


def main_picture(memory: LayerMemory) -> Picture | None:
    """Return the envelope with the laws that were compared; None where no law could be fitted."""
    decay = summarise_memory(memory)[1]
    what = "Kernel" if memory.is_kernel else "Retention" + " with gates at rest" * (not memory.time_invariant)
    return decay_plot(decay, f"{what} of {module_name(memory.layer)}") if decay.envelope else None
