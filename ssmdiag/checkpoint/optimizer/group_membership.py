"""Which tensor is in which group, for optimisers that number their parameters instead of naming them.

torch numbers parameters in the order the optimiser received them, group after group, and within a
group they are in the model's order (or in alphabetical order, after minGPT). The moments show each
parameter's shape. So a group is a subsequence of the model's parameters; tensors in no group are
buffers, frozen or tied. Often several assignments of tensors to groups fit; a tensor's group is known
where all of them agree.

A torch file lists its tensors in the model's order. A safetensors file does not. But a model lists a
module's own parameters before those of its children, each child's parameters together, and numbered
children in ascending order; so the search covers all orders of that kind at once.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Shape = tuple[int, ...]
MOST_STEPS = 500_000
"""Steps of the search before it gives up, about a second; 64 layers of Mamba in two groups take 11,000."""
MOST_GROUPS = 2000
"""Most groups in one search: a large model with a group for each parameter."""

NONE = -1
"""The value for "in no group" among the groups that a tensor may be in."""


class _TooManyWaysError(Exception):
    """The shapes allow so many assignments that the search was given up."""


def certain_groups(
    names: Sequence[str], shapes: Sequence[Shape], groups: Sequence[Sequence[Shape | None]], *, in_order: bool
) -> dict[int, int]:
    """Return tensor → group, by their positions, for the tensors whose group is certain.

    Parameters
    ----------
    names, shapes
        Of every tensor that may be a parameter; names are dotted, as stored.
    groups
        Shape of every parameter of every group, in order; None where it is unknown.
    in_order
        Whether the tensors are listed in the model's order.
    """
    if len(groups) > MOST_GROUPS:
        return {}
    held = Counter(shapes)
    wanted = Counter(shape for group in groups for shape in group)
    guesses = wanted.pop(None, 0)
    # A shape that no tensor has belongs to a parameter that the file lacks or stores in another form.
    groups = [[shape for shape in group if shape is None or shape in held] for group in groups]
    kept = [i for i, shape in enumerate(shapes) if guesses or shape in wanted]
    if sum(map(len, groups)) > len(kept):
        return {}
    certain = _by_shape_alone(shapes, groups, held, wanted)
    if len(certain) == sum(map(len, groups)):
        return certain
    found: dict[int, set[int]] = defaultdict(set)
    try:
        for order in _orders([names[i] for i in kept], [shapes[i] for i in kept], in_order):
            for position, owners in _Search(groups, len(kept)).owners(order).items():
                found[kept[position]] |= owners
    except _TooManyWaysError:
        return certain
    if not found and in_order:  # stored in another order after all
        return certain_groups(names, shapes, groups, in_order=False)
    for position, owners in found.items():
        if len(owners) == 1 and NONE not in owners:
            certain[position] = next(iter(owners))
    return dict(sorted(certain.items()))


def _by_shape_alone(
    shapes: Sequence[Shape],
    groups: Sequence[Sequence[Shape | None]],
    held: Counter[Shape],
    wanted: Counter[Shape | None],
) -> dict[int, int]:
    """Return the group of every tensor whose shape occurs in one group as often as in the file; order is ignored."""
    if any(wanted.get(shape, 0) > count for shape, count in held.items()):
        return {}
    owner = {
        shape: number
        for number, group in enumerate(groups)
        for shape, count in Counter(group).items()
        if shape is not None and count == held[shape]
    }
    if len(groups) == 1 and len(groups[0]) == len(shapes):  # shapes unknown, and nothing left out
        return dict.fromkeys(range(len(shapes)), 0)
    return {position: owner[shape] for position, shape in enumerate(shapes) if shape in owner}


# --- orders in which a model may list its parameters ---------------------------------------------


@dataclass(frozen=True, eq=False)
class _Block:
    """A tensor, or blocks that come in order or in any order; equal `kind`, interchangeable blocks."""

    kind: int
    order: Literal["tensor", "fixed", "any"]
    parts: tuple[_Block, ...] = ()
    position: int = -1
    shape: Shape = ()
    alike: tuple[tuple[_Block, ...], ...] = ()
    """Parts in any order, sorted into kinds."""


@dataclass
class _Builder:
    kinds: dict[object, int] = field(default_factory=dict)

    def tensor(self, position: int, shape: Shape) -> _Block:
        return _Block(self._kind(shape), "tensor", position=position, shape=shape)

    def fixed(self, parts: Iterable[_Block]) -> _Block:
        parts = tuple(parts)
        return parts[0] if len(parts) == 1 else _Block(self._kind("fixed", *(p.kind for p in parts)), "fixed", parts)

    def any(self, parts: Iterable[_Block]) -> _Block:
        parts = sorted(parts, key=lambda part: part.kind)
        if len(parts) == 1:
            return parts[0]
        alike = tuple(tuple(same) for _, same in itertools.groupby(parts, key=lambda part: part.kind))
        return _Block(self._kind("any", *(p.kind for p in parts)), "any", tuple(parts), alike=alike)

    def _kind(self, *what: object) -> int:
        return self.kinds.setdefault(what, len(self.kinds))


def _orders(names: Sequence[str], shapes: Sequence[Shape], in_order: bool) -> Iterator[_Block]:
    """Yield the model's order, or all that it can be, and the alphabet's."""
    build = _Builder()
    tensors = [build.tensor(position, shape) for position, shape in enumerate(shapes)]
    yield (
        build.fixed(tensors)
        if in_order
        else _module(build, [(n.split("."), t) for n, t in zip(names, tensors, strict=True)])
    )
    yield build.fixed(tensors[i] for i in sorted(range(len(names)), key=names.__getitem__))


def _module(build: _Builder, tensors: Sequence[tuple[list[str], _Block]]) -> _Block:
    """Return the orders of a module: its own parameters, then its children one after another."""
    own = {path[0]: tensor for path, tensor in tensors if len(path) == 1}
    children: dict[str, list[tuple[list[str], _Block]]] = {}
    for path, tensor in tensors:
        if len(path) > 1:
            children.setdefault(path[0], []).append((path[1:], tensor))
    below = {name: _module(build, inside) for name, inside in children.items()}
    return build.fixed([_among(build, blocks) for blocks in (own, below) if blocks])


def _among(build: _Builder, blocks: dict[str, _Block]) -> _Block:
    if blocks.keys() == {"weight", "bias"}:  # every module of torch registers its weight first
        return build.fixed([blocks["weight"], blocks["bias"]])
    parts = [block for name, block in blocks.items() if not name.isdecimal()]
    if numbered := sorted((name for name in blocks if name.isdecimal()), key=int):
        parts.append(build.fixed(blocks[name] for name in numbered))
    return build.any(parts)


# --- the search -----------------------------------------------------------------------------------


class _Search:
    """All ways to lay the groups over one order of the tensors, without listing them.

    A state is how many parameters of each group, and how many tensors of none, have been met; it is
    kept as one whole number in mixed radix. Forward, a block leads from a state to a set of states;
    backward from the end, the steps that lie on a complete way are marked.
    """

    def __init__(self, groups: Sequence[Sequence[Shape | None]], tensors: int) -> None:
        self._groups = [(group, len(group)) for group in groups]
        self._left_out = tensors - sum(map(len, groups))
        self._strides = list(itertools.accumulate((len(group) + 1 for group in groups), operator.mul, initial=1))
        self._goal = self._strides[-1] * (self._left_out + 1) - 1
        self._moves: dict[tuple[Shape, int], list[tuple[int, int]]] = {}
        self._reached: dict[tuple[int, int], frozenset[int]] = {}
        self._marked: set[tuple[int, int, int]] = set()
        self._owners: dict[int, set[int]] = defaultdict(set)
        self._steps = 0

    def owners(self, order: _Block) -> dict[int, set[int]]:
        """Return, for every tensor, the groups it is in over all ways; empty if there is none."""
        if self._goal in self._reach(order, 0):
            self._mark(order, 0, self._goal)
        return self._owners

    def _reach(self, block: _Block, start: int) -> frozenset[int]:
        if (known := self._reached.get((block.kind, start))) is not None:
            return known
        if block.order == "tensor":
            ends = {after for _, after in self._move(block.shape, start)}
        elif block.order == "fixed":
            ends = self._along(block, start)[-1]
        else:
            ends = next(reversed(self._lattice(block, start).values()))
        self._reached[block.kind, start] = frozenset(ends)
        return self._reached[block.kind, start]

    def _move(self, shape: Shape, state: int) -> list[tuple[int, int]]:
        """Return (group, state after) for each group whose next parameter may be of that shape."""
        if (known := self._moves.get((shape, state))) is None:
            self._count(len(self._groups))
            known = []
            for number, (group, length) in enumerate(self._groups):
                met = state // self._strides[number] % (length + 1)
                if met < length and group[met] in (shape, None):
                    known.append((number, state + self._strides[number]))
            if state // self._strides[-1] < self._left_out:
                known.append((NONE, state + self._strides[-1]))
            self._moves[shape, state] = known
        return known

    def _along(self, block: _Block, start: int) -> list[set[int]]:
        """Return the states before each part of a fixed order, and after the last."""
        fronts = [{start}]
        for part in block.parts:
            fronts.append(set().union(*(self._reach(part, state) for state in fronts[-1])))
        self._count(sum(map(len, fronts)))
        return fronts

    def _lattice(self, block: _Block, start: int) -> dict[tuple[int, ...], set[int]]:
        """Return how many parts of each kind are done → states, from none to all of them."""
        sizes = [len(same) for same in block.alike]
        lattice = {(0,) * len(sizes): {start}}
        queue = list(lattice)
        for done in queue:
            for kind, same in enumerate(block.alike):
                if done[kind] < sizes[kind]:
                    after = (*done[:kind], done[kind] + 1, *done[kind + 1 :])
                    states = {end for state in lattice[done] for end in self._reach(same[0], state)}
                    self._count(len(states) + 1)
                    if states and after not in lattice:
                        lattice[after] = set()
                        queue.append(after)
                    if states:
                        lattice[after] |= states
        full = tuple(sizes)
        lattice[full] = lattice.pop(full, set())
        return lattice

    def _mark(self, block: _Block, start: int, end: int) -> None:
        """Note the owners of the tensors of a block over all ways from one state to another."""
        if (id(block), start, end) in self._marked:
            return
        self._marked.add((id(block), start, end))
        self._count()
        if block.order == "tensor":
            self._owners[block.position] |= {owner for owner, after in self._move(block.shape, start) if after == end}
        elif block.order == "fixed":
            alive = {end}
            for part, front in zip(reversed(block.parts), reversed(self._along(block, start)[:-1]), strict=True):
                alive = {state for state in front if self._mark_between([part], state, alive)}
        else:
            self._mark_lattice(block, start, end)

    def _mark_lattice(self, block: _Block, start: int, end: int) -> None:
        lattice = self._lattice(block, start)
        alive = {tuple(len(same) for same in block.alike): {end}}
        for done in sorted(lattice, key=sum, reverse=True):
            for kind, same in enumerate(block.alike):
                ends = alive.get((*done[:kind], done[kind] + 1, *done[kind + 1 :]), set())
                lead = {state for state in lattice[done] if ends and self._mark_between(same, state, ends)}
                alive.setdefault(done, set()).update(lead)

    def _mark_between(self, same: Sequence[_Block], state: int, ends: set[int]) -> bool:
        """Mark the ways from a state to any of `ends` through a block, or any that is like it."""
        through = self._reach(same[0], state) & ends
        for end in through:
            for block in same:
                self._mark(block, state, end)
        return bool(through)

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise _TooManyWaysError
