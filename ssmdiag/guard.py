"""What others made must not end the program: the tensors of one layer, what another package adds to ssmdiag.

One unreadable layer costs only that layer: an error that its tensors cause becomes a `LayerError` with its name.
Families and measures raise errors of their own for what they expect; this is for unforeseen exceptions. It encloses
only the work on one layer: an exception anywhere else is a fault of the program and ends it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.printable import module_name

T = TypeVar("T")
LONGEST_TEXT = 200
"""Most characters of an exception's own text in the message."""


@contextmanager
def guard(layer: str, what: str) -> Iterator[None]:
    """Raise LayerError for any exception while `what` is done for a layer; an SsmdiagError passes unchanged.

    The traceback goes to the logger `ssmdiag` at level DEBUG, which SSMDIAG_DEBUG shows on the command line.
    """
    try:
        yield
    except SsmdiagError:
        raise
    except Exception as error:
        raise strange_layer(layer, what, error) from error


def strange_layer(layer: str, what: str, error: Exception) -> LayerError:
    """Return the LayerError for an unforeseen exception, and log its traceback."""
    import logging

    logging.getLogger("ssmdiag").debug("%s: %s failed", layer, what, exc_info=error)
    lines = str(error).strip().splitlines()
    text = f": {lines[0][:LONGEST_TEXT].rstrip('.')}" if lines else ""
    return LayerError(
        f"{module_name(layer)}: {what} failed with {type(error).__name__.lstrip('_')}{text}.",
        advice="compare its tensors with those of a sound layer; where they are as they should be, this is a fault of "
        "ssmdiag, and SSMDIAG_DEBUG=1 shows where.",
    )


def discover(package: str, path: Iterable[str], machinery: Collection[str], constant: str, kind: type[T]) -> list[T]:
    """Return `constant` of every module in a package but its machinery, and what entry points of other packages bring.

    Each has a `name`. Raises SsmdiagError where an entry point cannot be loaded, is not of the kind or has a name in
    use.
    """
    modules = [module.name for module in pkgutil.iter_modules(path) if module.name not in machinery]
    found: list[Any] = [getattr(importlib.import_module(f"{package}.{name}"), constant) for name in modules]
    for entry in entry_points(group=f"ssmdiag.{package.rpartition('.')[2]}"):
        where = f"entry point {entry.name} ({entry.value})"
        try:
            brought: Any = entry.load()
        except Exception as error:  # another package may raise anything at import
            raise SsmdiagError(
                f"{where} cannot be loaded: {type(error).__name__}: {error}.",
                advice="mend or uninstall the package that brings it.",
            ) from error
        if not isinstance(brought, kind):
            raise SsmdiagError(f"{where} is a {type(brought).__name__}.", expected=f"a {kind.__name__} of ssmdiag")
        found.append(brought)
        if found[-1].name in {known.name for known in found[:-1]}:
            raise SsmdiagError(
                f"{where} brings a {constant.lower()} {found[-1].name}, and there is one already.",
                advice="give it another name, or uninstall the package.",
            )
    return found
