"""Checkpoint → `Diagnosis`: every layer's spectrum summarised, and what could not be read.

Layers are read a few at a time and only their summaries are kept, so memory does not grow with the
depth of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ssmdiag.assessment.assess import MOST_CHANNELS, examine_layers
from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.assessment.spectrum import LayerDiagnosis
from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.cores import one_thread
from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family
from ssmdiag.families.layer import Layer
from ssmdiag.families.reading_ahead import read_ahead
from ssmdiag.families.recognition import Recognition, recognise
from ssmdiag.output.result import Result
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import Assumption, Recurrence
from ssmdiag.rules.finding import SEVERITIES, Finding
from ssmdiag.rules.selection import Selection, select_rules
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.checkpoint.reading import CheckpointLike
    from ssmdiag.probing.saved import SavedProbe

CONTEXT_SETTINGS = (
    "max_position_embeddings", "max_seq_len", "max_seq_length", "max_sequence_length", "seq_length", "seq_len",
    "n_ctx", "n_positions", "context_length", "model_max_length", "l_max", "ctx_len", "block_size",
)  # fmt: skip
"""Settings that give the context length, in order of preference."""


HELD_LAYERS = 8
"""Layers read before their laws are found in one go; only these are in memory at once."""


@dataclass(frozen=True)
class Alternative:
    """What a layer would be if a setting that its tensors do not decide had another value."""

    assumption: Assumption
    layers: int
    """How many layers depend on it."""
    layer: str | None
    """The slowest of them, to which the half-lives belong; None where none has a finite mode."""
    slowest: float | None
    """Its longest half-life as read, in steps."""
    others: tuple[tuple[str, float | None], ...]
    """(other value, longest half-life under it); None where it cannot be computed."""


@dataclass(frozen=True)
class RemoteSource:
    """Where a checkpoint came from that is not on this machine, and what that took."""

    url: str
    """Without passwords and signatures."""
    revision: str | None
    """The commit, or what else identifies the version that was read; None where the place does not say."""
    bytes: int
    """That were moved, headers and settings included."""
    requests: int


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """Everything ssmdiag knows about one checkpoint."""

    path: str
    format: str
    size: int
    bytes_read: int
    train_step: int | None
    context_length: int | None
    layers: tuple[LayerDiagnosis, ...]
    alternatives: tuple[Alternative, ...]
    problems: tuple[str, ...]
    """What is missing or could not be read; the rest of the report stands."""
    notes: tuple[str, ...]
    unrecognised: tuple[str, ...]
    findings: tuple[Finding, ...]
    """Worst first, then by code, then by layer."""
    rules: tuple[str, ...]
    """Codes of the rules that were run, `not_judged` among them."""
    device: str
    seconds: float
    not_judged: Mapping[str, str] = field(default_factory=dict)
    """Codes of rules that could not judge the checkpoint → what it lacks for them."""
    guess: str | None = None
    """Warning that layers are read through an unreviewed map file, on which the whole report depends."""
    known: tuple[Finding, ...] = ()
    """Findings that a baseline holds and that have not got worse: none of them fails a check."""
    chosen: str | None = None
    """Why this checkpoint stands for what was given, where that was the folder of a run."""
    given: str | None = None
    """Its path as the command was given it; None where it was not a command."""
    modified: float | None = None
    """When its file was last modified before it was read, in seconds since 1970; None where that is not known."""
    source: RemoteSource | None = None
    """None for a checkpoint on this machine."""
    attention_layers: tuple[str, ...] = ()
    """Paths of the attention layers beside the recurrent ones. They remember too, and are not judged."""
    ssmdiag_version: str = __version__
    torch_version: str = torch.__version__

    @property
    def known_findings(self) -> int:
        """How many findings a baseline holds."""
        return len(self.known)

    def exit_code(self, fail_on: str | None = None) -> int:
        """Return 2 if part of the recurrence could not be read, 1 if findings reach `fail_on`, else 0."""
        if self.problems:
            return 2
        return int(fail_on is not None and any(f.rank >= SEVERITIES.index(fail_on) for f in self.findings))


def extract_recurrences(
    checkpoint: CheckpointLike,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
) -> list[Recurrence]:
    """Return every recurrence of a checkpoint, in layer order, all in memory at once; of anything `diagnose` takes.

    Raises UnknownFamilyError if there is none, LayerError at the first layer that cannot be read.
    """
    checkpoint = read_checkpoint(checkpoint)
    found = recognise(checkpoint, assume=assume, families=families, device=device)
    found.require_layers(checkpoint)
    read_ahead(found.layers)
    return [recurrence for layer in found.layers for recurrence in layer.read()]


@one_thread()
def diagnose(
    checkpoint: CheckpointLike,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    memory: bool = True,
    most_channels: int | None = MOST_CHANNELS,
    tails: bool = True,
    rules: Selection | None = None,
    probe: SavedProbe | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Return the diagnosis of a checkpoint.

    Parameters
    ----------
    checkpoint
        A path or an address, as for `read_checkpoint`; or what is in memory: a torch.nn.Module on any device, a state
        dict of tensors or arrays, a `Checkpoint`.
    assume
        Values for options that tensors do not decide, and `family` where several claim a layer.
    families
        Families to look for; all known ones by default.
    context_length
        Steps of context; by default what config.json says.
    memory
        Also find each layer's horizon, decay law and capacity over the context, or over `memory.DEFAULT_CONTEXT`
        steps where none is known.
    most_channels
        Channels of a layer whose law is fitted, spread over the order of their slowest modes, both ends
        included; None for every channel. Horizons are those of all channels in layers of moderate size.
    tails
        Also find, from the modes, the law of the energy that remains from some lag on, and the lags that hold 50, 90
        and 99 % of it. No rule uses them, and they cost as much as laws and horizons.
    rules
        What to check, from `rules.selection.select_rules`; all rules by default.
    probe
        What `ssmdiag probe` observed of this model, from `probing.saved.read_probe`: rules judge that too.
    on_layer
        Called with (layers read, layers in all) after each layer.

    Raises
    ------
    CheckpointError, UnknownFamilyError, AssumptionError
    ProbeFileError
        If the probe is of another model.
    """
    start = time.perf_counter()
    checkpoint = read_checkpoint(checkpoint)
    found = recognise(checkpoint, assume=assume, families=families, device=device)
    found.require_layers(checkpoint)
    diagnosis = diagnose_layers(
        checkpoint,
        found,
        device=device,
        context_length=context_length,
        memory=memory,
        most_channels=most_channels,
        tails=tails,
        rules=rules,
        probe=probe,
        on_layer=on_layer,
    )
    return replace(diagnosis, seconds=time.perf_counter() - start)


def diagnose_layers(
    checkpoint: Checkpoint,
    found: Recognition,
    *,
    device: str = "cpu",
    context_length: int | None = None,
    memory: bool = True,
    most_channels: int | None = MOST_CHANNELS,
    tails: bool = True,
    rules: Selection | None = None,
    probe: SavedProbe | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Return the diagnosis of the layers that were recognised in a checkpoint, or of some of them; as `diagnose`."""
    start = time.perf_counter()
    context = context_length or context_length_of(checkpoint.settings)
    selection = (select_rules() if rules is None else rules).with_probe(probe)
    whole = CheckpointEvidence(checkpoint, found, context, probe=probe and probe.of(found.layers))
    read_ahead(found.layers, whole.names_examined() if selection.rules else ())
    layers: list[LayerDiagnosis] = []
    unread: list[tuple[Layer, LayerError]] = []
    findings: list[Finding] = []
    problems = [*checkpoint.problems, *found.problems]
    assumed: dict[tuple[str, ...], _Assumed] = {}
    held: list[tuple[Layer, int, Recurrence]] = []
    for position, layer in enumerate(found.layers, 1):
        try:
            recurrences = layer.read()
        except LayerError as error:
            problems.append(error.sentence)
            unread.append((layer, error))
        else:
            held += [(layer, branch, recurrence) for branch, recurrence in enumerate(recurrences)]
            _collect_assumptions(assumed, layer, recurrences)
        if len(held) >= HELD_LAYERS or position == len(found.layers):
            for evidence in examine_layers(held, whole, context, most_channels if memory else 0, tails):
                if isinstance(evidence, LayerError):
                    problems.append(evidence.sentence)
                else:
                    layers.append(evidence.numbers)
                    findings += selection.examine_layer(evidence, problems)
            held = []
        if on_layer:
            on_layer(position, len(found.layers))
    findings += selection.examine_checkpoint(replace(whole, layers=tuple(layers), unread=tuple(unread)), problems)
    used = {layer.family.name: layer.family for layer in found.layers}
    return Diagnosis(
        path=str(checkpoint.path),
        format=checkpoint.format,
        size=checkpoint.size,
        bytes_read=checkpoint.bytes_read,
        train_step=checkpoint.train_step,
        context_length=context,
        layers=tuple(layers),
        alternatives=tuple(_alternative(entry) for entry in assumed.values()),
        problems=(
            *problems,
            *(f"{module_name(m.path)}: looks like {m.family.title}, but {m.reason}." for m in found.incomplete),
        ),
        notes=(*checkpoint.notes, *(f"{f.title}: {f.caveat}" for f in used.values() if f.caveat)),
        unrecognised=found.unrecognised,
        findings=tuple(sorted(findings, key=lambda finding: (-finding.rank, finding.code))),
        rules=tuple(rule.code for rule in selection.rules),
        not_judged=selection.not_judged(whole),
        device=device,
        seconds=time.perf_counter() - start,
        guess=found.guess,
        source=_source(checkpoint),
        attention_layers=whole.attention_layers,
    )


def _source(checkpoint: Checkpoint) -> RemoteSource | None:
    if not isinstance(checkpoint.path, RemotePath):
        return None
    place = checkpoint.path.place
    return RemoteSource(str(checkpoint.path), place.revision, place.traffic.bytes, place.traffic.requests)


@dataclass
class _Assumed:
    """An assumption that no tensor or setting decided, the layers that depend on it, and the slowest of them."""

    assumption: Assumption
    layers: int = 0
    slowest: Layer | None = None
    half_life: float = -1.0


def _collect_assumptions(into: dict[tuple[str, ...], _Assumed], layer: Layer, recurrences: list[Recurrence]) -> None:
    recurrences = [recurrence for recurrence in recurrences if recurrence.layout != "finite"]
    undecided = {a.option: a for r in recurrences for a in r.assumptions if a.source == "usual"}
    longest = _longest_half_life(recurrences) if undecided else None
    for assumption in undecided.values():
        key = (layer.family.name, assumption.option, assumption.value)
        assumed = into.setdefault(key, _Assumed(assumption))
        assumed.layers += 1
        if longest is not None and longest > assumed.half_life:
            assumed.slowest, assumed.half_life = layer, longest


def _alternative(assumed: _Assumed) -> Alternative:
    """Return what the slowest of the layers would be under each other value of the option."""
    layer, assumption = assumed.slowest, assumed.assumption
    if layer is None:
        return Alternative(assumption, assumed.layers, None, None, ())
    others = []
    for choice in assumption.choices:
        if choice != assumption.value:
            try:
                others.append((choice, _longest_half_life(layer.read(**{assumption.option: choice}))))
            except LayerError:
                others.append((choice, None))
    return Alternative(assumption, assumed.layers, layer.path, assumed.half_life, tuple(others))


def _longest_half_life(recurrences: list[Recurrence]) -> float | None:
    values = torch.cat([recurrence.half_life.flatten() for recurrence in recurrences])
    values = values[~values.isnan()]
    return float(values.max()) if values.numel() else None


def context_length_of(settings: Mapping[str, Any]) -> int | None:
    """Return the context length that settings give, in steps, or None; of a model with a vision part, the text's."""
    text_first = sorted(settings.items(), key=lambda item: "vision" in item[0] or "audio" in item[0])
    stated = (
        _whole_number(value)
        for leaf in CONTEXT_SETTINGS
        for key, value in text_first
        if key == leaf or key.endswith(f".{leaf}")
    )
    return next((steps for steps in stated if steps is not None), None)


def longest_context(checkpoints: Iterable[Checkpoint]) -> int | None:
    """Return the longest context length that any of several checkpoints states, None where none does."""
    return max((length for c in checkpoints if (length := context_length_of(c.settings))), default=None)


def _whole_number(value: Any) -> int | None:
    """Return a number of steps, also where YAML made it 4096.0 or 1e6; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and 1 < number < 10**12 and not isinstance(value, bool) else None
