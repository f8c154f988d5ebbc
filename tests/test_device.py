"""The pretended GPU refuses every way of mixing that a real one refuses, and allows what a real one allows.

With `-m gpu` the same is asked of a real one, so that the pretence is held to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.device import Away, pretending
from tests.device import cuda as cuda

HERE, NUMBER, WHICH, MASK = torch.arange(4.0), torch.tensor(2.0), torch.tensor([0, 3]), torch.tensor([True, False] * 2)
Use = Callable[[Tensor], object]
"""What is done with a tensor of four on CUDA."""

REFUSED: dict[str, Use] = {
    "sum of tensors": lambda x: x + HERE,
    "in place": lambda x: x.mul_(HERE),
    "in place, into a CPU tensor": lambda x: HERE.clone().mul_(x),
    "in place, into a number": lambda x: NUMBER.clone().add_(x.sum()),
    "comparison": lambda x: x < HERE,
    "where": lambda x: torch.where(x > 1, x, HERE),
    "where by a CPU mask": lambda x: x.where(MASK, 0.0),
    "masked_fill by a CPU mask": lambda x: x.masked_fill(MASK, 0.0),
    "clamp by a number in a tensor": lambda x: x.clamp(min=NUMBER),
    "clamp_min by a number in a tensor": lambda x: x.clamp_min(NUMBER),
    "clamp_max by a number in a tensor": lambda x: x.clamp_max_(NUMBER),
    "complex": lambda x: torch.complex(x, HERE),
    "complex of a number": lambda x: torch.complex(x.sum(), NUMBER),
    "matrix product": lambda x: x @ HERE,
    "batched matrix product": lambda x: torch.bmm(x.view(1, 2, 2), HERE.view(1, 2, 2)),
    "einsum": lambda x: torch.einsum("i,j->ij", x, HERE),
    "linear": lambda x: nn.functional.linear(x, HERE[None]),
    "cat": lambda x: torch.cat([x, HERE]),
    "stack": lambda x: torch.stack([x, HERE]),
    "stack of numbers": lambda x: torch.stack([x.sum(), NUMBER]),
    "gather": lambda x: x.gather(0, WHICH),
    "index_select": lambda x: x.index_select(0, WHICH),
    "index_add": lambda x: x.index_add(0, WHICH, x[:2]),
    "scatter": lambda x: x.scatter(0, WHICH, 1.0),
    "take_along_dim": lambda x: x.take_along_dim(WHICH, 0),
    "searchsorted": lambda x: torch.searchsorted(x, HERE),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1])),
    "equal": lambda x: torch.equal(x, HERE),
    "allclose": lambda x: torch.allclose(x, HERE),
    "solve": lambda x: torch.linalg.solve(x.view(2, 2), HERE.view(2, 2)),
    "lerp": lambda x: x.lerp(HERE, 0.5),
    "addcmul": lambda x: x.addcmul(x, HERE),
    "out on the CPU": lambda x: torch.add(x, x, out=torch.empty(4)),
    "out on CUDA": lambda x: torch.add(HERE, HERE, out=x),
    "CPU tensor indexed by positions": lambda x: HERE[x.long()],
    "CPU tensor indexed by a mask": lambda x: HERE[x > 1],
    "CPU values at positions": lambda x: x.__setitem__(WHICH, HERE[:2]),
    "CPU values at positions of the CPU's": lambda x: HERE.clone().__setitem__(WHICH, x[:2]),
    "within a composite: cosine_similarity": lambda x: nn.functional.cosine_similarity(x, HERE, dim=0),
    "within a composite: isclose": lambda x: torch.isclose(HERE, x),
    "within a composite: cross_entropy": lambda x: nn.functional.cross_entropy(x[None], torch.tensor([1])),
    "another generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
}
TORCH_DECIDES: dict[str, Use] = {
    "CPU tensor written at a mask": lambda x: HERE.clone().__setitem__(x > 1, 0.0),
    "CPU tensor written at positions": lambda x: HERE.clone().index_put_((x.long(),), HERE),
}
"""Refused by the pretence; torch 2.11 lets them pass on an H200."""
ALLOWED: dict[str, tuple[Use, object]] = {
    "a number of Python": (lambda x: 2 * x + 1, [1.0, 3.0, 5.0, 7.0]),
    "a number in a tensor": (lambda x: x * NUMBER, [0.0, 2.0, 4.0, 6.0]),
    "a number in a tensor, first": (lambda x: NUMBER - x, [2.0, 1.0, 0.0, -1.0]),
    "a number in a tensor, compared": (lambda x: x >= NUMBER, [False, False, True, True]),
    "where with a number of Python": (lambda x: x.where(x > 1, 0.0), [0.0, 0.0, 2.0, 3.0]),
    "where with numbers in tensors": (lambda x: torch.where(x > 1, NUMBER, torch.tensor(0.0)), [0.0, 0.0, 2.0, 2.0]),
    "masked_fill with a number in a tensor": (lambda x: x.masked_fill(x > 1, NUMBER), [0.0, 1.0, 2.0, 2.0]),
    "indexed by positions of the CPU's": (lambda x: x[WHICH], [0.0, 3.0]),
    "indexed by a mask of the CPU's": (lambda x: x[MASK], [0.0, 2.0]),
    "indexed by a list": (lambda x: x[[3, 0]], [3.0, 0.0]),
    "indexed by nothing": (lambda x: x[[]], []),
    "indexed by an array": (lambda x: x[np.array([1])], [1.0]),
    "indexed by a tensor on CUDA": (lambda x: x[x > 1], [2.0, 3.0]),
    "written at a mask": (lambda x: _written(x, x > 1, 7.0), [0.0, 1.0, 7.0, 7.0]),
    "written at CPU positions": (lambda x: _written(x, WHICH, NUMBER), [2.0, 1.0, 2.0, 2.0]),
    "written with a slice of the CPU's": (lambda x: _written(x, slice(2), HERE[2:]), [2.0, 3.0, 2.0, 3.0]),
    "copied from the CPU": (lambda x: x.copy_(HERE.flip(0)), [3.0, 2.0, 1.0, 0.0]),
    "filled with a number in a tensor": (lambda x: x.fill_(NUMBER), [2.0, 2.0, 2.0, 2.0]),
    "made like another": (lambda x: torch.zeros_like(x) + x.new_ones(4), [1.0, 1.0, 1.0, 1.0]),
    "made of numbers": (lambda x: x.new_tensor([1.0, 2.0]) + torch.tensor([1, 2], device=x.device), [2.0, 4.0]),
    "made on a device": (lambda x: torch.arange(4, device=x.device) + x.long(), [0, 2, 4, 6]),
    "made of numbers on CUDA": (lambda x: torch.tensor([x[3], x[0]], device="cuda"), [3.0, 0.0]),
    "moved from the CPU": (lambda x: x + HERE.to("cuda"), [0.0, 2.0, 4.0, 6.0]),
    "a composite": (lambda x: torch.stack([x, x]).quantile(0.5, dim=1), [1.5, 1.5]),
    "out on CUDA": (lambda x: torch.add(x, 1, out=torch.empty(4, device="cuda")), [1.0, 2.0, 3.0, 4.0]),
    "linear algebra": (lambda x: torch.linalg.qr(x.view(2, 2)).R.abs().diag(), [2.0, 1.0]),
    "parts of a complex number": (lambda x: torch.complex(x, x).conj().imag, [0.0, -1.0, -2.0, -3.0]),
}


def _written(x: Tensor, index: object, value: object) -> Tensor:
    x[index] = value  # type: ignore[index, assignment]
    return x


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_devices_that_do_not_mix(use: Use, cuda: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        use(torch.arange(4.0, device=cuda))
    assert HERE.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("use", TORCH_DECIDES.values(), ids=TORCH_DECIDES)
def test_the_pretence_is_the_stricter(use: Use) -> None:
    with pretending(), pytest.raises((RuntimeError, TypeError)):
        use(torch.arange(4.0, device="cuda"))


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_the_mixing_alone(use: Use) -> None:
    """The same on the CPU raises nothing: but for the generator, which is its own."""
    use(torch.arange(4.0))


@pytest.mark.parametrize(("use", "expected"), ALLOWED.values(), ids=ALLOWED)
def test_what_a_gpu_allows(use: Use, expected: object, cuda: str) -> None:
    found = use(torch.arange(4.0, device=cuda))
    assert isinstance(found, Tensor)
    assert found.device.type == "cuda"
    assert found.cpu().device.type == "cpu"
    assert torch.allclose(found.cpu().double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert found.tolist() == found.cpu().tolist()


def test_a_tensor_says_where_it_is_and_gives_its_numbers(cuda: str) -> None:
    x = torch.arange(4.0, device=cuda)
    assert (x.is_cuda, x.is_cpu, x.device.type, x.get_device()) == (True, False, "cuda", 0)
    assert (float(x.sum()), int(x[1]), bool(x[0]), x[2].item(), len(x)) == (6.0, 1, False, 2.0, 4)
    assert type(x.cpu()) is Tensor
    assert x.cpu().numpy().tolist() == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)


def test_gradients_and_modules_stay_there(cuda: str) -> None:
    module = nn.Linear(4, 1)
    expected = torch.autograd.grad(module(HERE).square().sum(), module.weight)[0]
    module.to(cuda)
    module(HERE.to(cuda)).square().sum().backward()
    gradient = module.weight.grad
    assert gradient is not None
    assert gradient.device.type == module.weight.device.type == "cuda"
    torch.testing.assert_close(gradient.cpu(), expected)
    torch.optim.AdamW(module.parameters(), lr=0.1).step()
    module.weight.data = torch.zeros(1, 4, device=cuda)
    assert module(HERE.to(cuda)).tolist() == module.bias.tolist()
    with pytest.raises(RuntimeError):
        module(HERE)


def test_views_share_their_values(cuda: str) -> None:
    x = torch.zeros(2, 3, device=cuda)
    x[0] += 1
    x.T[2].mul_(5)
    x[:, 1].copy_(torch.tensor([7.0, 8.0]))
    assert x.tolist() == [[1, 7, 5], [0, 8, 0]]


def test_the_pretence_ends() -> None:
    with pretending():
        x = torch.ones(2, device="cuda")
        assert isinstance(x, Away)
        assert torch.cuda.is_available()
    assert torch.cuda.is_available() == (torch.cuda.device_count() > 0)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2)
    assert (torch.ones(2) + 1).tolist() == [2, 2]
