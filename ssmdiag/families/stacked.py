"""torch's recurrent modules: each holds all of its layers and directions, in tensors named by `_l0`, `_l1_reverse`.

`weight_ih` (gate × hidden, input), `weight_hh` (gate × hidden, hidden or projection), `bias_ih` and `bias_hh`
(gate × hidden), which are added, and `weight_hr` (projection, hidden) of an LSTM with a projection; a cell has the same
names without a suffix. Gates stand one after the other in the rows: torch/nn/modules/rnn.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Layer, Spelling, Steering, Tensor
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def spellings(gates: int, module: str) -> Iterator[Spelling]:
    """Yield the spellings of a module of torch, and of its cell, whose tensors have the rows of so many gates."""
    rows = f"{gates}*hidden" if gates > 1 else "hidden"
    for name, end in ((module, "_l0"), (f"{module}Cell", "")):
        yield Spelling(
            f"torch.nn.{name}",
            {f"weight_hh{end}": f"{rows} hidden", f"weight_ih{end}": f"{rows} input"},
            {f"bias_ih{end}": rows, f"bias_hh{end}": rows},
            # A cell with further weights of its own computes something else; what stands below it may be anything.
            strangers=None if end else r"^[^.]+$",
        )


class Direction(NamedTuple):
    """One direction of one layer of a module."""

    layer: Layer
    """Its tensors by the names in `PARTS`, with a record of its own."""
    branch: str
    """What distinguishes it from the others of its module; empty where it is the only one."""


def directions(layer: Layer) -> list[Direction]:
    """Return the directions of all layers of a module, in torch's order. Raises LayerError where one lacks a part."""
    if not layer.spelling.telltale.endswith("_l0"):
        return [Direction(_part(layer, ""), "")]
    found = []
    for number in range(_layers(layer)):
        for end, branch in (("", ""), ("_reverse", " backward")):
            if layer.beside(f"weight_hh_l{number}{end}") is not None:
                found.append(Direction(_part(layer, f"_l{number}{end}"), f"l{number}{branch}"))
    return found if len(found) > 1 else [Direction(found[0].layer, "")]


def _layers(layer: Layer) -> int:
    count = 1
    while layer.beside(f"weight_hh_l{count}") is not None:
        count += 1
    return count


def _part(layer: Layer, end: str) -> Layer:
    """Return one direction of one layer. Raises LayerError where its tensors do not fit together."""
    names = {part: layer.full_name(f"{part}{end}") for part in PARTS if layer.beside(f"{part}{end}") is not None}
    bench = replace(layer.again(), names={**layer.names, **names})
    if "weight_ih" not in names:
        raise LayerError(
            f"{layer.full_name(f'weight_ih{end}')} is missing.", expected=f"it beside {names['weight_hh']}"
        )
    rows = bench.shape("weight_ih")[:1]
    for part in ("weight_hh", "bias_ih", "bias_hh"):
        if part in names and bench.shape(part)[:1] != rows:
            raise LayerError(
                f"{names[part]} has shape {bench.shape(part)}, {names['weight_ih']} {bench.shape('weight_ih')}: the "
                "tensors do not belong together."
            )
    return bench


def bias(layer: Layer, rows: slice = slice(None)) -> Tensor | None:
    """Return rows of the sum of both biases of a direction, (row,); None where it has none."""
    parts = [layer[part][rows] for part in ("bias_ih", "bias_hh") if part in layer]
    return sum(parts[1:], parts[0]) if parts else None


def log_gate(layer: Layer, gates: int, gate: int) -> Tensor:
    """Return log σ(bias) of one of a direction's gates, (channel, 1), and say where there is no bias."""
    import torch

    hidden = layer.shape("weight_hh")[0] // gates
    value = bias(layer, slice(gate * hidden, (gate + 1) * hidden))
    if value is None:
        layer.note("its gates have no bias: at zero input every decay is 1/2, whatever the weights")
        value = torch.zeros(hidden, dtype=torch.float64, device=layer.device)
        return -torch.nn.functional.softplus(-value)[:, None]
    name = "bias_ih" if "bias_ih" in layer else "bias_hh"
    return -layer.weight(name, "-logsigmoid", part=value)[:, None]


def steering(layer: Layer) -> Iterator[Steering]:
    """Yield all tensors of a module: what its gates read of the input and of the state, and their biases."""
    several = layer.spelling.telltale.endswith("_l0")
    for number in range(_layers(layer) if several else 1):
        for way, where in (("", ""), ("_reverse", ", backward")) if several else (("", ""),):
            end = f"_l{number}{way}" if several else ""
            where = f"{where}, layer {number}" if several and number else where
            first = not number and not way
            yield Steering(f"weights on the input{where}", f"weight_ih{end}", needed=first)
            yield Steering(f"weights on the state{where}", f"weight_hh{end}", needed=first)
            yield Steering(f"bias on the input{where}", f"bias_ih{end}")
            yield Steering(f"bias on the state{where}", f"bias_hh{end}")
            yield Steering(f"projection{where}", f"weight_hr{end}")


def clock(module: Any, input: Tensor, hx: Any, gates: int, gate: int) -> Clock:
    """Return the clock of one gate of a live LSTM or GRU: its layers one after the other in the channels.

    Of a bidirectional one, the direction from the start. Raises LayerError for other modules with such tensors.
    """
    import torch

    kind: Any = torch.nn.LSTM if gates == 4 else torch.nn.GRU
    if not isinstance(module, kind):
        raise LayerError(f"its module is a {type(module).__name__}.", expected=f"torch.nn.{kind.__name__}")
    if module.training and module.dropout and module.num_layers > 1:
        raise LayerError("its module is in training: dropout changes what its layers read.", advice="call eval().")
    x, steps = input.to(module.weight_hh_l0.dtype), []
    ways = ("", "_reverse") if module.bidirectional else ("",)
    for number in range(module.num_layers):
        outputs = []
        for way, end in enumerate(ways):
            weights = {part: getattr(module, f"{part}_l{number}{end}", None) for part in PARTS}
            past = x.flip(1) if way else x
            start = _start(module, hx, number * len(ways) + way, past)
            output = _run(past, start, [weight for weight in weights.values() if weight is not None], module)
            outputs.append(output.flip(1) if way else output)
            if not way:
                before = torch.cat([start[0].movedim(0, 1), output[:, :-1]], 1)
                rows = slice(gate * module.hidden_size, (gate + 1) * module.hidden_size)
                steps.append(softplus(-_preactivation(past, before, weights, rows).double()))
        x = torch.cat(outputs, -1)
    step = torch.cat(steps, -1)
    return Clock(step, step.new_ones(step.shape[-1], 1))


def _start(module: Any, hx: Any, position: int, x: Tensor) -> list[Tensor]:
    """Return the states (1, batch, hidden) before the first token of one direction: h, and c of an LSTM."""
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    if hx is None:
        states = [x.new_zeros(1, len(x), size) for size in sizes]
    else:
        states = [state.to(x)[position : position + 1] for state in (hx if isinstance(hx, tuple) else (hx,))]
    return states if module.mode == "LSTM" else states[:1]


def _run(x: Tensor, start: list[Tensor], weights: list[Tensor], module: Any) -> Tensor:
    """Return the output (batch, time, hidden or projection) of one direction of one layer."""
    import torch

    lstm = module.mode == "LSTM"
    function: Any = torch.lstm if lstm else torch.gru
    output: Tensor = function(x, start if lstm else start[0], weights, module.bias, 1, 0.0, False, False, True)[0]
    return output


def _preactivation(x: Tensor, before: Tensor, weights: Mapping[str, Any], rows: slice) -> Tensor:
    """Return what one gate is the sigmoid of, (batch, time, channel)."""
    import torch

    own: dict[str, Any] = {part: None if weight is None else weight[rows] for part, weight in weights.items()}
    from_input = torch.nn.functional.linear(x, own["weight_ih"], own["bias_ih"])
    return from_input + torch.nn.functional.linear(before, own["weight_hh"], own["bias_hh"])
