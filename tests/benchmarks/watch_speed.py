"""CPU time of a reading of `ssmdiag.Watch` on a live model of Mamba-130M's recurrences: tests.benchmarks.watch_speed
[--device]

24 layers of 1,536 channels and 16 modes. The target is 40 ms a reading without laws, on one idle core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ssmdiag import Watch
from tests.reparam.bag import Bag

LAYERS, CHANNELS, MODES = 24, 1536, 16


def model() -> Bag:
    """Return a module with the weights that decide the decays of Mamba-130M, and the shapes of the rest."""
    state = {}
    for layer in range(LAYERS):
        path = f"backbone.layers.{layer}.mixer"
        steps = torch.empty(CHANNELS).uniform_(0.001**0.5, 0.1**0.5).square()
        state[f"{path}.A_log"] = torch.arange(1, MODES + 1).float().log().repeat(CHANNELS, 1)
        state[f"{path}.dt_proj.bias"] = steps + (-(-steps).expm1()).log()
        state[f"{path}.dt_proj.weight"] = torch.randn(CHANNELS, 48)
        state[f"{path}.x_proj.weight"] = torch.randn(80, CHANNELS)
    return Bag(state)


def seconds(watch: Watch, steps: range) -> float:
    """Return the median CPU time of readings at these train steps."""
    times = []
    for step in steps:
        start = time.process_time()
        watch.read(step)
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Print the time of recognition, of a reading and of one with laws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    torch.set_num_threads(1)
    live = model().to(parser.parse_args().device)
    start = time.process_time()
    watch = Watch(live, laws_every=0)
    print(f"recognition {1000 * (time.process_time() - start):.0f} ms of CPU")
    print(f"a reading {1000 * seconds(watch, range(20)):.1f} ms of CPU")
    print(f"a reading with laws {1000 * seconds(Watch(live, laws_every=1), range(3)):.0f} ms of CPU")


if __name__ == "__main__":
    main()
