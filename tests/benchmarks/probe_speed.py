"""Cost of clocks and of retention over a plain forward pass: python -m tests.benchmarks.probe_speed [--device cuda]

Models of transformers with random weights, at the widths of released ones; 2,048 tokens, and of every layer 64 channels
at 128 positions. All three are measured in turn in one run, so that only their ratios count; nothing is asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from ssmdiag.probing.clocks import ObservedLayer, observing
from ssmdiag.probing.retention import RetentionMeter
from ssmdiag.recurrence.clock import Clock

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
    meters: dict[str, RetentionMeter] = {}

    def plain() -> None:
        model(tokens, use_cache=False)

    def clocks() -> None:
        with observing(model, lambda layer, clock: None):
            plain()

    def seen(layer: ObservedLayer, clock: Clock) -> None:
        meters.setdefault(layer.name, RetentionMeter(layer.name)).add(clock)

    def retention() -> None:
        meters.clear()
        with observing(model, seen):
            plain()

    ways = {"plain": plain, "clocks": clocks, "clocks and retention": retention}
    best = dict.fromkeys(ways, float("inf"))
    with torch.no_grad():
        plain()
        for _ in range(rounds):
            for name, run in ways.items():
                best[name] = min(best[name], seconds(run, device))
    more = ", ".join(f"{name} +{best[name] / best['plain'] - 1:.1%}" for name in list(ways)[1:])
    print(f"{model_type}, {len(meters)} layers × {TOKENS:,} tokens on {device}: plain {best['plain']:.2f} s, {more}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    for name in options.models:
        measure(name, options.device, options.rounds)
