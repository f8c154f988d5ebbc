"""One unreadable layer costs only that layer: an error that its tensors cause becomes a `LayerError` with its name.

Families and measures raise errors of their own for what they expect; this is for unforeseen exceptions. It encloses
only the work on one layer: an exception anywhere else is a fault of the program and ends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssmdiag.errors import LayerError, SsmdiagError

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
        f"{layer or 'the layer at the top of the file'}: {what} failed with {type(error).__name__.lstrip('_')}{text}.",
        advice="compare its tensors with those of a sound layer; where they are as they should be, this is a fault of "
        "ssmdiag, and SSMDIAG_DEBUG=1 shows where.",
    )
