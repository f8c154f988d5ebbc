"""The records that reading a checkpoint returns: `Checkpoint`, `StoredTensor`; what every `Container` offers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, takewhile
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.names import clean_names, join, require_short_names
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup, OptimizerState
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.checkpoint.settings import flatten

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.checkpoint.location import Location


class Container(Protocol):
    """One opened file: names now, shapes cheaply, values on request. One module per file type."""

    name: str
    """Of the file, for messages."""
    format: str
    """In words, for the report."""
    notes: list[str]
    """Remarks for the user: what was skipped and why."""
    settings: Mapping[str, Any]
    """Settings stored in the file itself, flat and dotted."""
    train_step: int | None

    @property
    def path(self) -> Location | None:
        """The file, beside which others can be looked for; None for a part of another file."""

    def names(self) -> list[str]:
        """Return every stored tensor name, as stored."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor, without reading its values."""

    def dtype(self, name: str) -> str:
        """Return the stored dtype by its torch name, such as `bfloat16`."""

    def load(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Say which tensors will be loaded, so that what is far away comes ahead; may do nothing."""


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """One tensor on disk. None of its values are in memory before `load`."""

    name: str
    """Cleaned, dotted name."""
    stored_name: str
    """Name as stored in the file."""
    container: Container
    loaded: set[str]
    """Names already counted in `Checkpoint.bytes_read`; shared by all tensors of a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.container.shape(self.stored_name)

    @property
    def dtype(self) -> str:
        return self.container.dtype(self.stored_name)

    @property
    def nbytes(self) -> int:
        """Size of the values on disk, in bytes."""
        return (prod(self.shape) * DTYPE_BITS.get(self.dtype, 32) + 7) // 8

    def load(self) -> Tensor:
        """Return the values in their stored dtype."""
        values = self.container.load(self.stored_name)
        self.loaded.add(self.name)
        return values


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, StoredTensor]):
    """Named tensors of one checkpoint, read lazily: `checkpoint[name].load()`.

    Names are cleaned and dotted (wrappers of torch.compile, DDP and FSDP removed, JAX separators
    turned into dots); `StoredTensor.stored_name` keeps the original.
    """

    path: Location
    format: str
    """Container in words: `safetensors`, `safetensors, 4 shards`, `torch zip`, `npz` …"""
    tensors: Mapping[str, StoredTensor]
    size: int
    """Bytes on disk of all files read from."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json beside the weights, or empty."""
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Settings stored in the file itself (Lightning's `hyper_parameters`), flat and dotted."""
    train_step: int | None = None
    """Optimiser step at which the file was saved, if it says."""
    notes: tuple[str, ...] = ()
    """Remarks for the user: what was skipped while opening and why."""
    problems: tuple[str, ...] = ()
    """Parts that cannot be read, where the rest can: config.json."""
    directory: Location | None = None
    """Where a trainer may have left its state beside the weights; not searched while opening."""
    read_optimizer: Callable[[Checkpoint], OptimizerState] | None = field(default=None, repr=False)
    """Reads the state of the optimisers saved with the weights; None where there can be none."""

    def __getitem__(self, name: str) -> StoredTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def is_remote(self) -> bool:
        """Whether it is not on this machine, so that each tensor costs a request."""
        return isinstance(self.path, RemotePath)

    def prefetch(self, names: Iterable[str]) -> None:
        """Say which tensors will be loaded: where the files are not on this machine, they begin to come."""
        by_container: dict[Container, list[str]] = {}
        for stored in map(self.tensors.__getitem__, names):
            by_container.setdefault(stored.container, []).append(stored.stored_name)
        for container, stored_names in by_container.items():
            container.prefetch(stored_names)

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor values read so far."""
        first = next(iter(self.tensors.values()), None)
        return sum(self.tensors[name].nbytes for name in first.loaded) if first else 0

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """config.json and in-file hyper-parameters, flat and dotted; the file itself wins."""
        return {**flatten(self.config), **self.hyper_parameters}

    @property
    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """Groups of the optimisers saved with the weights; empty where none were. Reads no moments.

        Raises `UnsafePickleError` if the optimiser's file asks for code to be run.
        """
        return self._optimizer_state.groups if self._optimizer_state else ()

    @property
    def optimizer_notes(self) -> tuple[str, ...]:
        """Remarks on optimiser state that exists but could not be read."""
        return self._optimizer_state.notes if self._optimizer_state else ()

    @cached_property
    def _optimizer_state(self) -> OptimizerState | None:
        return self.read_optimizer(self) if self.read_optimizer else None

    def settings_named(self, leaf: str) -> list[Any]:
        """Return the settings whose dotted name is `leaf` or ends in it."""
        named_alike = self._settings_by_leaf.get(leaf.rpartition(".")[2], ())
        return [value for name, value in named_alike if name == leaf or name.endswith(f".{leaf}")]

    @cached_property
    def _settings_by_leaf(self) -> dict[str, list[tuple[str, Any]]]:
        found: dict[str, list[tuple[str, Any]]] = {}
        for name, value in self.settings.items():
            found.setdefault(name.rpartition(".")[2], []).append((name, value))
        return found

    def below(self, path: str) -> list[str]:
        """Return the names of all tensors of a module and the modules in it, sorted; of all for ""."""
        start, names = join(path, ""), self._sorted_names
        return list(takewhile(lambda name: name.startswith(start), islice(names, bisect_left(names, start), None)))

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self.tensors)

    def ending_in(self, suffix: str) -> list[str]:
        """Return the names that end in a dotted suffix, in the order of the file."""
        last = suffix.rpartition(".")[2]
        return [n for n in self._by_last_element.get(last, ()) if n == suffix or n.endswith(f".{suffix}")]

    @cached_property
    def _by_last_element(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            found.setdefault(name.rpartition(".")[2], []).append(name)
        return found


def collect(containers: Mapping[Container, Collection[str]]) -> dict[str, StoredTensor]:
    """Return the tensors of several containers under cleaned names; each container comes with its stored names."""
    for container, names in containers.items():
        require_short_names(container.name, names)
    loaded: set[str] = set()
    stored = [(name, container) for container, names in containers.items() for name in names]
    cleaned = clean_names([name for name, _ in stored])
    return {
        clean: StoredTensor(clean, name, container, loaded)
        for clean, (name, container) in zip(cleaned, stored, strict=True)
    }
