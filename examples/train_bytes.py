"""Train a small Mamba on the bytes of Python's own sources, until it predicts better than a 5-gram does.

    python examples/train_bytes.py --output /tmp/bytes --minutes 50
    python examples/train_bytes.py --output /tmp/bytes --minutes 3 --device cuda --batch 64
    ssmdiag probe /tmp/bytes --text /tmp/bytes/held-out.txt --length 1024

What a selective model remembers is decided by its input: this one is small enough to train in minutes on a GPU, and
good enough for its memory to mean something: 1.37 bits a byte held out after three minutes on one NVIDIA H200, where a
5-gram needs 2.02. A CPU makes some 1,700 steps in the default 50 minutes, a tenth of the text a GPU reads; how far that
gets depends on the machine. The text is the standard library that came with Python, a tenth of its files held out; the
last line above shows how far back the trained model could look (nominal), holds what it read (retained), and uses it
(used). `mamba-bytes` beside this file holds A_log, D and dt_proj.bias of the model of those three minutes.

| | |
|---|---|
| model | Mamba-1 (arXiv 2312.00752), tensors and config.json as transformers' MambaForCausalLM has them |
| scan | h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t, one multiply-add a step over all channels at once |
| to beat | P(b | 4 bytes) = (n(4 bytes, b) + k) / (n(4 bytes) + 256 k), counted on the same files, k tuned on others |
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn
from torch.nn import functional

LENGTH = 512
"""Bytes of a training sequence."""
JUDGED = 1024
"""Bytes of a sequence the loss is judged on; the second half counts."""
WINDOWS = 128
BYTES = 256
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "pydoc_data"}
ORDER = 5
ADDED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Values of k that are tried."""
RATE, WARM_UP = 4e-3, 100
ELEMENTS, ELEMENTS_CUDA = 1 << 18, 1 << 26
"""Of the states of a stretch of the scan: what fits into a cache, and enough to keep a GPU busy."""

Texts = dict[str, np.ndarray]
"""`train`, `tune` and `held out` → bytes, uint8."""


class Scan(torch.autograd.Function):
    """y_t = C_t h_t with h_t = exp(Δ_t A) h_{t−1} + Δ_t x_t B_t, time first.

    Δ, x and y are (time, batch, channel), A (channel, mode), B and C (time, batch, mode). States are made stretch by
    stretch, so that what a stretch needs stays in a CPU's cache, and made again for the gradient: only the state before
    each stretch is kept.
    """

    @staticmethod
    def forward(context, step: Tensor, A: Tensor, x: Tensor, B: Tensor, C: Tensor) -> Tensor:
        room = ELEMENTS_CUDA if x.is_cuda else ELEMENTS
        context.size = max(1, room // (x[0].numel() * A.shape[1]))
        y, h = torch.empty_like(x), x.new_zeros(*x.shape[1:], A.shape[1])
        before = []
        for part in torch.arange(len(x)).split(context.size):
            here = slice(int(part[0]), int(part[-1]) + 1)
            before.append(h)
            states = Scan.states(step[here], A, x[here], B[here], h)[1]
            y[here] = (states @ C[here][..., None])[..., 0]
            h = states[-1].clone()
        context.save_for_backward(step, A, x, B, C, *before)
        return y

    @staticmethod
    def states(step: Tensor, A: Tensor, x: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decays and the states of a stretch, (time, batch, channel, mode)."""
        decay = (step[..., None] * A).exp_()
        states = (step * x)[..., None] * B[:, :, None]
        for t in range(len(states)):
            states[t].addcmul_(decay[t], h)
            h = states[t]
        return decay, states

    @staticmethod
    def backward(context, toward_y: Tensor) -> tuple[Tensor, ...]:
        step, A, x, B, C, *before = context.saved_tensors
        toward_step, toward_x, toward_B, toward_C = (torch.empty_like(v) for v in (step, x, B, C))
        toward_A, later = torch.zeros_like(A), torch.zeros_like(before[0])
        for number in range(len(before) - 1, -1, -1):
            here = slice(number * context.size, min(len(x), (number + 1) * context.size))
            decay, h = Scan.states(step[here], A, x[here], B[here], before[number])
            toward_C[here] = (toward_y[here][:, :, None] @ h)[:, :, 0]
            g = toward_y[here][..., None] * C[here][:, :, None]
            g[-1] += later
            for t in range(len(g) - 2, -1, -1):
                g[t].addcmul_(decay[t + 1], g[t + 1])
            later = decay[0] * g[0]
            drive = (g @ B[here][..., None])[..., 0]
            toward_B[here] = ((step[here] * x[here])[:, :, None] @ g)[:, :, 0]
            toward_x[here] = drive * step[here]
            g[0] *= before[number]
            g[1:] *= h[:-1]
            g *= decay
            toward_A += (g * step[here][..., None]).sum((0, 1))
            toward_step[here] = (g * A).sum(-1) + drive * x[here]
        return toward_step, toward_A, toward_x, toward_B, toward_C


class Mixer(nn.Module):
    """A Mamba-1 layer, (batch, time, width) → the same."""

    def __init__(self, width: int, modes: int, taps: int = 4) -> None:
        super().__init__()
        channels, rank = 2 * width, math.ceil(width / 16)
        self.rank, self.modes = rank, modes
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
        self.x_proj = nn.Linear(channels, rank + 2 * modes, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, modes + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        step = torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_proj.bias.data = step.expm1().log()  # softplus gives the step back

    def forward(self, u: Tensor) -> Tensor:
        x, gate = self.in_proj(u).chunk(2, -1)
        x = functional.silu(self.conv1d(x.mT)[..., : u.shape[1]].mT)
        step, B, C = self.x_proj(x).split([self.rank, self.modes, self.modes], -1)
        step, B, C, x = (v.transpose(0, 1).contiguous() for v in (functional.softplus(self.dt_proj(step)), B, C, x))
        y = Scan.apply(step, -self.A_log.exp(), x, B, C) + self.D * x
        return self.out_proj(y.transpose(0, 1) * functional.silu(gate))


class Block(nn.Module):
    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(width, eps=1e-5), Mixer(width, modes)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, width: int, modes: int, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(BYTES, width)
        self.layers = nn.ModuleList(Block(width, modes) for _ in range(depth))
        self.norm_f = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Mamba(nn.Module):
    """Bytes (batch, time) → logits of the next one (batch, time, 256); the embedding is the readout too."""

    def __init__(self, width: int = 128, modes: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.settings = {"hidden_size": width, "state_size": modes, "num_hidden_layers": depth}
        self.backbone = Backbone(width, modes, depth)
        nn.init.normal_(self.backbone.embeddings.weight, std=0.02)
        for layer in self.backbone.layers:
            layer.mixer.out_proj.weight.data /= math.sqrt(depth)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.backbone(x), self.backbone.embeddings.weight)

    @property
    def config(self) -> dict[str, object]:
        """What transformers and ssmdiag need to know beside the tensors."""
        width = self.settings["hidden_size"]
        return {
            "architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": BYTES, **self.settings,
            "expand": 2, "intermediate_size": 2 * width, "conv_kernel": 4, "time_step_rank": math.ceil(width / 16),
            "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "seq_len": LENGTH,
        }  # fmt: skip


def read_sources(root: Path) -> Texts:
    """Return the sources below a directory, file after file, in three parts; the name of a file decides its part."""
    parts: dict[str, list[bytes]] = {"train": [], "tune": [], "held out": []}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not LEFT_OUT.intersection(path.parts):
            tenth = hashlib.sha256(name.encode()).digest()[0] * 20 // 256
            parts["tune" if tenth == 0 else "held out" if tenth in (1, 2) else "train"].append(path.read_bytes())
    return {part: np.frombuffer(b"\0".join(files), dtype=np.uint8) for part, files in parts.items()}


class Ngram:
    """Add-k estimates from counts of every ORDER bytes in a row."""

    def __init__(self, text: np.ndarray) -> None:
        self.whole = np.unique(grams(text, ORDER), return_counts=True)
        self.before = np.unique(grams(text[:-1], ORDER - 1), return_counts=True)

    def bits(self, text: np.ndarray, k: float) -> np.ndarray:
        """Return −log₂ P of each byte from the fifth on, given the four before it."""
        whole = grams(text, ORDER)
        seen, before = counted(self.whole, whole), counted(self.before, whole >> np.uint64(8))
        return -np.log2((seen + k) / (before + BYTES * k))

    def tuned(self, text: np.ndarray) -> float:
        """Return the k that predicts a text best."""
        return min(ADDED, key=lambda k: self.bits(text, k).mean())


def grams(text: np.ndarray, order: int) -> np.ndarray:
    """Return each `order` bytes in a row as one number."""
    found = np.zeros(len(text) - order + 1, dtype=np.uint64)
    for shift in range(order):
        found = found << np.uint64(8) | text[shift : len(text) - order + 1 + shift]
    return found


def counted(counts: tuple[np.ndarray, np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Return how often each was seen."""
    known, times = counts
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[place] == wanted, times[place], 0)


def windows(text: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return so many stretches of a text, evenly spaced, (window, length)."""
    starts = np.linspace(0, len(text) - length, count).astype(int)
    return text[starts[:, None] + np.arange(length)]


def bits_per_byte(model: Mamba, judged: np.ndarray, device: str, batch: int = 8) -> float:
    """Return the model's loss on the second half of each window."""
    total = 0.0
    model.eval()
    with torch.no_grad():
        for some in torch.as_tensor(judged).long().split(batch):
            logits = model(some[:, :-1].to(device))[:, judged.shape[1] // 2 - 1 :]
            target = some[:, judged.shape[1] // 2 :].to(device)
            total += float(functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    model.train()
    return total / math.log(2) / (judged.shape[0] * (judged.shape[1] // 2))


def train(
    model: Mamba, text: np.ndarray, *, minutes: float, batch: int, device: str, seed: int, say: Callable[[str], None]
) -> int:
    """Train for so many minutes, the rate falling to a hundredth as they pass; return the number of steps."""
    bytes_ = torch.as_tensor(text.copy())
    draw = torch.Generator().manual_seed(seed)
    # Weight decay would pull log-rates to 0, a rate of one nat per step: it would shorten memory.
    kept = [p for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("A_log")]
    rest = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("A_log")]
    optimizer = torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}], lr=RATE, betas=(0.9, 0.95)
    )
    begin = last = time.monotonic()
    step, mean = 0, math.log(BYTES)
    while (passed := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            falling = 0.01 + 0.99 * (1 + math.cos(math.pi * passed)) / 2
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * falling
        starts = torch.randint(len(bytes_) - LENGTH, (batch, 1), generator=draw)
        some = bytes_[starts + torch.arange(LENGTH + 1)].long().to(device)
        loss = functional.cross_entropy(model(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 10 == 0:
            mean += (loss.item() - mean) / min(20, step // 10)
        if time.monotonic() - last > 15:
            last = time.monotonic()
            say(f"step {step:6,}  {passed:4.0%}  {mean / math.log(2):.3f} bits a byte in training")
    return step


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)


def save(model: Mamba, output: Path, step: int, held_out: np.ndarray) -> None:
    """Write what transformers and ssmdiag read, and the text that the model has not seen."""
    output.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    replace(output / "config.json", json.dumps(model.config, indent=2).encode() + b"\n")
    replace(output / "model.safetensors", as_safetensors(state, {"format": "pt", "step": str(step)}))
    replace(output / "held-out.txt", held_out.tobytes())


def main(
    output: Annotated[Path, typer.Option(help="folder for the model")],
    minutes: Annotated[float, typer.Option(min=0)] = 50,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="sequences of 512 bytes in a step")] = 8,
    width: Annotated[int, typer.Option(min=16)] = 128,
    depth: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option(help="decides weights and batches")] = 0,
) -> None:
    """Train on Python's own sources; how many steps there are depends on the machine."""
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    texts = read_sources(Path(sysconfig.get_paths()["stdlib"]))
    judged = windows(texts["held out"], JUDGED, WINDOWS)
    ngram = Ngram(texts["train"])
    k = ngram.tuned(texts["tune"])
    half = JUDGED // 2
    to_beat = float(np.mean([ngram.bits(window[half - ORDER + 1 :], k).mean() for window in judged]))
    say(f"{len(texts['train']):,} bytes to train on; a {ORDER}-gram with k = {k}: {to_beat:.3f} bits a byte held out")
    torch.manual_seed(seed)
    model = Mamba(width, depth=depth).to(device)
    say(f"Mamba of {sum(p.numel() for p in model.parameters()):,} parameters on {device}")
    steps = train(model, texts["train"], minutes=minutes, batch=batch, device=device, seed=seed, say=say)
    reached = bits_per_byte(model, judged, device)
    save(model, output, steps, texts["held out"])
    print(f"{steps:,} steps: {reached:.3f} bits a byte held out, the {ORDER}-gram {to_beat:.3f}")
    print(f"next: ssmdiag probe {output} --text {output / 'held-out.txt'} --length {JUDGED}")


if __name__ == "__main__":
    typer.run(main)
