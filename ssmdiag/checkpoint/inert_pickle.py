"""A pickle read without running any of it.

A pickle is a program: it names functions and calls them. Here every name it gives resolves to a
class of this module that keeps its arguments and does nothing, so the structure of the file stays
readable – tensors as records of where their bytes are, settings as what they were built from – and
no code of torch, of the file or of any other package is reached. Names that only an attack has
reason to use are refused outright.

All these classes have slots, define `__setstate__` and keep what they are given as data: the BUILD
instruction, which otherwise sets attributes of whatever lies on the stack, changes nothing else.
"""

from __future__ import annotations

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

PLAIN_MODULES = frozenset({
    "abc", "argparse", "builtins", "calendar", "collections", "copyreg", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "inspect", "itertools", "logging", "numbers", "operator", "pathlib",
    "random", "re", "statistics", "string", "time", "types", "typing", "uuid", "weakref", "zoneinfo", "_codecs",
})  # fmt: skip
"""Modules of the standard library that plain settings are made of; its others run code or touch the system."""

CODE_RUNNING = frozenset({
    "eval", "exec", "execfile", "__import__", "os", "sys", "nt", "posix", "subprocess", "importlib", "ctypes",
    "runpy", "system", "popen", "CodeType", "FunctionType", "__globals__", "__builtins__", "__code__",
    "__subclasses__", "__loader__", "__reduce__", "__reduce_ex__",
})  # fmt: skip
"""Attributes that no checkpoint has reason to name, in whichever module."""

CODE_RUNNING_BUILTINS = frozenset({
    "compile", "open", "input", "raw_input", "breakpoint", "globals", "locals", "vars", "setattr", "delattr",
})  # fmt: skip


class UnsafeName(pickle.UnpicklingError):
    """The pickle names something that runs code."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the pickle names {name}")


class StandIn:
    """Takes the place of an object of a class the file names; keeps what it is given, does nothing."""

    __slots__ = ("arguments", "items", "state")
    arguments: tuple[Any, ...]
    items: Any
    state: Any
    origin = ""
    """Dotted name that the file gives its class."""
    attribute = ""
    """Name of the attribute that a class stands for, where the file has got it with getattr."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> StandIn:
        self = object.__new__(cls)
        self.arguments = arguments
        self.items = None
        self.state = None
        return self

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> StandIn:
        return StandIn(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(self.items, dict):
            self.items = {}
        self.items[key] = value

    def extend(self, values: list[Any]) -> None:
        self.items = [*(self.items if isinstance(self.items, list) else ()), *values]

    def append(self, value: Any) -> None:
        self.extend([value])

    def add(self, value: Any) -> None:
        self.extend([value])


class _Dict(dict[Any, Any]):
    """OrderedDict, Counter, defaultdict: a dict that ignores the attributes set on it."""

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> _Dict:
        return dict.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        content = arguments[-1] if arguments else ()
        super().__init__(content if isinstance(content, (Mapping, list)) else ())

    def __setstate__(self, state: Any) -> None:
        pass


class _Value:
    """A class that, when called, hands back plain data instead of an instance of itself."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def inert(make: Callable[..., Any]) -> type:
    """Return a class that, when called by a pickle, returns what `make` makes of the arguments."""
    return type("Value", (_Value,), {"__slots__": (), "__new__": lambda cls, *arguments: make(*arguments)})


def _path(*parts: Any) -> str:
    return str(PurePosixPath(*(part for part in parts if isinstance(part, str))))


def _getattr(owner: Any, name: str, *default: Any) -> type[StandIn]:
    """Return what stands in for an attribute; some releases of Python 3.11 pickle members of an enum so."""
    found = stand_in(getattr(owner, "origin", "") if isinstance(owner, (StandIn, type)) else "", name)
    found.attribute = name
    return found


PLAIN: dict[str, type] = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": _Dict,
    "collections.Counter": _Dict,
    "builtins.dict": _Dict,
    "builtins.set": inert(lambda values=(): set(values)),
    "builtins.frozenset": inert(lambda values=(): frozenset(values)),
    "builtins.list": inert(lambda values=(): list(values)),
    "builtins.tuple": inert(lambda values=(): tuple(values)),
    "builtins.bytearray": inert(lambda values=b"", *_: values),
    "builtins.complex": inert(lambda re=0.0, im=0.0: complex(re, im)),
    "builtins.getattr": inert(_getattr),
    "_codecs.encode": inert(lambda text, *_: text.encode("latin1")),
    "pathlib.PosixPath": inert(_path),
    "pathlib.WindowsPath": inert(_path),
    "torch.Size": inert(lambda sizes=(): tuple(sizes)),
}
"""Names that become plain data."""


def refuse_code(module: str, name: str) -> None:
    """Raise UnsafeName if a name leads to what runs other code or touches the system."""
    package, elements = module.partition(".")[0], name.split(".")
    standard = package in sys.stdlib_module_names and package not in PLAIN_MODULES
    builtin = package == "builtins" and not CODE_RUNNING_BUILTINS.isdisjoint(elements)
    if standard or builtin or not CODE_RUNNING.isdisjoint(elements):
        raise UnsafeName(f"{module}.{name}".strip("."))


def stand_in(module: str, name: str) -> type[StandIn]:
    """Return a class that stands in for the one of that name. Raises UnsafeName."""
    refuse_code(module, name)
    return type("StandIn", (StandIn,), {"__slots__": (), "origin": f"{module}.{name}".strip(".")})


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle from a file; calls nothing but this module and what `known` gives.

    It is Python's own unpickler in Python: the one in C makes room for any memo number it meets, so
    that nine bytes of a forged or damaged file take all memory. Byte arrays are read as bytes, for
    room would be made for those too before they are seen to be cut short.

    Parameters
    ----------
    known
        Dotted name → class to use for it, besides plain data.
    load_storage
        Called with the persistent ids of the pickle.
    """

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def __init__(self, file: IO[bytes], known: Mapping[str, type], load_storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self.names: dict[str, type] = {}
        """Every name the pickle gives, and what it became."""
        self._known = known
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> type:
        # Protocols below 3 write the names of Python 2: `commands` for `subprocess`.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        dotted = f"{module}.{name}"
        if dotted not in self.names:
            refuse_code(module, name)
            self.names[dotted] = self._known.get(dotted) or PLAIN.get(dotted) or stand_in(module, name)
        return self.names[dotted]

    def persistent_load(self, pid: Any) -> Any:
        return self._load_storage(pid)
