"""One file → its container, chosen by content and not by suffix."""

from __future__ import annotations

import itertools
from pathlib import Path

from ssmdiag.checkpoint.budget import require_file
from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.formats import FirstLook, known_formats
from ssmdiag.checkpoint.location import Location, source_of
from ssmdiag.checkpoint.sources import Source
from ssmdiag.errors import CheckpointError


def open_container(path: Location) -> Container:
    """Open one file in the format that its content shows. Raises CheckpointError, OSError."""
    require_file(path)
    try:
        return open_source(source_of(path))
    except EOFError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error}).", advice="save or download it again; wait while it is written."
        ) from error


def open_source(source: Source) -> Container:
    """Open one file from any source in the format that its content shows. Raises CheckpointError, EOFError, OSError."""
    look = FirstLook(source)
    if not look.head:
        raise CheckpointError(f"{source.name} is empty (0 bytes).", advice="save or download it again.")
    for format in known_formats():
        for refusal in format.refusals:
            if refusal.knows(look):
                raise refusal.error(source)
    by_content = (format for format in known_formats() if format.recognises(look))
    by_suffix = (format for format in known_formats() if Path(look.name).suffix in format.suffixes)
    found = next(itertools.chain(by_content, by_suffix), None)
    if found is None or found.open is None:
        raise _unknown(look)
    return found.open(source)


def _unknown(look: FirstLook) -> CheckpointError:
    formats = known_formats()
    conversions = {suffix: advice for format in formats for suffix, advice in format.conversions.items()}
    kinds = [f"{format.name} ({' '.join(format.suffixes)})" for format in formats if format.suffixes]
    return CheckpointError(
        f"{look.name} is not a checkpoint ssmdiag knows (it begins with {look.head[:8]!r}).",
        expected=f"{', '.join(kinds)}, or a model directory",
        advice=conversions.get(Path(look.name).suffix, "save the state dict with safetensors.torch.save_file."),
    )
