"""Healthy models, which no rule may warn of: freshly initialised and trained ones of every family.

    for model in HEALTHY:
        path = model.write(directory)

Fresh: what the original code writes (`initialisations`), or the original module itself. Trained: a few dozen
steps of Adam on a small task where the module runs here; else every trainable tensor moved as training
moves it, time scales by tens of per cent, norms and skips by a tenth, projections by a third of their spread.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.families.tiny_transformers import TINY
from tests.rules.initialisations import ARCHITECTURES, MODEL, Architecture

STEPS = 30
VOCABULARY = 64


class Healthy(NamedTuple):
    """A model no rule may warn of."""

    name: str
    trained: bool
    write: Callable[[Path], Path]
    """Directory to write into → what ssmdiag is to read."""
    slow: bool = False


def generator(name: str, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))


def save(directory: Path, state: dict[str, Tensor], config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# Models of a family written from its initialisation


def initial_state(name: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Return a whole fresh model: embedding, norms, recurrent layers."""
    model, g = ARCHITECTURES[name], generator(name, seed)
    state = {"embedding.weight": 0.02 * torch.randn(VOCABULARY, MODEL, generator=g)}
    for layer in range(model.layers):
        path = model.path.format(layer)
        state |= {f"{path}.{local}": value for local, value in model.layer(g, layer, max(model.layers, 2)).items()}
        if model.norm:
            state[model.norm.format(layer)] = torch.ones(MODEL)
    return state | (model.shared(model.layers) if model.shared else {})


def trained_state(name: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Return the same model with every trainable tensor moved."""
    model, g = ARCHITECTURES[name], generator(name, seed + 1)
    return {key: moved(key, value, model, g) for key, value in initial_state(name, seed=seed).items()}


MULTIPLICATIVE = (
    "Lambda",
    "Lambda_re",
    "Lambda_im",
    "A_re",
    "A_im",
    "A_diag",
    "W.weight",
    "A_imag",
    "w_imag",
    "kernel.A_imag",
)
"""Tensors that are an eigenvalue itself, not its logarithm: training scales them."""


def moved(key: str, value: Tensor, model: Architecture, g: torch.Generator) -> Tensor:
    """Return a tensor as training might leave it."""
    if not (value.is_floating_point() or value.is_complex()) or key.rpartition(".")[2] in model.fixed:
        return value
    real = torch.view_as_real(value) if value.is_complex() else value
    noise = torch.randn(real.shape, generator=g, dtype=real.dtype)
    rows = torch.randn(real.shape[:1] + (1,) * (real.ndim - 1), generator=g, dtype=real.dtype)
    if any(key.endswith(f".{name}") for name in MULTIPLICATIVE):
        new = real * torch.exp(0.1 * rows + 0.05 * noise)
    elif real.ndim >= 2 and key.endswith(("weight", "C", "B", "P", "_re", "_im", "W")):
        new = real + 0.3 * float(real.std().clamp(min=0.02)) * noise
    elif "norm" in key or key.rpartition(".")[2] in ("D", "Ds", "D_b", "D.0"):
        new = real + 0.1 * noise
    else:
        new = real + 0.2 * rows + 0.1 * noise
    return torch.view_as_complex(new) if value.is_complex() else new


def _written(name: str, trained: bool) -> Healthy:
    def write(directory: Path) -> Path:
        state = trained_state(name) if trained else initial_state(name)
        return save(directory, state, dict(ARCHITECTURES[name].config))

    return Healthy(name, trained, write)


# Original modules, fresh and after some steps of Adam


def train(model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor], *, length: int = 16) -> None:
    """Teach a model to say each token again two steps later."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    g = generator("tokens")
    for _ in range(STEPS):
        tokens = torch.randint(2, VOCABULARY, (4, length), generator=g)
        predicted = logits(model, tokens)[:, 2:].flatten(0, 1).float()
        loss = functional.cross_entropy(predicted, tokens[:, :-2].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if not math.isfinite(loss.item()):
        raise AssertionError("training diverged: not a healthy model")


class Around(nn.Module):
    """Embedding → blocks of norm and mixer → logits, for packages that offer the mixer alone."""

    def __init__(self, mixers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in mixers)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + functional.gelu(layer(norm(x)))
        return self.head(x)


def s5_pytorch() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its package uses torch.jit, which is deprecated
        from s5 import S5

        return Around([S5(32, 32) for _ in range(3)], 32)


def lru_pytorch() -> nn.Module:
    from LRU_pytorch import LRU

    return Around([LRU(16, 16, 24) for _ in range(2)], 16)


def mambapy(version: int) -> nn.Module:
    if version == 1:
        from mambapy.mamba import Mamba, MambaConfig

        mamba: nn.Module = Mamba(MambaConfig(d_model=64, n_layers=3, d_state=16, use_cuda=False))
    else:
        from mambapy.mamba2 import Mamba2, Mamba2Config

        mamba = Mamba2(
            Mamba2Config(d_model=64, n_layers=3, d_head=16, d_state=16, use_mem_eff_path=False, device="cpu")
        )
    return nn.ModuleDict({"embedding": nn.Embedding(VOCABULARY, 64), "mamba": mamba, "norm": nn.LayerNorm(64)})


def _mambapy_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model["norm"](model["mamba"](model["embedding"](tokens))) @ model["embedding"].weight.T  # type: ignore[index]


PACKAGES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "s5-pytorch": (s5_pytorch, lambda model, tokens: model(tokens)),
    "LRU-pytorch": (lru_pytorch, lambda model, tokens: model(tokens)),
    "mambapy-1": (lambda: mambapy(1), _mambapy_logits),
}


def _packaged(name: str, trained: bool) -> Healthy:
    def write(directory: Path) -> Path:
        build, logits = PACKAGES[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build()
            if trained:
                train(model, logits)
        return save(directory, {key: value.detach() for key, value in model.state_dict().items()}, {})

    return Healthy(name, trained, write)


UNSET_STEP = ("bamba", "granitemoehybrid", "falcon_h1", "jamba")
"""Types that transformers starts at dt_bias = 1 or 0, Δ = 1.31 or 0.69, where their makers' code draws it from
[0.001, 0.1]: what SSM404 is there for (transformers issue 43717). Not healthy, and so not here."""


def transformers_model(model_type: str, directory: Path, *, trained: bool = False) -> Path:
    """Save the smallest model of a type as transformers starts it, or after some steps."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **TINY[model_type])
        model = transformers.AutoModelForCausalLM.from_config(config)
        if trained:
            train(model.train(), lambda module, tokens: module(tokens, use_cache=False).logits)
    model.save_pretrained(directory)
    return directory


def _transformers(model_type: str, trained: bool) -> Healthy:
    def write(directory: Path) -> Path:
        return transformers_model(model_type, directory, trained=trained)

    quick = ("mamba", "mamba2", "recurrent_gemma")
    return Healthy(f"transformers-{model_type}", trained, write, slow=trained and model_type not in quick)


def _shipped(path: Path) -> Healthy:
    step = path.stem.rpartition("-")[2]
    middle = step not in ("00000", "00100", "02000")
    return Healthy(f"{path.parent.name}-{path.stem}", step != "00000", lambda directory: path, slow=middle)


EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/*/*.safetensors"))

HEALTHY: tuple[Healthy, ...] = (
    *(_written(name, trained) for name in ARCHITECTURES for trained in (False, True)),
    *(_packaged(name, trained) for name in PACKAGES for trained in (False, True)),
    *(_transformers(name, trained) for name in TINY if name not in UNSET_STEP for trained in (False, True)),
    *(_shipped(path) for path in EXAMPLES),
)
"""All of them, fresh before trained of the same name."""

EACH = [
    pytest.param(model, id=f"{model.name}-{'trained' if model.trained else 'fresh'}",
                 marks=[pytest.mark.slow] if model.slow else [])
    for model in HEALTHY
]  # fmt: skip
"""For pytest.mark.parametrize: those that take long to make are marked slow."""
