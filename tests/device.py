"""A GPU that is pretended: tensors that say they are on CUDA, keep their values on the CPU, and refuse to mix.

Operations are looked at where torch hands them to a device, so that what its C++ composes of several is looked at too.
Which devices meet in an operation is as in torch on a real GPU:

| operation | a CPU tensor beside one on CUDA |
|---|---|
| arithmetic, comparisons | at most one, without dimensions, and not as the result; none in clamp, complex, addcmul |
| where, masked_fill | any without dimensions, but for the mask of masked_fill |
| x[i], x[i] = y | an index of a tensor on CUDA; y where it has no dimensions |
| copy_, fill_, to | yes |
| products, cat, gather, equal, linear algebra, … | no |

To torch itself they are on `meta`, a device that every build has and nothing else here uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, INSIDE, HOME = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
MOVES = {aten.copy_, aten._copy_from, aten._copy_from_and_resize}
INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
ANY_NUMBERS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_}
NO_NUMBERS = {aten.complex, aten.polar, aten.lerp, aten.lerp_, aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_}
MADE_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
CLAMPS = {aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_, aten.clamp_max, aten.clamp_max_}
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class Away(Tensor):
    """A tensor that passes for one on CUDA; `home` holds its values."""

    home: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, home: Tensor) -> Away:
        away = Tensor._make_wrapper_subclass(
            cls, home.size(), home.stride(), home.storage_offset(), dtype=home.dtype, device=INSIDE
        )
        torch._C._set_conj(away, home.is_conj())
        torch._C._set_neg(away, home.is_neg())
        away.home = home
        return away

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Away):
            raise NotImplementedError("the pretence cannot put CPU values into a tensor that is on CUDA")
        Tensor.data.__set__(self, value)
        self.home = value.home

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = self.detach().clone()
            parameter = isinstance(self, torch.nn.Parameter)
            copy = Parameter(copy, self.requires_grad) if parameter else copy.requires_grad_(self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.home.__reduce_ex__(protocol)

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _listed(index), value)

    def __repr__(self, **_: Any) -> str:
        return f"{self.home!r} on {CUDA}"

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.home.data_ptr()

    def tolist(self) -> Any:
        return self.home.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self.numpy()


class _Spelling(TorchFunctionMode):
    """What Python calls `cuda` is `meta` inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.device, torch.get_device_module):  # those say what is meant outside
            return func(*args, **(kwargs or {}))
        if func is Tensor.cuda:
            return args[0].to(INSIDE)
        named = {name: _inside(value) for name, value in (kwargs or {}).items()}
        if func is Tensor.new_tensor:
            like, func, args = args[0], torch.tensor, args[1:]
            named = {"dtype": like.dtype, "device": INSIDE if isinstance(like, Away) else HOME} | named
        if func in MADE_OF_DATA and named.get("device") == INSIDE and not isinstance(args[0], Tensor):
            # On `meta` torch would leave the values out.
            trained = named.pop("requires_grad", False)
            data = [one.item() if isinstance(one, Away) else one for one in args[0]] if _is_list(args[0]) else args[0]
            return func(data, *args[1:], **(named | {"device": HOME})).to(INSIDE).requires_grad_(trained)
        return func(*map(_inside, args), **named)


class _Operations(TorchDispatchMode):
    """Shows the operations that have no tensor on CUDA among their inputs, too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what skips it takes seconds to import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(func, args, kwargs or {})


def _inside(value: Any) -> Any:
    return INSIDE if isinstance(value, (str, torch.device)) and str(value) in ("cuda", "cuda:0") else value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _listed(index: Any) -> Any:
    """Return an index with its lists and arrays as tensors on CUDA, as torch makes them."""
    if isinstance(index, tuple):
        return tuple(map(_listed, index))
    if isinstance(index, (list, range, np.ndarray)):
        return torch.as_tensor(index, dtype=None if len(index) else torch.long).to(INSIDE)
    return index


def _operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values, and say of its results that they are where they would be."""
    given: list[Any] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if _is_list(value):
            given += value
        else:
            given.append(value)
    device = next((value for value in given if isinstance(value, torch.device)), None)
    away = {id(value.home): value for value in given if type(value) is Away}
    if not away and device != INSIDE:
        return func(*args, **kwargs)
    home = [value for value in given if isinstance(value, Tensor) and type(value) is not Away]
    goes = device == INSIDE if device else True
    if home and not device:
        _require_one_device(func, args, kwargs, home)
        goes = func.overloadpacket not in MOVES or type(args[0]) is Away
    if goes and any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    results = func(*map(_home, args), **{name: _home(value) for name, value in kwargs.items()})
    # What an operation wrote into is the very tensor that was handed in.
    known = away | {id(value): value for value in home}

    def lifted(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in known:
            return known.get(id(value), value)
        return Away(value) if goes else value

    return type(results)(map(lifted, results)) if _is_list(results) else lifted(results)


def _home(value: Any) -> Any:
    """Return an argument with the values in place of tensors on CUDA."""
    if type(value) is Away:
        return value.home
    if _is_list(value):
        return type(value)(map(_home, value))
    return HOME if isinstance(value, torch.device) else value


def _require_one_device(func: Any, args: Any, kwargs: dict[str, Any], home: list[Tensor]) -> None:
    """Raise RuntimeError where a CPU tensor is not one of those that may stand beside tensors on CUDA."""
    packet, first = func.overloadpacket, args[0]
    if packet in MOVES:
        return
    if packet in INDEXING:
        if not isinstance(first, Away) and any(isinstance(index, Away) for index in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if any(isinstance(first, Away) != isinstance(value, Away) and value.ndim for value in args[2:3]):
            raise RuntimeError(MIXED)
        return
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [given.get(one.name) for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
    numbers = all(value.ndim == 0 for value in home) and not any(one is value for one in written for value in home)
    if packet in ANY_NUMBERS:
        fits = numbers and (packet in (aten.where, aten.fill, aten.fill_) or isinstance(args[1], Away))
    else:
        clamped = packet in CLAMPS and func._overloadname.startswith("Tensor")
        fits = (
            numbers and len(home) == 1 and torch.Tag.pointwise in func.tags and packet not in NO_NUMBERS and not clamped
        )
    if not fits:
        raise RuntimeError(f"{MIXED} (when checking {func})")


@contextmanager
def pretending() -> Iterator[None]:
    """Have "cuda" be a device for a while; random numbers drawn on it are those of the CPU's generator."""
    generator = {"get_rng_state": lambda _=None: torch.get_rng_state(), "set_rng_state": lambda state, _=None: None}
    others = {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,  # a build for CUDA asks the driver, which may be missing
        "synchronize": lambda _=None: None,
        "empty_cache": lambda: None,
    }
    with ExitStack() as stack:
        for name, stand_in in (generator | others).items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        # It takes any class of tensors but torch's own for a sharded one.
        stack.enter_context(patch("ssmdiag.reparam.fit._require_plain"))
        stack.enter_context(_Spelling())
        stack.enter_context(_Operations())
        yield


def pretended() -> bool:
    """Whether "cuda" is a pretended device; for where there is one or the other."""
    return isinstance(torch.empty(0, device="cuda"), Away)


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a CUDA device: a pretended one, or with `-m gpu` a real one."""
    if request.param == "pretended":
        with pretending():
            yield "cuda"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        assert os.environ.get("SSMDIAG_REQUIRE_CUDA") != "1", "no CUDA device"
        pytest.skip("no CUDA device")
