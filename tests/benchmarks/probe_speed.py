"""Cost of clocks and of retention over a plain forward pass: python -m tests.benchmarks.probe_speed [--device cuda]

Models of transformers with random weights, at the widths of released ones; 2,048 tokens, and of every layer 64 channels
at 128 positions. What is added to a pass is timed by itself, as passes differ from each other by more; the least of
some rounds counts, and only the ratios do; nothing is asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssmdiag import recognise
from ssmdiag.probing.clocks import ObservedLayer, observing
from ssmdiag.probing.retention import RetentionMeter
from ssmdiag.recurrence.clock import Clock
from ssmdiag.reparam import read_module

_SIZES = {"vocab_size": 1024, "hidden_size": 768, "num_hidden_layers": 4}
_ATTENTION = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2048, "head_dim": 64}
_LINEAR = {"linear_num_key_heads": 6, "linear_num_value_heads": 12, "linear_key_head_dim": 64,
           "linear_value_head_dim": 64}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mamba": {**_SIZES, "state_size": 16},
    "mamba2": {**_SIZES, "state_size": 128, "num_heads": 24, "head_dim": 64, "n_groups": 1},
    "qwen3_5_text": {**_SIZES, **_ATTENTION, **_LINEAR},
}
TOKENS = 2048


def build(model_type: str) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(model_type, **MODELS[model_type])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def seconds(run: Callable[[], object], device: str) -> float:
    """Return processor time, or on a GPU the time until it is done."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(model_type: str, device: str, rounds: int) -> None:
    model = build(model_type).to(device)
    tokens = torch.randint(0, 1024, (1, TOKENS), device=device)
    seen: list[tuple[ObservedLayer, Tensor, Clock]] = []
    inputs: dict[str, Tensor] = {}

    def keep(_: object, given: tuple[Any, ...], named: dict[str, Any], *, name: str) -> None:
        inputs[name] = next(value for value in (*given, *named.values()) if isinstance(value, Tensor))

    def plain() -> None:
        model(tokens, use_cache=False)

    with torch.no_grad():
        with observing(model, lambda layer, clock: seen.append((layer, inputs[layer.name], clock))) as observed:
            for layer in observed.layers:
                hook = partial(keep, name=layer.name)
                layer.module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
            plain()
        passes = [seconds(plain, device) for _ in range(rounds)]
        clocks = [seconds(lambda: [one.compute(one.module, x) for one, x, _ in seen], device) for _ in range(rounds)]
        retention = [seconds(lambda: [add(one, clock) for one, _, clock in seen], device) for _ in range(rounds)]
        found = [seconds(lambda: find(model), device) for _ in range(rounds)]
    whole = min(passes)
    print(
        f"{model_type}, {len(seen)} layers × {TOKENS:,} tokens on {device}: a pass takes {whole:.2f} s; finding layers "
        f"{min(found) / whole:+.1%}, clocks {min(clocks) / whole:+.1%}, retention {min(retention) / whole:+.1%}"
    )


def add(layer: ObservedLayer, clock: Clock) -> None:
    """Measure a clock as `probe` does."""
    RetentionMeter(layer.name).add(clock)


def find(model: Any) -> None:
    """Find the layers of a model, as each observation does once."""
    recognise(read_module(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    for name in options.models:
        measure(name, options.device, options.rounds)
