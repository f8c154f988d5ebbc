"""Does a converted checkpoint have the memory of the one it was made from? → `ConversionProof`.

Layers are matched by name, else by order. Within a channel the log-eigenvalues are compared as sets: a converter
may reorder modes, store the other half of conjugate pairs, repeat a channel over heads or reorder channels as a
whole. Where both sides have B and C, their kernels are compared too, at log-spaced lags over the context: this shows
a B or C that went to another mode, which eigenvalues cannot show. For selective layers this covers only the nominal
point, so the tensors that steer the decay by the input are compared as well; where that is impossible, nothing is
proven. Settings that change a memory without changing a weight are compared too (`forward_settings`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch

from ssmdiag.assessment.memory import DEFAULT_CONTEXT
from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.compare.forward_settings import SettingDifference, differing_settings
from ssmdiag.compare.spectrum_matching import Difference, compare_kernels, match_spectra
from ssmdiag.compare.steering import SteeringComparison, compare_steering
from ssmdiag.cores import one_thread
from ssmdiag.diagnosis import longest_context
from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.families.interface import Family
from ssmdiag.families.layer import Layer
from ssmdiag.families.reading_ahead import read_ahead
from ssmdiag.families.recognition import Recognition, recognise
from ssmdiag.guard import guard
from ssmdiag.output.result import Result
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.checkpoint.reading import CheckpointLike

TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative tolerance of a rate where the coarser side stores this type and the other does not.

A weight goes through exp or softplus: rounded to bfloat16, at half a unit in 2⁸, the logarithm −8 of a step moves
the step by 3 %; float16 is eight times finer. Where both sides store the same type, nothing needs rounding.
"""
COARSEST = 0.5
"""The same for types of 8 bits and fewer."""
LEFT_BEHIND = "its decays are in another order, but what steers them by the input is not"
NOT_FOLLOWED = "its decays are in another order, and what steers them could not be matched to that order"


class Outcome(Enum):
    """Whether a layer has the same memory. Values are printed in reports and in JSON."""

    SAME = "same"
    REORDERED = "same, in another order"
    DIFFERS = "differs"
    MISSING = "missing"
    NOMINAL = "same at the nominal point"
    """What steers it by the input could not be compared."""


@dataclass(frozen=True)
class LayerProof:
    """One layer of both checkpoints."""

    a: str | None
    """Its path in the first checkpoint; None where only the second has it."""
    b: str | None
    outcome: Outcome
    tolerance: float
    channels: int
    modes: int
    time_invariant: bool
    dtypes: tuple[str, str]
    """What the weights of its decay are stored as, the coarsest on each side."""
    spectrum: Difference | None
    """The mode that differs most; None where the shapes do not fit, and of convolutions."""
    kernel: Difference | None
    """The lag at which kernels differ most, relative to the channel's peak; None where a side has no B or C."""
    notes: tuple[str, ...]
    """How their modes or channels were aligned, or why they cannot be compared."""
    steering: SteeringComparison | None = None
    """What steers it by the input; None where nothing does."""
    settings: tuple[SettingDifference, ...] = ()
    """Settings that change its memory and differ between the two checkpoints."""

    @property
    def proven(self) -> bool:
        return self.outcome in (Outcome.SAME, Outcome.REORDERED)


@dataclass(frozen=True, repr=False)
class ConversionProof(Result):
    """Two checkpoints that should hold one memory."""

    a: str
    b: str
    layers: tuple[LayerProof, ...]
    lags: tuple[int, ...]
    """Lags at which kernels were compared."""
    problems: tuple[str, ...]
    """What could not be read, so that nothing is proven about it."""
    device: str
    seconds: float
    notes: tuple[str, ...] = ()
    """Which checkpoint of a run stands for it."""
    ssmdiag_version: str = __version__
    torch_version: str = torch.__version__

    @property
    def proven(self) -> bool:
        return not self.problems and bool(self.layers) and all(layer.proven for layer in self.layers)

    def exit_code(self) -> int:
        """Return 1 if a layer differs or is known at the nominal point alone, 2 if part could not be read, else 0."""
        return 1 if any(not layer.proven for layer in self.layers) else 0 if self.proven else 2


@one_thread()
def prove_conversion(
    a: CheckpointLike,
    b: CheckpointLike,
    *,
    tolerance: float | None = None,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    notes: Sequence[str] = (),
) -> ConversionProof:
    """Return whether every layer of two checkpoints has the same memory, and where it differs most.

    `tolerance` is relative: of a rate to the rate, of a frequency to itself, of a kernel to its channel's peak;
    by default it suits the stored types (`TOLERANCES`). One layer of each is in memory at a time.
    Raises SsmdiagError where one of the two cannot be opened or holds no layer, or a tolerance accepts everything.
    """
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ConfigurationError(
            f"a tolerance of {tolerance:g} proves nothing.", expected="a share under 1, such as 0.001 of a rate"
        )
    start = time.perf_counter()
    sides = [read_checkpoint(side) for side in (a, b)]
    found = [recognise(side, assume=assume, families=families, device=device) for side in sides]
    problems: list[str] = []
    for side, recognition in zip(sides, found, strict=True):
        recognition.require_layers(side)
        read_ahead(recognition.layers)
        problems += [f"{side.path.name}: {p}" for p in (*side.problems, *recognition.problems)]
    lags = log_lags(context_length or longest_context(sides) or DEFAULT_CONTEXT)
    proofs: list[LayerProof] = []
    for first, second in _pairs(found[0], found[1]):
        names = dict.fromkeys(layer.path for layer in (first, second) if layer)
        try:
            with guard(" and ".join(names), "its comparison"):
                proofs += list(_prove_layer(first, second, tolerance, lags))
        except SsmdiagError as error:
            problems.append(error.sentence)
    return ConversionProof(
        a=str(sides[0].path),
        b=str(sides[1].path),
        layers=tuple(proofs),
        lags=tuple(lags),
        problems=tuple(problems),
        device=device,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


def prove_recurrence(a: Recurrence, b: Recurrence, tolerance: float | None, lags: Sequence[int]) -> LayerProof:
    """Return whether two recurrences have the same memory."""
    dtypes = coarsest(a), coarsest(b)
    allowed = default_tolerance(*dtypes) if tolerance is None else tolerance
    if a.taps is not None and b.taps is not None:
        return _prove_taps(a, b, dtypes, allowed)
    match = match_spectra(a, b, allowed)
    kernel = compare_kernels(a, b, lags, match.channel_order) if match.same_shape else None
    notes = list(match.notes)
    judged = [match.difference]
    if kernel and (a.dense is not None or b.dense is not None):
        # Eigenvalues of a non-normal matrix move far under rounding that hardly changes its kernel.
        judged = []
        notes.append("judged by its kernel: eigenvalues of a dense matrix are not well determined")
    if kernel is None and "none" not in (a.layout, b.layout):
        notes.append("kernels could not be compared: B and C are of different shapes")
    judged.append(kernel)
    within = all(difference is None or difference.value <= allowed for difference in judged)
    same = within and any(difference is not None for difference in judged)
    reordered = match.channel_order is not None or match.reordered_modes
    return LayerProof(
        a=a.layer,
        b=b.layer,
        outcome=(Outcome.REORDERED if reordered else Outcome.SAME) if same else Outcome.DIFFERS,
        tolerance=allowed,
        channels=a.channels,
        modes=a.modes,
        time_invariant=a.time_invariant,
        dtypes=dtypes,
        spectrum=match.difference,
        kernel=kernel,
        notes=tuple(notes),
    )


def _prove_taps(a: Recurrence, b: Recurrence, dtypes: tuple[str, str], tolerance: float) -> LayerProof:
    """Return the same of two convolutions: they have no eigenvalues, and every tap is compared."""
    kernel = compare_kernels(a, b, range(max(a.modes, b.modes)), None)
    same = kernel is not None and kernel.value <= tolerance
    taps = f"{a.modes:,}" if a.modes == b.modes else f"{a.modes:,} and {b.modes:,}"
    note = f"convolutions of {taps} taps, compared tap by tap"
    if kernel is None:
        note = f"convolutions of {a.channels:,} and {b.channels:,} channels: they cannot be compared"
    return LayerProof(
        a=a.layer,
        b=b.layer,
        outcome=Outcome.SAME if same else Outcome.DIFFERS,
        tolerance=tolerance,
        channels=a.channels,
        modes=a.modes,
        time_invariant=a.time_invariant,
        dtypes=dtypes,
        spectrum=None,
        kernel=kernel,
        notes=(note,),
    )


def default_tolerance(a: str, b: str) -> float:
    """Return the tolerance for two stored types.

    >>> default_tolerance("float32", "float32"), default_tolerance("bfloat16", "float32")
    (0.001, 0.05)
    """
    return TOLERANCES["float32"] if a == b else max(TOLERANCES.get(dtype, COARSEST) for dtype in (a, b))


def coarsest(recurrence: Recurrence) -> str:
    """Return the coarsest type that a weight of the decay is stored in."""
    real = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
    stored = [real.get(d, d) for d in (recurrence.dtype, *(weight.dtype for weight in recurrence.weights))]
    return max(stored, key=lambda dtype: (TOLERANCES.get(dtype, COARSEST), dtype == "float32"))


def log_lags(context: int) -> list[int]:
    """Return lags from 0 to the context, three to an octave.

    >>> log_lags(8)
    [0, 1, 2, 3, 4, 5, 6, 8]
    """
    octaves = 3 * math.log2(max(context, 2))
    return sorted({0, *(min(round(2 ** (k / 3)), context) for k in range(math.ceil(octaves) + 1))})


def _pairs(a: Recognition, b: Recognition) -> Iterator[tuple[Layer | None, Layer | None]]:
    """Yield layers of equal name in pairs, then the rest in order."""
    named = {layer.path: layer for layer in b.layers}
    partner = {layer.path: named.pop(layer.path) for layer in a.layers if layer.path in named}
    rest = iter(named.values())
    for layer in a.layers:
        yield layer, partner.get(layer.path) or next(rest, None)
    yield from ((None, layer) for layer in rest)


def _prove_layer(
    a: Layer | None, b: Layer | None, tolerance: float | None, lags: Sequence[int]
) -> Iterator[LayerProof]:
    first, second = (layer.read() if layer else [] for layer in (a, b))
    steering = compare_steering(a, b, tolerance) if a and b else None
    alone = len(first) == len(second) == 1
    settings = differing_settings(a, b) if a and b else ()
    for one, other in zip(first, second, strict=False):
        proof = prove_recurrence(one, other, tolerance, lags)
        followed = None
        if alone and a and b and proof.outcome is Outcome.REORDERED and steering and steering.differing:
            order = match_spectra(one, other, proof.tolerance).channel_order
            followed = None if order is None else compare_steering(a, b, tolerance, order)
        agrees = followed and followed.compared and not followed.differing and not followed.unseen
        proof = replace(proof, steering=followed) if agrees else _with_steering(proof, steering)
        yield _with_settings(proof, settings)
    for lone in first[len(second) :]:
        yield _missing(lone, "only the first has it", a=lone.layer)
    for lone in second[len(first) :]:
        yield _missing(lone, "only the second has it", b=lone.layer)


def _with_steering(proof: LayerProof, steering: SteeringComparison | None) -> LayerProof:
    if steering is None:
        return proof
    outcome, unseen, notes = proof.outcome, steering.unseen, proof.notes
    if outcome is Outcome.REORDERED and not steering.differing and steering.compared and not unseen:
        outcome, notes = Outcome.DIFFERS, (*notes, LEFT_BEHIND)
    elif outcome is Outcome.REORDERED:
        outcome, unseen = Outcome.NOMINAL, (*unseen, NOT_FOLLOWED)
    elif outcome is Outcome.SAME:
        outcome = Outcome.DIFFERS if steering.differing else Outcome.NOMINAL if unseen else outcome
    return replace(proof, outcome=outcome, notes=notes, steering=replace(steering, unseen=unseen))


def _with_settings(proof: LayerProof, settings: tuple[SettingDifference, ...]) -> LayerProof:
    """Return the proof after the settings: different ones refute it, those known on one side alone leave it open."""
    if not settings:
        return proof
    outcome = proof.outcome
    if any(one.a is not None and one.b is not None for one in settings):
        outcome = Outcome.DIFFERS
    elif proof.proven and not proof.time_invariant:
        outcome = Outcome.NOMINAL
    notes = (*proof.notes, *(one.sentence for one in settings))
    return replace(proof, outcome=outcome, notes=notes, settings=settings)


def _missing(lone: Recurrence, note: str, *, a: str | None = None, b: str | None = None) -> LayerProof:
    dtype = coarsest(lone)
    return LayerProof(
        a, b, Outcome.MISSING, 0.0, lone.channels, lone.modes, lone.time_invariant, (dtype, dtype), None, None, (note,)
    )
