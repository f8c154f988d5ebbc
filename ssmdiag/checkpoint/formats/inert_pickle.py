"""A pickle read without running any of it.

A pickle is a program: it names functions and calls them. Here every name resolves to a class of this
module that keeps its arguments and does nothing. So the structure of the file stays readable (tensors
as records of where their bytes are, settings as what they were built from), and no code of torch, of
the file or of any other package is reached. Names that only an attack would use are refused.

All these classes have slots, define `__setstate__` and keep their arguments as data, so that the BUILD
instruction, which otherwise sets attributes of any object on the stack, changes only that data.

A small pickle can also demand unlimited time and memory. So instructions are counted, and so are the elements that one
instruction copies; names and numbers have a largest length; and only keys that are cheap to hash and to compare are
hashed, because hashing a deep tuple can crash the process and keys can be made to collide.
"""

from __future__ import annotations

import pickle
import struct
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
"""Modules of the standard library that plain settings use; the others run code or reach the system."""

CODE_RUNNING = frozenset({
    "eval", "exec", "execfile", "__import__", "os", "sys", "nt", "posix", "subprocess", "importlib", "ctypes",
    "runpy", "system", "popen", "CodeType", "FunctionType", "__globals__", "__builtins__", "__code__",
    "__subclasses__", "__loader__", "__reduce__", "__reduce_ex__",
})  # fmt: skip
"""Attributes, of any module, that no checkpoint needs."""

CODE_RUNNING_BUILTINS = frozenset({
    "compile", "open", "input", "raw_input", "breakpoint", "globals", "locals", "vars", "setattr", "delattr",
})  # fmt: skip


FEWEST_STEPS, BYTES_A_STEP = 2_000_000, 4
"""Most instructions of a pickle, elements copied by them included; or one for so many bytes of its file.

A torch file has forty per tensor, in 200 bytes or more."""
STEPS_A_CLASS = 50
"""Instructions that making a class counts as."""
MOST_NAMES, LONGEST_NAME, LONGEST_PATH = 20_000, 1000, 4096
LONGEST_NUMBER = 64
"""Most bytes of an integer; random states have integers of 16."""


class UnsafeName(pickle.UnpicklingError):
    """The pickle names something that runs code."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the pickle names {name}")


class StandIn:
    """Stand-in for an object of a class that the file names; keeps its arguments and does nothing."""

    __slots__ = ("arguments", "items", "state")
    arguments: tuple[Any, ...]
    items: Any
    state: Any
    origin = ""
    """Dotted name that the file gives its class."""
    attribute = ""
    """The attribute's name, where the file got this class with getattr."""

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
        self.items[_key(key)] = value

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.items, list):
            self.items = []
        self.items.extend(values)

    def append(self, value: Any) -> None:
        self.extend([value])

    def __repr__(self) -> str:  # as a key of settings: short, and the same every time
        return f"<{self.origin}>"


def _key(key: Any) -> Any:
    """Return a hashable key of a mapping: text, a number or an object. Long numbers and short tuples become text; other
    values become distinct objects.

    Tuples may be deep or expand without end; integers beyond 2**61 − 1 and complex numbers may be chosen to collide.
    """
    if isinstance(key, (str, bytes, bool, float, StandIn, type)) or key is None:
        return key
    if type(key) is int:
        return key if -(2**60) < key < 2**60 else str(key)
    plain = type(key) is tuple and len(key) <= 8 and all(type(part) in (str, int, bool) for part in key)
    return str(key) if plain else _KEY(key)


class _Dict(dict[Any, Any]):
    """Every dict of a pickle; it ignores the attributes set on it."""

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> _Dict:
        return dict.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        content = arguments[-1] if arguments else ()
        pairs = content.items() if isinstance(content, dict) else content if isinstance(content, list) else ()
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_key(key), value)

    def __setstate__(self, state: Any) -> None:
        pass


_KEY = type("StandIn", (StandIn,), {"__slots__": (), "origin": "key"})


class _Value:
    """A class that, when called, returns plain data instead of an instance."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def inert(make: Callable[..., Any]) -> type:
    """Return a class that, when called by a pickle, returns what `make` makes of the arguments."""
    return type("Value", (_Value,), {"__slots__": (), "__new__": lambda cls, *arguments: make(*arguments)})


def _path(*parts: Any) -> str:
    given = [part for part in parts if isinstance(part, str)]
    return str(PurePosixPath(*given)) if sum(map(len, given)) <= LONGEST_PATH else ""


def _getattr(owner: Any, name: str, *default: Any) -> type[StandIn]:
    """Return a stand-in for an attribute; some releases of Python 3.11 pickle members of an enum by getattr."""
    module = getattr(owner, "origin", "") if isinstance(owner, (StandIn, type)) else ""
    if len(module) + len(name) > LONGEST_NAME:
        raise pickle.UnpicklingError("its pickle has an attribute name that is too long")
    found = stand_in(module, name)
    found.attribute = name
    return found


PLAIN: dict[str, type] = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": _Dict,
    "collections.Counter": _Dict,
    "builtins.dict": _Dict,
    "builtins.set": inert(lambda values=(): list(values)),  # read as lists: see the top
    "builtins.frozenset": inert(lambda values=(): list(values)),
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
"""Names that are replaced by plain data."""


def refuse_code(module: str, name: str) -> None:
    """Raise UnsafeName if a name leads to code that runs other code or reaches the system."""
    package, elements = module.partition(".")[0], name.split(".")
    standard = package in sys.stdlib_module_names and package not in PLAIN_MODULES
    builtin = package == "builtins" and not CODE_RUNNING_BUILTINS.isdisjoint(elements)
    if standard or builtin or not CODE_RUNNING.isdisjoint(elements):
        raise UnsafeName(f"{module}.{name}".strip("."))


def stand_in(module: str, name: str) -> type[StandIn]:
    """Return a stand-in for the class of that name. Raises UnsafeName."""
    refuse_code(module, name)
    return type("StandIn", (StandIn,), {"__slots__": (), "origin": f"{module}.{name}".strip(".")})


class _Counted:
    """The instructions by opcode, each counted when it is looked up."""

    def __init__(self, table: Mapping[int, Callable[[Any], None]], most: int) -> None:
        self._table = table
        self.left = most

    def __getitem__(self, number: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("its pickle has too many instructions")
        return self._table[number]


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle from a file; calls only this module and the classes in `known`.

    It is Python's own unpickler in Python. The one in C allocates memory for any memo number, so that
    nine bytes of a forged or damaged file take all memory. Byte arrays are read as bytes, because a
    cut-off byte array would also be allocated before its end is found missing.

    Parameters
    ----------
    file
        `read` must not allocate memory for bytes beyond the file's end.
    known
        Dotted name → class to use for it, besides plain data.
    load_storage
        Called with the persistent ids of the pickle.
    size
        Bytes of the file, which limit the number of instructions.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: IO[bytes], known: Mapping[str, type], load_storage: Callable[[Any], Any], size: int = 0
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.names: dict[str, type] = {}
        """Every name in the pickle, and its replacement."""
        self._known = known
        self._load_storage = load_storage
        self._steps = _Counted(_INSTRUCTIONS, max(FEWEST_STEPS, size // BYTES_A_STEP))
        self.dispatch = self._steps  # type: ignore[assignment, misc]

    def find_class(self, module: str, name: str) -> type:
        if len(module) + len(name) > LONGEST_NAME or len(self.names) > MOST_NAMES:
            raise pickle.UnpicklingError("its pickle names too many classes, or a name is too long")
        # Protocols below 3 write the names of Python 2: `commands` for `subprocess`.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        dotted = f"{module}.{name}"
        if dotted not in self.names:
            refuse_code(module, name)
            self.names[dotted] = self._known.get(dotted) or PLAIN.get(dotted) or stand_in(module, name)
        return self.names[dotted]

    def persistent_load(self, pid: Any) -> Any:
        return self._load_storage(pid)

    def _made(self, function: Any, arguments: Any) -> Any:
        """Return the result of calling a named class with the pickle's arguments; elements it may copy are counted."""
        if not isinstance(function, (type, StandIn)) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("its pickle calls something that is not a class")
        for value in (arguments, *arguments):
            if isinstance(value, (tuple, list, dict)):
                self._steps.left -= len(value)
            elif isinstance(value, (str, bytes)):
                self._steps.left -= len(value) // 8
        if function is PLAIN["builtins.getattr"]:
            self._steps.left -= STEPS_A_CLASS
        if self._steps.left < 0:
            raise pickle.UnpicklingError("its pickle copies too many elements")
        return function(*arguments)

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._made(klass, tuple(args)))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keywords are not kept
        self._reduce()

    def _long(self, width: str) -> None:
        (length,) = struct.unpack(width, self.read(struct.calcsize(width)))
        if not 0 <= length <= LONGEST_NUMBER:
            raise pickle.UnpicklingError(f"its pickle has a whole number of {length:,} bytes")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append(_Dict(list(zip(values[::2], values[1::2], strict=True))))


_INSTRUCTIONS: dict[int, Callable[[Any], None]] = {
    **pickle._Unpickler.dispatch,
    pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    pickle.REDUCE[0]: InertUnpickler._reduce,
    pickle.NEWOBJ[0]: InertUnpickler._reduce,
    pickle.NEWOBJ_EX[0]: InertUnpickler._newobj_ex,
    pickle.LONG1[0]: lambda self: self._long("<B"),
    pickle.LONG4[0]: lambda self: self._long("<i"),
    pickle.EMPTY_DICT[0]: lambda self: self.append(_Dict()),
    pickle.DICT[0]: InertUnpickler._dict,
    pickle.EMPTY_SET[0]: lambda self: self.append([]),
    pickle.FROZENSET[0]: lambda self: self.append(self.pop_mark()),
    pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
}  # fmt: skip
