"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from ssmdiag.cli.counts import a_count
from ssmdiag.cli.process import import_torch
from ssmdiag.cli.terminal import Colour
from ssmdiag.errors import AssumptionError, SsmdiagError, meant

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.families import Family
    from ssmdiag.families.layer import Layer
    from ssmdiag.families.recognition import Recognition
    from ssmdiag.recurrence.modal import Recurrence

if not TYPE_CHECKING:
    Location = Path  # Typer takes no union of types, and leaves the choice to the parser
MAX_LENGTH = 2**40
"""`kernel.powers.MAX_LAG`, which cannot be imported without torch."""


def parse_location(text: str) -> Location:
    """Return where a path or an address leads to."""
    from ssmdiag.checkpoint.location import locate

    return locate(text)


def only_here(text: str) -> Path:
    """Return a path. Raises SsmdiagError for an address: the command needs all of the file on this machine."""
    from ssmdiag.checkpoint.location import is_address
    from ssmdiag.checkpoint.remote_path import without_secrets

    if is_address(text):
        model, _, revision = text.removeprefix("hf://").partition("@")
        download = f"hf download {model}{f' --revision {revision}' if revision else ''} --local-dir DIR"
        raise SsmdiagError(
            f"{without_secrets(text)}: this command reads whole files, or watches a folder, on this machine.",
            expected="a path",
            advice=f"{download if text.startswith('hf://') else 'download it'}, and name the copy.",
        )
    return Path(text)


def check_length(steps: int | None) -> int | None:
    """Return a number of steps. Raises BadParameter above the largest lag."""
    if steps is not None and steps > MAX_LENGTH:
        raise typer.BadParameter(f"{steps:,} steps are too many; memory is known up to 2**40, {MAX_LENGTH:,}.")
    return steps


Paths = Annotated[
    list[Location],
    typer.Argument(
        metavar="PATH",
        parser=parse_location,
        help="Checkpoint files, shard indexes, model directories, hf://org/model, https://…, s3://…; @FILE: those it "
        "names, one a line; @-: stdin.",
        show_default=False,
    ),
]
OnePath = Annotated[
    Location,
    typer.Argument(
        metavar="PATH", parser=parse_location, help="A checkpoint; of a run's folder its newest.", show_default=False
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        "--length",
        "--context",
        metavar="STEPS",
        parser=a_count(context=True),
        callback=check_length,
        help="Context length, 4096 or 4k; by default what config.json says.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report to this file.")]
Lines = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the report to this file; lines of jsonl are added."),
]
"""--output of the commands that can append to their file."""
Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume", metavar="KEY=VALUE", help="Choose what tensors do not determine; `ssmdiag families` lists it."
    ),
]
MapFile = Annotated[
    Path | None,
    typer.Option("--map", metavar="MAP.TOML", help="Declare the tensors of a model ssmdiag does not know."),
]
EveryChannel = Annotated[
    bool,
    typer.Option("--every-channel", help="All channels, not 64 a layer or fewer; seconds for large models."),
]
AllLayers = Annotated[bool, typer.Option("--all", help="One row per layer: do not fold layers that repeat.")]
Full = Annotated[bool, typer.Option("--full", help="Every picture, table and sentence, not the short report.")]
Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the pictures.")]
Color = Annotated[Colour, typer.Option("--color", help="Colour the report.")]
Isolated = Annotated[bool, typer.Option("--isolated", help="Read no settings file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the answer; show no progress.")]


Format = Literal["text", "json"]
"""Values of --format, of commands that print a list or a page of help."""
Shown = Literal["text", "json", "html", "svg"]
"""Values of --format, of commands whose report is a text, a document, a page or its main picture."""
FORMATS: tuple[str, ...] = get_args(Shown)
Device = Literal["auto", "cpu", "cuda"]
"""Values of --device."""
ReportFormat = Annotated[
    Shown | None,
    typer.Option(
        "--format", "-f", help="Format of the report; by default what --output ends in, else text.", show_default=False
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", metavar="FORMAT=FILE", help="Also write it to a file in this format; repeatable."),
]
ComputeDevice = Annotated[Device, typer.Option("--device", help="Where to compute; auto is the CPU.")]


def choose_device(choice: Device) -> str:
    """Return the torch device of --device. Raises SsmdiagError where it is not there."""
    import_torch()
    import torch

    if choice == "cuda" and not torch.cuda.is_available():
        raise SsmdiagError("--device cuda: torch sees no CUDA device.", instead=("cuda", "cpu"))
    return "cpu" if choice == "auto" else choice


def load_families(map_file: Path | None) -> list[Family]:
    """Return all known families, and those that --map declares. Raises MapFileError."""
    from ssmdiag.families import known_families

    families = list(known_families())
    if map_file:
        from ssmdiag.families.mapfile import read_map

        families += read_map(map_file)
    return families


def recognise_layers(
    path: Location, assume: list[str] | None, map_file: Path | None, device: Device
) -> tuple[Checkpoint, Recognition, str | None]:
    """Return a checkpoint, its layers, and which it is of its run where the path is a run's folder.

    Raises SsmdiagError where it has no layer that is known.
    """
    from ssmdiag.compare.run_order import read_newest
    from ssmdiag.families.recognition import recognise

    (checkpoint, chosen), assumed, families = read_newest(path), parse_assumptions(assume), load_families(map_file)
    found = recognise(checkpoint, assume=assumed, families=families, device=choose_device(device))
    found.require_layers(checkpoint)
    return checkpoint, found, chosen


def parse_assumptions(pairs: list[str] | None) -> dict[str, str]:
    """Return --assume's pairs as a mapping. Raises AssumptionError for anything but KEY=VALUE."""
    parsed: dict[str, str] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not (separator and key and value):
            raise AssumptionError(
                f"--assume {pair}: not a pair.", expected="KEY=VALUE, such as real_transform=softplus"
            )
        parsed[key.strip()] = value.strip()
    return parsed


def read_layers(layers: Sequence[Layer], wanted: str | None) -> list[Recurrence]:
    """Return the recurrences of the layer that --layer names, of all layers by default; no others are read.

    Raises SsmdiagError where no layer has that name or several do, LayerError where it cannot be read.
    """
    from ssmdiag.families.reading_ahead import read_ahead

    if wanted is None:
        read_ahead(layers)
        return [recurrence for layer in layers for recurrence in layer.read()]
    chosen = choose_layers(layers, wanted)
    read_ahead(chosen)
    found = [recurrence for layer in chosen for recurrence in layer.read()]
    branch = _split(wanted)[1]
    if branch or len({layer.path for layer in chosen}) > 1:  # a number of several: reports call one of them by it
        kept = [r for r in found if r.layer.endswith(f" ({branch})" if branch else tuple(x.path for x in chosen))]
        if len(kept) != 1:
            names = ", ".join(recurrence.layer for recurrence in found[:12]) + ", …" * (len(found) > 12)
            seen = f"{len(kept):,} layers or branches have that name" if kept else "there is no such layer or branch"
            raise SsmdiagError(f"--layer {wanted}: {seen}.", expected=f"one of {names}")
        return kept
    return found


def choose_layers(layers: Sequence[Layer], wanted: str) -> list[Layer]:
    """Return the layers that a name selects, one unless several share a path or a number; reads no values.

    A layer is named by its path, by the start of one, by its label in reports or by its number.
    Raises SsmdiagError where no layer has that name, or several paths start with it.
    """
    from ssmdiag.reports.folding import label_layers

    name = _split(wanted)[0]
    paths = [layer.path for layer in layers]
    labels = label_layers(paths)
    for chosen in (
        [layer for layer in layers if layer.path == name],
        [layer for layer, label in zip(layers, labels, strict=True) if label == name],
        [layer for layer in layers if layer.path.startswith(f"{name}.")],
        [layer for layer in layers if name.isdecimal() and len(name) < 10 and layer.number == int(name)],
    ):
        if chosen:
            break
    else:
        some = ", ".join(labels[:12]) + ", …" * (len(labels) > 12)
        raise SsmdiagError(
            f"--layer {wanted}: there is no such layer.",
            expected=f"one of {some}, or a full path",
            instead=_meant_layer(wanted, labels, paths),
        )
    if len({layer.path for layer in chosen}) > 1 and not name.isdecimal():
        several = ", ".join(layer.path for layer in chosen[:6]) + ", …" * (len(chosen) > 6)
        raise SsmdiagError(
            f"--layer {wanted}: {len(chosen)} layers have a path that begins with it.", expected=f"one of {several}"
        )
    return chosen


def _meant_layer(wanted: str, labels: Sequence[str], paths: Sequence[str]) -> tuple[str, str]:
    """Return a layer that there is for a name of none: a part of its path, -1 for the last, what is like it."""
    inside = next((label for label, path in zip(labels, paths, strict=True) if f".{wanted}." in f".{path}."), None)
    if inside or wanted == "-1":
        return wanted, inside or labels[-1]
    return meant(wanted, [*labels, *paths]) or (wanted, labels[0])


def _split(wanted: str) -> tuple[str, str]:
    """Return the name of a layer and its branch: `0 (backward)` is `0` and `backward`."""
    name, _, branch = wanted.partition(" (")
    return name, branch.removesuffix(")")
