"""Small live models of every code that can be installed, each with an input it accepts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import mambapy.mamba
import mambapy.vim
import torch
from LRU_pytorch import LRU
from torch import Tensor, nn

from tests.families.tiny_transformers import TINY, tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # s5-pytorch scripts its scan with torch.jit
    from s5 import S5

WITHOUT_SWAP = frozenset({"bailing_hybrid", "glm5_next_text", "minimax", "xlstm"})
"""Of transformers: a bounded or capped gate, which no map can be put under, or slopes that are no parameters."""


@dataclass(frozen=True)
class Live:
    """How to build a float32 model in eval mode from a seed, and how to run it."""

    build: Callable[[int], nn.Module]
    run: Callable[[nn.Module], Tensor]
    map: str = "best(b=0.01)"
    """A map that holds its rates."""


def output(live: Live, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return live.run(model)


def _on_signal(channels: int) -> Callable[[nn.Module], Tensor]:
    signal = torch.randn(2, 12, channels, generator=torch.Generator().manual_seed(3))
    return lambda model: model(signal)


def _seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make().eval()

    return build


def _on_tokens(model: nn.Module) -> Tensor:
    return model(torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(3))).logits


def _transformers(model_type: str) -> Live:
    # RWKV and xLSTM write into the state they keep, and then have no gradient.
    settings = {"use_cache": False} if model_type in ("rwkv", "xlstm") else {}
    return Live(lambda seed: tiny_model(model_type, seed=seed, **settings).float(), _on_tokens)


def _s5(bidirectional: bool) -> S5:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return S5(6, 8, bidir=bidirectional)


def _mambapy_config() -> mambapy.mamba.MambaConfig:
    return mambapy.mamba.MambaConfig(d_model=8, n_layers=2, d_state=5)


def _digits(model: str) -> Callable[[], nn.Module]:
    path = Path(__file__).parents[2] / "examples" / "train_digits.py"
    script = ModuleType("train_digits")
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), script.__dict__)
    return lambda: script.Classifier(model, channels=6, modes=5, depth=2)


SWAPPABLE: dict[str, Live] = {
    **{f"transformers {kind}": _transformers(kind) for kind in TINY if kind not in WITHOUT_SWAP},
    "mambapy": Live(_seeded(lambda: mambapy.mamba.Mamba(_mambapy_config())), _on_signal(8)),
    "mambapy, vim": Live(
        _seeded(lambda: mambapy.vim.VMamba(mambapy.vim.MambaConfig(d_model=8, n_layers=2, d_state=5))), _on_signal(8)
    ),
    "s5-pytorch": Live(_seeded(lambda: _s5(False)), _on_signal(6)),
    "s5-pytorch, bidirectional": Live(_seeded(lambda: _s5(True)), _on_signal(6)),
    "LRU-pytorch": Live(_seeded(lambda: LRU(3, 4, 7, rmin=0.2)), _on_signal(3)),
    "S4D of the examples": Live(_seeded(_digits("s4d")), _on_signal(1)),
    "LRU of the examples": Live(_seeded(_digits("lru")), _on_signal(1)),
}
"""Models with a trainable rate, by the code they come from."""

FREEZABLE: dict[str, Live] = {
    **SWAPPABLE,
    **{f"transformers {kind}": _transformers(kind) for kind in sorted(WITHOUT_SWAP) if kind in TINY},
}

ONE_PER_FAMILY = (
    *(f"transformers {kind}" for kind in ("zamba", "mamba2", "qwen3_next", "kimi_linear", "recurrent_gemma", "rwkv")),
    *("mambapy, vim", "s5-pytorch", "LRU-pytorch", "S4D of the examples"),
)
