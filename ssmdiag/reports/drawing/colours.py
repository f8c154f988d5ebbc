"""Colours of pages and pictures, light and dark: every text has a contrast of 4.5 or more on every ground it is on."""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff", "raised": "#f4f5f7", "ink": "#1b1f24", "quiet": "#525a66", "edge": "#c9ced6",
    "good": "#0b6636", "note": "#0b57a4", "warning": "#7f5000", "error": "#a8071a",
    "c0": "#0b57a4", "c1": "#a83c08", "c2": "#0b6b4b", "c3": "#76399a", "c4": "#6a5200", "c5": "#9c1f5b",
}  # fmt: skip
DARK = {
    "ground": "#14171c", "raised": "#1e232b", "ink": "#e8eaed", "quiet": "#a9b1bd", "edge": "#414a57",
    "good": "#5fd38a", "note": "#7cbcff", "warning": "#f0c05a", "error": "#ff9191",
    "c0": "#7cbcff", "c1": "#ff9e64", "c2": "#5fd3a2", "c3": "#d2a8ff", "c4": "#e3c46b", "c5": "#ff9ac5",
}  # fmt: skip
CURVES = 6
"""Curves that have a colour, a dash and a mark of their own."""
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "1 4")

STYLE = (
    "svg.picture{font:13px system-ui,-apple-system,'Segoe UI','Liberation Sans',sans-serif;display:block;"
    "max-width:100%;height:auto}"
    ".picture text{fill:var(--ink)}.picture .quiet{fill:var(--quiet)}"
    ".picture .ground{fill:var(--ground)}.picture .frame{fill:none;stroke:var(--edge)}"
    ".picture .grid{stroke:var(--edge);stroke-width:.6;fill:none}"
    ".picture .limit{stroke:var(--ink);stroke-dasharray:3 3;fill:none}"
    ".picture .heat{fill:var(--c0)}.picture .curve{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    + "".join(
        f".picture .c{k}{{stroke:var(--c{k});stroke-dasharray:{dash or 'none'}}}.picture .d{k}{{fill:var(--c{k})}}"
        for k, dash in enumerate(DASHES)
    )
)
"""Rules for pictures, all below the class of their element."""


def variables(selector: str) -> str:
    """Return the rules that set the colours on an element: light, dark where the reader's system is, light in print."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return (
        f"{selector}{{{light};color-scheme:light dark}}"
        f"@media screen and (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
    )
