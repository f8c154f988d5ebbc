"""A model that can be built on the first rank and not on the second."""

import os

from torch import nn

from tests.retrain.given_models import Net


def build() -> nn.Module:
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has no such file")
    return Net()
