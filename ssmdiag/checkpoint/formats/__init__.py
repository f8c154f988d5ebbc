"""Discovers every container format: one module each, plus entry points of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Refusal
from ssmdiag.errors import SsmdiagError

__all__ = ["FirstLook", "Format", "Refusal", "known_formats", "suffixes"]

MACHINERY = frozenset({
    "inert_pickle", "interface", "msgpack", "pickled_settings", "sequential", "table", "torch_archive",
})  # fmt: skip
"""Modules of this package that are not formats."""


@cache
def known_formats() -> tuple[Format, ...]:
    """Return all formats by name, envelopes last. Imports neither torch nor NumPy.

    Raises SsmdiagError where another package's entry point cannot be loaded, is not a `Format` or has a name in use.
    """
    found = [
        importlib.import_module(f"{__name__}.{module.name}").FORMAT
        for module in pkgutil.iter_modules(__path__)
        if module.name not in MACHINERY
    ]
    for entry in entry_points(group="ssmdiag.formats"):
        try:
            format = entry.load()
        except Exception as error:  # another package may raise anything at import
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}.",
                advice="mend or uninstall the package that brings it.",
            ) from error
        if not isinstance(format, Format):
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) is a {type(format).__name__}.", expected="a Format"
            )
        if format.name in {known.name for known in found}:
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) brings a format {format.name}, and there is one already.",
                advice="give it another name, or uninstall the package.",
            )
        found.append(format)
    return tuple(sorted(found, key=lambda format: (format.envelope, format.name.lower())))


@cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of files with weights."""
    return tuple(suffix for format in known_formats() for suffix in format.suffixes)
