"""`Layer`: one recognised module of a checkpoint, as a family's `read` sees it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ssmdiag.checkpoint import Checkpoint, StoredTensor
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.checkpoint.names import join, layer_numbers, parametrized
from ssmdiag.errors import CheckpointError, LayerError, MapError
from ssmdiag.guard import guard
from ssmdiag.printable import module_name
from ssmdiag.recurrence.discretisation import as_complex
from ssmdiag.recurrence.maps import find_map
from ssmdiag.recurrence.modal import Assumption, Recurrence, RecurrentWeight

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.families.interface import Family, Spelling


@dataclass
class _Record:
    """What was used in reading a layer, for the report."""

    tensors: dict[str, None] = field(default_factory=dict)
    weights: list[RecurrentWeight] = field(default_factory=list)
    assumptions: dict[str, Assumption] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layer:
    """Tensors of one module under their local names, its settings, and the methods to read them."""

    path: str
    """Dotted path of the module; empty at the top of the file."""
    family: Family
    spelling: Spelling
    checkpoint: Checkpoint
    names: Mapping[str, str]
    """Local name → full cleaned name, for required tensors and the optional ones present."""
    axes: Mapping[str, int]
    """Sizes of the axes named in the spelling."""
    defect: str | None = None
    """Why the tensors do not fit together; None if they do."""
    assume: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    _record: _Record = field(default_factory=_Record)

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        return module_name(self.path)

    @property
    def number(self) -> int | None:
        """The layer's index in its model, from the first number of its path."""
        return next(iter(layer_numbers(self.path)), None)

    def read(self, **assume: str) -> list[Recurrence]:
        """Return the layer's recurrences (one per branch), with a fresh record.

        Raises LayerError where its tensors do not fit together or cannot be read as numbers.
        """
        if empty := next((name for local, name in self.names.items() if 0 in self.shape(local)), None):
            raise LayerError(
                f"{empty} is empty: its shape is {self.checkpoint[empty].shape}.",
                advice="where training was sharded (ZeRO-3), gather the weights before they are saved.",
            )
        if self.defect:
            raise LayerError(self.defect)
        bench = replace(self, assume={**self.assume, **assume}, _record=_Record())
        with guard(self.path, f"reading it as {self.family.title}"):
            found = list(self.family.read(bench))
        if not found:
            raise LayerError(f"{self.title}: {self.family.name} found no recurrence in it.")
        return found

    def __contains__(self, local: str) -> bool:
        return local in self.names

    def shape(self, local: str) -> tuple[int, ...]:
        return self.stored(local).shape

    def stored(self, local: str) -> StoredTensor:
        """Return the tensor on disk behind a local name."""
        return self.checkpoint[self.names[local]]

    def beside(self, local: str) -> StoredTensor | None:
        """Return a tensor of this module, in its spelling or not; with the prefix `^.`, of the module above."""
        return self.checkpoint.get(self.full_name(local))

    def full_name(self, local: str) -> str:
        """Return the full name of a tensor of this module; with the prefix `^.`, of the module above."""
        own = local.removeprefix("^.")
        return join(self.path if own == local else self.path.rpartition(".")[0], own)

    def __getitem__(self, local: str) -> Tensor:
        """Return the values in float64, or complex128 where the spelling says that they are complex.

        Raises LayerError for packed or scaled tensors, and for complex ones where the spelling has real ones.
        """
        values = self._load(self.stored(local))
        if values.is_complex() and not (self.family.declared or self._axes_of(local).startswith("complex")):
            raise LayerError(
                f"{self.names[local]} is {self.stored(local).dtype} {self.shape(local)}.",
                expected="real numbers",
                advice=f"as {self.family.title} it has no imaginary part: look at what wrote it.",
            )
        return values

    def complex(self, local: str) -> Tensor:
        """Return complex128 values stored as a complex dtype or as a last axis of (re, im)."""
        values = self[local]
        if values.is_complex() and not self._axes_of(local).endswith(" 2"):
            return values
        if values.is_complex() or values.shape[-1:] != (2,):
            raise LayerError(
                f"{self.names[local]} is {self.stored(local).dtype} {tuple(values.shape)}.",
                expected="real numbers with a last axis of 2 (re, im), or complex ones without it",
            )
        return as_complex(values[..., 0]) + 1j * values[..., 1]

    def _axes_of(self, local: str) -> str:
        return self.spelling.tensors.get(local) or self.spelling.optional.get(local, "")

    def axis(self, name: str) -> int:
        """Return the size of an axis. Raises LayerError where packed tensors' shapes do not give it."""
        if name not in self.axes:
            raise LayerError(
                f"{self.title}: its tensors are packed or quantised; their shapes do not say how many {name}s it has.",
                advice="inspect the unquantised checkpoint.",
            )
        return self.axes[name]

    def readable(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the local name and the values of each of some tensors, also where they are those of a forget gate.

        Tensors that are packed or quantised are left out.
        """
        for local in self.names:
            if local.removeprefix("forget_gate.") in wanted:
                with contextlib.suppress(LayerError):
                    yield local, self[local]

    def count(self, local: str) -> int:
        """Return a stored count, a scalar. Raises LayerError for any other tensor."""
        self._record.tensors[self.names[local]] = None
        stored = self.stored(local)
        values = _values_of(stored).flatten()
        plain = values.numel() == 1 and not values.is_complex()
        number = values[0].item() if plain else math.nan
        if not (0 <= number < math.inf and number == int(number)):
            raise LayerError(
                f"{stored.name} is {stored.dtype} {stored.shape}{f', {number:g}' if plain else ''}.",
                expected="one number, zero or positive and whole",
            )
        return int(number)

    def weight(
        self,
        local: str,
        map: str,
        role: Literal["rate", "frequency", "step"] = "rate",
        part: Tensor | None = None,
        discrete: bool = False,
    ) -> Tensor:
        """Return f(w) in float64 for a stored weight, and record w and f for the report.

        `part` is w where the tensor packs several weights, such as the real half of a complex one;
        `discrete` says that f(w) is |λ̄| itself.
        """
        values = self[local] if part is None else part
        stored = self.stored(local)
        self._record.weights.append(RecurrentWeight(stored.name, role, map, values, stored.dtype, discrete))
        return find_map(map)(values)

    def elsewhere(self, suffix: str) -> Tensor | None:
        """Return a model-level tensor whose name ends with `suffix`, or None."""
        names = self.checkpoint.ending_in(suffix)
        return self._load(self.checkpoint[names[0]]) if names else None

    def setting(self, *leaves: str, default: Any = None) -> Any:
        """Return the first setting of config.json or of the file whose last path element is one of these.

        A name that occurs with different values counts as not given.
        """
        for leaf in leaves:
            values = self.checkpoint.settings_named(leaf)
            if values and all(str(value) == str(values[0]) for value in values) and values[0] is not None:
                return values[0]
        return default

    def rate_map(self) -> str | None:
        """Return the map through which `ssmdiag retrain` trained a rate, if it wrote the file and recorded the map.

        Raises LayerError where the file names an unknown map.
        """
        if (stated := self.setting("rate_map")) is None:
            return None
        try:
            return find_map(str(stated)).name
        except MapError as error:
            raise LayerError(f"{self.title}: rate_map {stated!r} in its settings: {error.seen}") from error

    def option(
        self,
        name: str,
        *,
        among: tuple[str, ...] | None = None,
        usual: str | None = None,
        known: str | None = None,
        inferred: str | None = None,
    ) -> str:
        """Return the value of one of the family's options, and record where it came from.

        `among` restricts the choices to those possible in this spelling, `usual` replaces the usual one,
        `known` is the value that the family found in the file's settings, `inferred` the one that the
        tensors' values suggest where no setting gives it.
        """
        option = next(option for option in self.family.options if option.name == name)
        choices = among or option.choices
        allowed = replace(option, choices=choices, number=option.number and not among)
        found, assumed = self.setting(name, *option.settings), self.assume.get(name, "")
        if known is None and found is not None and allowed.allows(str(found).lower()):
            known = str(found).lower()
        value = usual or (option.usual if option.usual in choices else choices[0])
        source: Literal["--assume", "file", "inferred", "usual"] = "usual"
        if allowed.allows(assumed):
            value, source = assumed, "--assume"
        elif known is not None:
            value, source = known, "file"
        elif inferred is not None:
            value, source = inferred, "inferred"
        if source != "--assume" and option.allows(assumed):
            self.note(f"--assume {name}={assumed} does not fit its tensors; read as {value}")
        self._record.assumptions[name] = Assumption(name, value, source, option.meaning, choices)
        return value

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The options asked for so far, and where their values came from."""
        return tuple(self._record.assumptions.values())

    def again(self) -> Layer:
        """Return this layer with an empty record: each branch of a module reports its own tensors."""
        return replace(self, _record=_Record())

    def note(self, text: str) -> None:
        """Add a remark to the report."""
        self._record.notes[text] = None

    def convolution(self, taps: Tensor, *, branch: str = "") -> Recurrence:
        """Return the `Recurrence` of a convolution: `taps` (copy, channel, lag) float64, lag 0 first."""
        import torch

        _, channels, lags = taps.shape
        self.note(f"a convolution of {lags:,} tap{'s' * (lags != 1)}, not a recurrence: it has no eigenvalues")
        gone = as_complex(taps.new_full((1, 1), -torch.inf))
        return self.recurrence(gone.expand(channels, lags), branch=branch, taps=taps)

    def recurrence(self, log_eigenvalues: Tensor, *, branch: str = "", **fields: Any) -> Recurrence:
        """Return the `Recurrence` with all that this layer has recorded.

        `branch` distinguishes several recurrences of one module ("backward").
        """
        record = self._record
        rate = next((w for w in record.weights if w.role == "rate"), None)
        nominal = self.family.memory == "nominal"
        fields.setdefault("operating_point", "the gates at their bias" if nominal else None)
        name = f"{self.path} ({branch})".lstrip() if branch else self.path
        try:
            return Recurrence(
                layer=name,
                family=self.family.name,
                spelling=self.spelling.name,
                log_eigenvalues=as_complex(log_eigenvalues),
                time_invariant=fields.pop("time_invariant", not nominal),
                linearised="linearised" in self.family.traits,
                weights=tuple(record.weights),
                tensors=tuple(record.tensors),
                dtype=rate.dtype if rate else self.stored(self.spelling.telltale).dtype,
                assumptions=self.assumptions,
                notes=tuple(record.notes),
                **fields,
            )
        except ValueError as error:
            shapes = ", ".join(f"{local} {self.shape(local)}" for local in self.spelling.tensors)
            raise LayerError(
                f"{module_name(name)}: {error}.", advice=f"the shapes of its tensors do not belong together: {shapes}."
            ) from error

    def _load(self, stored: StoredTensor) -> Tensor:
        import torch

        dtype = stored.dtype
        if dtype.startswith(("float8", "float4")):
            scaled = any(f"{stored.name}_{ending}" in self.checkpoint for ending in ("scale_inv", "scale"))
            if scaled or dtype.startswith("float4"):
                raise LayerError(
                    f"{stored.name} is {dtype} with scales beside it: quantised.",
                    advice="inspect the unquantised checkpoint; ssmdiag does not undo quantisation.",
                )
        elif not is_number(dtype):
            raise LayerError(
                f"{stored.name} is stored as {dtype}: packed, quantised or not a weight.",
                expected="a floating point or complex tensor",
                advice="inspect the unquantised checkpoint.",
            )
        if parametrized(stored.stored_name):
            self.note(
                f"{stored.stored_name} is the raw weight of a torch parametrisation; "
                "its map is not in the file, so it is read as it is"
            )
        self._record.tensors[stored.name] = None
        values = _values_of(stored)
        return values.to(self.device).to(torch.complex128 if values.is_complex() else torch.float64)


def _values_of(stored: StoredTensor) -> Tensor:
    try:
        return stored.load()
    except CheckpointError as error:  # this layer is lost; the others can be read
        raise LayerError(error.seen, advice=error.advice) from error


def bind_axes(spelling: Spelling, stored: Mapping[str, StoredTensor]) -> tuple[dict[str, int] | None, str | None]:
    """Return the axis sizes of a spelling in these tensors, and a sentence if tensors disagree.

    The axes are None where the number of axes, fixed sizes, dtypes, a required tensor's own proportions (4 × hidden,
    hidden) or a sum of axes rule the spelling out.
    """
    axes: dict[str, int] = {}
    source: dict[str, str] = {}
    products: list[tuple[str, int, StoredTensor]] = []
    sums: list[tuple[str, int]] = []
    folded: list[tuple[str, int]] = []
    defect = None
    for local, pattern in {**spelling.tensors, **spelling.optional}.items():
        if local not in stored:
            continue
        tensor = stored[local]
        kind, _, dims = pattern.rpartition(":")
        tokens, shape = dims.split(), tensor.shape
        if not kind and not is_number(tensor.dtype):
            # Quantised formats pack several weights into one integer: the shape says nothing about the other tensors.
            folded += zip(tokens, shape, strict=False)
            continue
        if len(tokens) != len(shape) or not tensor.dtype.startswith(kind):
            if local in spelling.tensors:
                return None, None
            continue
        if local in spelling.tensors and not _has_proportions(tokens, shape):
            return None, None
        for token, size in zip(tokens, shape, strict=True):
            if token.isdigit():
                if int(token) != size and local in spelling.tensors:
                    return None, None
            elif "+" in token:
                sums.append((token, size))
            elif "*" in token:
                products.append((token, size, tensor))
            elif token != "_" and axes.setdefault(token, size) != size:
                defect = defect or _disagree(tensor, f"{source[token]} says {token} = {axes[token]}")
            source.setdefault(token, f"{tensor.name} {shape}")
    for token, size, tensor in products:
        factors = token.split("*")
        known = math.prod(int(f) if f.isdigit() else axes.get(f, 1) for f in factors)
        unknown = [f for f in factors if not f.isdigit() and f not in axes]
        if len(unknown) == 1 and known and size % known == 0:
            axes[unknown[0]] = size // known
        elif size != known if not unknown else known and size % known:
            defect = defect or _disagree(tensor, f"its siblings make {token.replace('*', ' × ')} = {known}")
    if any(size != total for token, size in sums if (total := _total(token, axes)) is not None):
        return None, None
    for token, size in folded:
        if token.isidentifier():
            axes.setdefault(token, size)
    return axes, defect


def _has_proportions(tokens: list[str], shape: tuple[int, ...]) -> bool:
    """Whether sizes agree with each other where a tensor's pattern relates them."""
    own = {token: size for token, size in zip(tokens, shape, strict=True) if token.isidentifier() and token != "_"}
    totals = ((_total(token, own), size) for token, size in zip(tokens, shape, strict=True))
    return all(total in (None, size) for total, size in totals)


def _total(token: str, axes: Mapping[str, int]) -> int | None:
    """Return what a sum of products of axes comes to; None where one of the axes is not known."""
    terms = [[int(f) if f.isdigit() else axes.get(f) for f in term.split("*")] for term in token.split("+")]
    known = [math.prod(factor for factor in term if factor is not None) for term in terms if None not in term]
    return sum(known) if len(known) == len(terms) else None


def _disagree(tensor: StoredTensor, but: str) -> str:
    return f"{tensor.name} has shape {tensor.shape}, but {but}: the tensors do not belong together."
