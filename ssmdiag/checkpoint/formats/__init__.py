"""Discovers every container format: one module each, plus entry points of other packages."""

from __future__ import annotations

from functools import cache

from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Refusal
from ssmdiag.guard import discover

__all__ = ["FirstLook", "Format", "Refusal", "known_formats", "suffixes"]

MACHINERY = frozenset({
    "dcp_metadata", "inert_pickle", "interface", "jax_tree", "megatron_parts", "msgpack", "pickled_settings",
    "sequential", "table", "torch_archive", "zarr_metadata",
})  # fmt: skip
"""Modules of this package that are not formats."""


@cache
def known_formats() -> tuple[Format, ...]:
    """Return all formats by name, envelopes last. Imports neither torch nor NumPy.

    Raises SsmdiagError where another package's entry point cannot be loaded, is not a `Format` or has a name in use.
    """
    found = discover(__name__, __path__, MACHINERY, "FORMAT", Format)
    return tuple(sorted(found, key=lambda format: (format.envelope, format.name.lower())))


@cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of files with weights."""
    return tuple(suffix for format in known_formats() for suffix in format.suffixes)
