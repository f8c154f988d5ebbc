"""optax's state beside the weights of a JAX checkpoint → `OptimizerGroup`s.

optax keeps moments in trees of the parameters' own structure (`mu`, `trace` …), so every parameter of a group has its
name. Groups are the labels of multi_transform (`inner_states`). Settings are in the state where inject_hyperparams
put them (`hyperparams`), as in lindermanlab/S5; elsewhere the code alone has them, and they are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.formats.jax_tree import JaxTree, leaves
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup

MOMENTS = ("mu", "nu", "trace", "momentum", "v", "sum_of_squares")
"""Fields of optax's states that mirror the parameters, in the order they are tried."""
INSIDE = frozenset({*MOMENTS, "hyperparams", "inner_states"})
"""Fields that hold no further states of the same group."""
WITHOUT_SETTINGS = "optax's state gives no settings unless inject_hyperparams is used"
DEEPEST, MOST_SETTINGS = 16, 64


def optax_groups(file: JaxTree, names: Mapping[str, str]) -> Iterator[OptimizerGroup]:
    """Yield the groups of a file's optimiser; `names` are the checkpoint's, by those in the file."""
    for state in _labelled(file.optimizer):
        found = list(_parts(state))
        moments = next((part[key] for key in MOMENTS for part in found if _mirrors(part.get(key))), None)
        if moments is None:
            continue
        given = (part["hyperparams"] for part in found if isinstance(part.get("hyperparams"), Mapping))
        hyper: Mapping[str, Any] = next(given, {})
        try:
            members = [name for name, _ in leaves(moments)]
            said = {str(key): file.number(value) for key, value in list(hyper.items())[:MOST_SETTINGS]}
        except TornError:
            continue
        except file.broken:
            continue
        known = {key: value for key, value in said.items() if value is not None}
        yield OptimizerGroup(
            learning_rate=known.pop("learning_rate", None),
            initial_learning_rate=None,
            weight_decay=known.pop("weight_decay", None),
            parameters=tuple(names[name] for name in members if name in names) or None,
            count=len(members),
            settings=known,
            note="" if hyper else WITHOUT_SETTINGS,
        )


def _labelled(state: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the state of each label of a multi_transform, or the whole where there is none."""
    found = (part["inner_states"] for part in _parts(state) if isinstance(part.get("inner_states"), Mapping))
    inside = next(found, None)
    if inside is None or depth > DEEPEST:
        yield state
    else:
        for label in inside.values():
            yield from _labelled(label, depth + 1)


def _parts(state: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings of a state: those in a chain, and those in wrappers."""
    waiting: list[tuple[Any, int]] = [(state, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, Mapping):
            yield node
            items = [value for key, value in node.items() if key not in INSIDE]
        else:
            items = node if isinstance(node, list) else []
        if depth < DEEPEST:
            waiting += [(item, depth + 1) for item in reversed(items)]


def _mirrors(moments: Any) -> bool:
    return isinstance(moments, (Mapping, list, Entry)) and any(True for _ in leaves(moments))
