"""Random numbers that depend on a seed and a place alone, whoever draws them: torch, numpy or `random`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*place: object, device: str = "cpu") -> Iterator[None]:
    """Draw from generators seeded by `place`; their previous states are restored afterwards.

    A run that is resumed, or spread over ranks, needs no generator's state: step and seed are the place.
    """
    number = int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "little") >> 1
    python, arrays = random.getstate(), np.random.get_state()
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        if where.type == "cpu":
            torch.default_generator.manual_seed(
                number
            )  # torch.manual_seed notes the whole call stack for each GPU kind
        else:
            torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
