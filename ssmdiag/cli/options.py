"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.errors import AssumptionError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.families import Family


class Device(StrEnum):
    """Values of --device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def choose_device(choice: Device) -> str:
    """Return the torch device of --device. Raises SsmdiagError where it is not there."""
    import torch

    if choice is Device.cuda and not torch.cuda.is_available():
        raise SsmdiagError("--device cuda: torch sees no CUDA device.", advice="--device cpu")
    return "cpu" if choice is Device.auto else choice.value


def load_families(map_file: Path | None) -> list[Family]:
    """Return all known families, and those that --map declares. Raises MapFileError."""
    from ssmdiag.families import known_families

    families = list(known_families())
    if map_file:
        from ssmdiag.families.mapfile import read_map

        families += read_map(map_file)
    return families


def parse_assumptions(pairs: list[str]) -> dict[str, str]:
    """Return --assume's pairs as a mapping. Raises AssumptionError for anything but KEY=VALUE."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (separator and key and value):
            raise AssumptionError(
                f"--assume {pair}: not a pair.", expected="KEY=VALUE, such as real_transform=softplus"
            )
        parsed[key.strip()] = value.strip()
    return parsed


def parse_outputs(pairs: list[str]) -> list[tuple[str, Path]]:
    """Return --also's pairs. Raises SsmdiagError for anything but FORMAT=FILE."""
    from ssmdiag.reports import formats

    known = [format for format in formats() if format != "text"]
    parsed = []
    for pair in pairs:
        format, _, file = pair.partition("=")
        if format not in known or not file:
            raise SsmdiagError(f"--also {pair}: not understood.", expected=f"FORMAT=FILE; FORMAT: {', '.join(known)}")
        parsed.append((format, Path(file)))
    return parsed
