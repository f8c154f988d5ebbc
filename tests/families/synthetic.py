"""A state dict for any spelling, made from nothing but what the family declares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch

from ssmdiag.families import Family, Spelling

SIZES: Mapping[str, int] = {"channel": 4, "mode": 4}
OTHER = 4
"""Sizes are equal, so that divisibility rules between axes hold in every family."""


def path_for(spelling: Spelling, number: int = 3) -> str:
    """Return a module path that the spelling's own pattern accepts."""
    plain = f"net.layers.{number}"
    if spelling.path is None or re.search(spelling.path, plain):
        return plain
    literal = re.sub(r"\\d[+*]?|\[0-9\][+*]?", str(number), spelling.path)
    literal = (
        re.sub(r"\(\?:\^\|\[\._\]\)|\(\?:\^\|\\\.\)|\(\?:\$\|\\\.\)|\(\?:\\\.\|\$\)|[\^$]", "", literal)
        .replace("\\.", ".")
        .replace("\\b", "")
    )
    literal = re.sub(r"\(\?:([^|)]*)[^)]*\)\??", r"\1", literal)
    candidate = f"net.{literal}"
    if not re.search(spelling.path, candidate):
        raise AssertionError(f"no example path for {spelling.path!r}: {candidate!r} does not match")
    return candidate


def state_dict(
    spelling: Spelling,
    *,
    seed: int = 0,
    path: str | None = None,
    sizes: Mapping[str, int] | None = None,
    optional: bool = False,
) -> dict[str, torch.Tensor]:
    """Return random tensors of the declared axes and dtypes: required ones alone, unless `optional` ones too.

    `sizes` gives axes other sizes than the usual ones.
    """
    sizes = {**SIZES, **(sizes or {})}
    generator = torch.Generator().manual_seed(seed)
    path = path_for(spelling) if path is None else path
    state = {}
    for local, pattern in {**spelling.tensors, **(spelling.optional if optional else {})}.items():
        kind, _, dims = pattern.rpartition(":")
        shape = [_total(token, sizes) for token in dims.split()]
        values = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) - 0.5
        if local == "ssm_a":  # −exp(A_log)
            values = -values.abs()
        if kind.startswith("int"):
            tensor = torch.zeros(shape, dtype=torch.int64)
        elif kind.startswith("complex"):
            tensor = torch.complex(values - 0.5, values.flip(0)).to(torch.complex64)
        else:
            tensor = values.to(torch.float64 if kind == "float64" else torch.float32)
        state[f"{path}.{local}" if path else local] = tensor
    return state


def _total(token: str, sizes: Mapping[str, int]) -> int:
    return sum(math.prod(_size(factor, sizes) for factor in term.split("*")) for term in token.split("+"))


def _size(factor: str, sizes: Mapping[str, int]) -> int:
    return int(factor) if factor.isdigit() else sizes.get(factor, OTHER)


def config(family: Family, spelling: Spelling) -> dict[str, object]:
    """Return settings that select this spelling."""
    sizes = {
        "num_attention_heads": 4,
        "num_heads": 4,
        "num_hidden_layers": 12,
    }  # for decays computed from the model's size
    return {leaf: values[0] for leaf, values in spelling.settings.items()} | sizes
