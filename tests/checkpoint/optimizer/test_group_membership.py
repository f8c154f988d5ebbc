"""The search for groups against every way written out, on models small enough for that."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmdiag.checkpoint.optimizer import group_membership
from ssmdiag.checkpoint.optimizer.group_membership import certain_groups

Shape = tuple[int, ...]

NAMES = (
    *("embed.weight", "layers.0.A", "layers.0.D", "layers.0.conv.weight", "layers.0.conv.bias", "layers.0.out.weight"),
    *("layers.1.A", "layers.1.D", "layers.1.conv.weight", "layers.1.conv.bias", "layers.10.A", "norm.weight", "scale"),
)


def traversals(names: list[str]) -> Iterator[list[str]]:
    """Yield every order in which modules with these parameters may list them."""
    heads = list(dict.fromkeys(name.split(".")[0] for name in names))
    own = [head for head in heads if head in names]
    children = [head for head in heads if head not in names]
    for first, second in itertools.product(arrangements(own), arrangements(children)):
        inside = [traversals([n[len(child) + 1 :] for n in names if n.startswith(f"{child}.")]) for child in second]
        for choice in itertools.product(*inside):
            below = ([f"{child}.{rest}" for rest in order] for child, order in zip(second, choice, strict=True))
            yield [*first, *itertools.chain(*below)]


def arrangements(keys: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the orders of keys: numbers count up, a weight comes before its bias."""
    numbers = sorted((key for key in keys if key.isdecimal()), key=int)
    for order in itertools.permutations(keys):
        if [key for key in order if key in numbers] == numbers and (
            set(keys) != {"weight", "bias"} or order[0] == "weight"
        ):
            yield order


def ways(shapes: list[Shape], groups: list[list[Shape | None]]) -> Iterator[tuple[int, ...]]:
    """Yield every way to lay the groups over tensors in this order: the group of each, −1 for none."""
    for owners in itertools.product(range(-1, len(groups)), repeat=len(shapes)):
        laid = [[shapes[i] for i, owner in enumerate(owners) if owner == number] for number in range(len(groups))]
        if all(
            len(held) == len(group) and all(b in (a, None) for a, b in zip(held, group, strict=True))
            for held, group in zip(laid, groups, strict=True)
        ):
            yield owners


def written_out(
    shape_of: dict[str, Shape], groups: list[list[Shape | None]], orders: list[list[str]]
) -> dict[str, int]:
    """Return the group of every tensor whose group is the same in all ways over all orders."""
    seen: dict[str, set[int]] = {name: set() for name in shape_of}
    for order in {tuple(order) for order in orders}:
        for owners in ways([shape_of[name] for name in order], groups):
            for name, owner in zip(order, owners, strict=True):
                seen[name].add(owner)
    return {name: owners.pop() for name, owners in seen.items() if len(owners) == 1 and owners != {-1}}


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, Shape], list[list[str]], random.Random]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    shape_of = {name: draw(st.sampled_from([(2,), (3,), (2, 3)])) for name in names}
    chance = draw(st.randoms(use_true_random=False))
    order = chance.choice(list(traversals(names)))
    count = draw(st.integers(1, 3))
    owner = {name: chance.choice([*range(count), *range(count), -1]) for name in order}
    groups = [[name for name in order if owner[name] == number] for number in range(count)]
    return {name: shape_of[name] for name in order}, groups, chance


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(models(), st.booleans(), st.booleans())
def test_a_group_is_certain_exactly_if_it_is_the_same_in_every_way(
    model: tuple[dict[str, Shape], list[list[str]], random.Random], in_order: bool, forgetful: bool
) -> None:
    shape_of, groups, chance = model
    laid: list[list[Shape | None]] = [
        [None if forgetful and chance.random() < 0.2 else shape_of[name] for name in group] for group in groups
    ]
    stored = list(shape_of) if in_order else sorted(shape_of)
    orders = [list(shape_of)] if in_order else list(traversals(stored))
    found = certain_groups(stored, [shape_of[name] for name in stored], laid, in_order=in_order)
    named = {stored[position]: group for position, group in found.items()}
    assert named == written_out(shape_of, laid, [*orders, sorted(stored)])
    for name, group in named.items():
        assert name in groups[group]


def test_interchangeable_blocks_are_not_told_apart() -> None:
    """Eleven parameters of one shape in one module, five of them in a second group: no order tells which."""
    names = [f"mixer.x_{letter}" for letter in "abcdefghijk"] + ["mixer.key.weight"]
    shapes = [(8,)] * 11 + [(8, 8)]
    found = certain_groups(names, shapes, [[(8,)] * 6 + [(8, 8)], [(8,)] * 5], in_order=False)
    assert found == {11: 0}


def test_a_shape_that_the_file_lacks_leaves_the_others_certain() -> None:
    """Experts joined in memory and apart on disk."""
    names = ["a.experts.0.up", "a.experts.1.up", "a.A_log", "a.norm.weight"]
    shapes: list[Shape] = [(4, 8), (4, 8), (16, 2), (8,)]
    assert certain_groups(names, shapes, [[(16, 2), (2, 4, 8)], [(8,)]], in_order=False) == {2: 0, 3: 1}


def test_a_model_stored_out_of_order_is_searched_in_every_order() -> None:
    names = ["a.weight", "b.weight", "b.bias", "a.bias"]
    shapes: list[Shape] = [(2, 2), (3, 3), (2,), (2,)]
    groups: list[list[Shape | None]] = [[(3, 3), (2,), (2, 2)], [(2,)]]
    assert certain_groups(names, shapes, groups, in_order=True) == {0: 0, 1: 0, 2: 0, 3: 1}


def test_what_fits_in_no_way_is_left_open() -> None:
    assert certain_groups(["a", "b"], [(2,), (3,)], [[(2,), (2,)]], in_order=True) == {}
    assert certain_groups(["a", "b"], [(2,), (3,)], [[(3,)], [(2,), (3,)]], in_order=True) == {}
    assert certain_groups([], [], [[(3,)]], in_order=True) == {}


def test_the_search_gives_up_rather_than_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_membership, "MOST_STEPS", 10_000)
    names = [f"layers.{i}.{part}.weight" for i in range(200) for part in "abcd"] + ["head.weight"]
    groups: list[list[Shape | None]] = [[(4, 4)] * 500, [(4, 4)] * 300 + [(9, 9)]]
    found = certain_groups(names, [(4, 4)] * 800 + [(9, 9)], groups, in_order=False)
    assert found == {800: 1}
