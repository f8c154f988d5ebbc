"""Decay laws of 300,000 channels against scipy.optimize.curve_fit: tests.benchmarks.decay_speed [--device cuda]

The channels are of four kinds in equal parts: exponentials and power laws, which are fitted at once, and decaying
oscillations and sums of four exponentials, which are not. curve_fit gets what a careful user would give it: the same
window in logarithms, its own start values, the truncated law at the middle of each bin – one law where `compare_decay`
fits four and averages them over the bins.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from scipy.optimize import curve_fit

from ssmdiag.decay.decay import NOISE_MARGIN, compare_decay
from tests.decay.decay_suite import FLOAT32, bin_energy, log_spaced_edges

CHANNELS, CONTEXT, DRAWN, BY_CURVE_FIT = 300_000, 65_536, 400, 200


def draw(edges: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return (DRAWN, bin) mean squares, noise of float32 included."""
    lag = np.arange(CONTEXT)
    rows = []
    for index in range(DRAWN):
        rate = np.exp(random.uniform(np.log(3 / CONTEXT), -1))
        kernel = (
            lambda rate=rate: np.exp(-rate * lag),
            lambda: (1 + lag / np.exp(random.uniform(0, 6))) ** -random.uniform(0.6, 3),
            lambda rate=rate: np.exp(-rate * lag) * np.cos(random.uniform(2 * rate, 3) * lag),
            lambda: random.uniform(0.1, 1, 4) @ np.exp(-np.exp(random.uniform(-9, -3, (4, 1))) * lag),
        )[index % 4]()
        rows.append(bin_energy((kernel + FLOAT32 * random.standard_normal(CONTEXT)) ** 2, edges))
    return np.stack(rows)


def seconds_by_curve_fit(edges: np.ndarray, profiles: np.ndarray) -> float:
    """Return seconds per channel, failures to converge included as they come."""
    lag = (edges[:-1] + edges[1:] - 1) / 2

    def law(t: np.ndarray, a: float, p: float, b: float, log_offset: float) -> np.ndarray:
        return a - p * np.log1p(t / np.exp(log_offset)) - b * t / CONTEXT

    start = time.perf_counter()
    for row in profiles:
        above = row > NOISE_MARGIN * FLOAT32**2
        bounds = ([-50, 0, 0, -1.4], [50, 50, 1e6, 12])
        try:
            curve_fit(law, lag[above], 0.5 * np.log(row[above]), p0=[0, 1, 1, 2], bounds=bounds)
        except (RuntimeError, ValueError, TypeError):
            continue
    return (time.perf_counter() - start) / len(profiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    random = np.random.default_rng(0)
    edges = log_spaced_edges(CONTEXT)
    profiles = draw(edges, random)
    many = profiles[random.integers(0, DRAWN, CHANNELS)] * random.uniform(0.5, 1, (CHANNELS, 1))
    arguments = torch.from_numpy(edges).long(), torch.from_numpy(many).to(device), FLOAT32**2
    compare_decay(*(part[:20_000] if part is arguments[1] else part for part in arguments), context=CONTEXT)
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    comparison = compare_decay(*arguments, context=CONTEXT)
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    one = seconds_by_curve_fit(edges, profiles[:BY_CURVE_FIT])
    print(
        json.dumps(
            {
                "channels": CHANNELS,
                "bins": profiles.shape[1],
                "device": device,
                "threads": torch.get_num_threads(),
                "seconds": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
                "curve_fit_ms_per_channel": round(1e3 * one, 2),
                "times_faster_per_channel": round(one * CHANNELS / wall),
                "laws": {law.value: count for law, count in comparison.counts().items()},
            }
        )
    )


if __name__ == "__main__":
    main()
