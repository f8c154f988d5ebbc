"""How often rules warn of healthy models, fresh and trained, over many seeds.

    python -m tests.benchmarks.false_alarms --seeds 10 [--device cuda]

Every healthy model of `tests.rules.healthy` once, those that take long to train among them, with horizons and
laws; those written from an initialisation again for each further seed, without. Counts models with a warning
or an error, and notes apart.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from ssmdiag import Diagnosis, diagnose
from tests.rules.healthy import ARCHITECTURES, HEALTHY, initial_state, save, trained_state


def diagnoses(seeds: int, device: str) -> Iterator[tuple[str, bool, Diagnosis]]:
    """Yield the name, whether it was trained, and the diagnosis of every model."""
    for model in HEALTHY:
        with tempfile.TemporaryDirectory() as folder:
            yield model.name, model.trained, diagnose(model.write(Path(folder) / "m"), most_channels=16, device=device)
    for seed in range(1, seeds):
        for name, architecture in ARCHITECTURES.items():
            for trained, state in ((False, initial_state), (True, trained_state)):
                with tempfile.TemporaryDirectory() as folder:
                    path = save(Path(folder) / "m", state(name, seed=seed), dict(architecture.config))
                    yield f"{name} (seed {seed})", trained, diagnose(path, memory=False, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    models: Counter[bool] = Counter()
    alarms: Counter[bool] = Counter()
    codes: Counter[tuple[bool, str, str]] = Counter()
    for name, trained, report in diagnoses(asked.seeds, asked.device):
        models[trained] += 1
        found = {(finding.code, finding.severity) for finding in report.findings}
        codes.update((trained, *key) for key in found)
        loud = sorted(key for key in found if key[1] != "note")
        if loud:
            alarms[trained] += 1
            print(f"{name}, {'trained' if trained else 'fresh'}: {loud}")
    for trained in (False, True):
        print(f"{'trained' if trained else 'fresh'}: {alarms[trained]} false alarms in {models[trained]} models")
        for (state, code, severity), count in sorted(codes.items()):
            if state is trained:
                print(f"  {code} {severity}: {count}")


if __name__ == "__main__":
    main()
