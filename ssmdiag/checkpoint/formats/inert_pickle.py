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

import contextlib
import gc
import io
import pickle
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping
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


_BINGET = pickle.BINGET[0]
_BININT = pickle.BININT[0]
_BININT1 = pickle.BININT1[0]
_BININT2 = pickle.BININT2[0]
_BUILD = pickle.BUILD[0]
_EMPTY_TUPLE = pickle.EMPTY_TUPLE[0]
_LONG_BINGET = pickle.LONG_BINGET[0]
_MARK = pickle.MARK[0]
_MEMOIZE = pickle.MEMOIZE[0]
_SETITEMS = pickle.SETITEMS[0]
_SHORT_BINUNICODE = pickle.SHORT_BINUNICODE[0]
_STOP = pickle.STOP[0]
_TUPLE1 = pickle.TUPLE1[0]
_TUPLE3 = pickle.TUPLE3[0]
_CALLED_WITH_IT = pickle.MEMOIZE + pickle.TUPLE1 + pickle.MEMOIZE + pickle.REDUCE + pickle.MEMOIZE
"""After a tuple: a class is called with it, as torch.Size((2, 3))."""
_OBJECT_AND_DICT = pickle.NEWOBJ + pickle.MEMOIZE + pickle.EMPTY_DICT + pickle.MEMOIZE + pickle.MARK
"""After an empty tuple: an object is made, and a dict for its attributes begins."""
_four_bytes, _signed = struct.Struct("<I").unpack_from, struct.Struct("<i").unpack_from


class UnsafeName(pickle.UnpicklingError):
    """The pickle names something that runs code."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the pickle names {name}")


class _SparseMemoError(Exception):
    """The numbers under which a pickle keeps objects are not those of a list."""


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

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        if arguments:
            self.arguments = arguments

    def __getattr__(self, name: str) -> Any:
        """Return what an object has that was given nothing: setting three attributes takes longer than making it."""
        if name not in StandIn.__slots__:
            raise AttributeError(name)
        return () if name == "arguments" else None

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
    "signal.Signals": inert(lambda number=0, *_: number),  # Megatron-LM's arguments hold one
    "torch.Size": inert(lambda sizes=(): tuple(sizes)),
}
"""Names that are replaced by plain data."""


_SIZE = PLAIN["torch.Size"]


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


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage: while objects are read there is none, and to look for some takes as long as the reading."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Rest:
    """What is left of a pickle in memory, for the instructions that `pickle` itself carries out."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 0

    def read(self, length: int) -> bytes:
        if not 0 <= length <= len(self.code) - self.at:
            raise EOFError("its pickle ends early")
        self.at += length
        return self.code[self.at - length : self.at]

    def readline(self) -> bytes:
        return self.read(self.code.find(b"\n", self.at) + 1 - self.at)

    def load_frame(self, length: int) -> None:
        """Check that a frame is whole; it then needs no buffer of its own."""
        if length > len(self.code) - self.at:
            raise EOFError("its pickle ends early")


def _set_items(target: Any, items: list[Any]) -> None:
    """Add keys and values, which alternate."""
    plain = type(target) is _Dict
    for key, value in zip(items[::2], items[1::2], strict=True):
        if plain and type(key) is str:
            dict.__setitem__(target, key, value)
        else:
            target[key] = value


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

    memo: Any
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: IO[bytes], known: Mapping[str, type], load_storage: Callable[[Any], Any], size: int = 0
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._file = file
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
            if dotted not in PLAIN:
                refuse_code(module, name)
            self.names[dotted] = self._known.get(dotted) or PLAIN.get(dotted) or stand_in(module, name)
        return self.names[dotted]

    def load(self) -> Any:
        """Return the object; from a pickle in memory in a third of the time."""
        if not isinstance(self._file, io.BytesIO):
            return super().load()
        try:
            with without_collection():
                return self._run(self._file.getvalue())
        except _SparseMemoError:
            self.memo = {}
            return super().load()

    def _run(self, code: bytes) -> Any:
        """Carry out the instructions of a pickle in memory: frequent ones here, the others as `pickle` does them.

        Some runs of instructions, of which Python writes objects with attributes, are taken in one step.
        """
        rest = self._unframer = _Rest(code)
        self.read, self.readline = rest.read, rest.readline
        at = 0
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: list[Any] = []
        self.memo, self.metastack, self.stack, self.append = memo, marks, stack, stack.append
        for _ in range(self._steps.left):
            instruction = code[at]
            at += 1
            if instruction == _LONG_BINGET:
                stack.append(memo[_four_bytes(code, at)[0]])
                at += 4
            elif instruction == _BINGET:
                stack.append(memo[code[at]])
                at += 1
            elif instruction == _BININT1:
                stack.append(code[at])
                at += 1
            elif instruction == _MEMOIZE:
                memo.append(stack[-1])
            elif _TUPLE1 <= instruction <= _TUPLE3:
                length = instruction - _TUPLE1 + 1
                only = tuple(stack[-length:])
                if len(only) < length:
                    raise IndexError("its pickle takes more than there is")
                stack[-length:] = (only,)
                if code.startswith(_CALLED_WITH_IT, at):
                    self._count(5)
                    stack.pop()
                    arguments = (only,)
                    kind = stack[-1]
                    stack[-1] = made = only if kind is _SIZE else self._made(kind, arguments)
                    memo += (only, arguments, made)
                    at += 5
            elif instruction == _EMPTY_TUPLE:
                kind = stack[-1] if code.startswith(_OBJECT_AND_DICT, at) else None
                if isinstance(kind, type) and issubclass(kind, StandIn):
                    self._count(5)
                    stack[-1] = made = object.__new__(kind)
                    attributes = dict.__new__(_Dict)
                    memo += (made, attributes)
                    stack.append(attributes)
                    marks.append(stack)
                    self.stack = stack = []
                    self.append = stack.append
                    at += 5
                else:
                    stack.append(())
            elif instruction == _SETITEMS:
                items = stack
                self.stack = stack = marks.pop()
                self.append = stack.append
                _set_items(stack[-1], items)
                if code[at] == _BUILD:
                    at += 1
                    state = stack.pop()
                    stack[-1].__setstate__(state)
            elif instruction == _BININT2:
                stack.append(code[at] | code[at + 1] << 8)
                at += 2
            elif instruction == _BININT:
                stack.append(_signed(code, at)[0])
                at += 4
            elif instruction == _MARK:
                marks.append(stack)
                self.stack = stack = []
                self.append = stack.append
            elif instruction == _SHORT_BINUNICODE:
                end = at + 1 + code[at]
                stack.append(code[at + 1 : end].decode("utf-8", "surrogatepass"))
                at = end
            elif instruction == _STOP:
                return stack.pop()
            else:
                rest.at = at
                _INSTRUCTIONS[instruction](self)
                at, stack = rest.at, self.stack
        raise pickle.UnpicklingError("its pickle has too many instructions")

    def _count(self, steps: int) -> None:
        self._steps.left -= steps
        if self._steps.left < 0:
            raise pickle.UnpicklingError("its pickle has too many instructions")

    def _put(self, number: int) -> None:
        """Keep what is on top of the stack under a number, usually the next one."""
        memo: Any = self.memo
        if number < 0:
            raise pickle.UnpicklingError("its pickle keeps an object under a negative number")
        if isinstance(memo, dict) or number < len(memo):
            memo[number] = self.stack[-1]
        elif number == len(memo):
            memo.append(self.stack[-1])
        else:
            raise _SparseMemoError

    def persistent_load(self, pid: Any) -> Any:
        return self._load_storage(pid)

    def _made(self, function: Any, arguments: Any) -> Any:
        """Return the result of calling a named class with the pickle's arguments; elements it may copy are counted."""
        if not isinstance(function, (type, StandIn)) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("its pickle calls something that is not a class")
        for value in (arguments, *arguments) if arguments else ():
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
    pickle.PUT[0]: lambda self: self._put(int(self.readline()[:-1])),
    pickle.BINPUT[0]: lambda self: self._put(self.read(1)[0]),
    pickle.LONG_BINPUT[0]: lambda self: self._put(*struct.unpack("<I", self.read(4))),
    pickle.REDUCE[0]: InertUnpickler._reduce,
    pickle.NEWOBJ[0]: InertUnpickler._reduce,
    pickle.NEWOBJ_EX[0]: InertUnpickler._newobj_ex,
    pickle.LONG1[0]: lambda self: self._long("<B"),
    pickle.LONG4[0]: lambda self: self._long("<i"),
    pickle.EMPTY_DICT[0]: lambda self: self.append(dict.__new__(_Dict)),
    pickle.DICT[0]: InertUnpickler._dict,
    pickle.EMPTY_SET[0]: lambda self: self.append([]),
    pickle.FROZENSET[0]: lambda self: self.append(self.pop_mark()),
    pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
}  # fmt: skip
