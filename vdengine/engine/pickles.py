"""Pickles read without running what is in them: an interpreter of the few opcodes that torch's own writer uses (torch
2.11 to 2.13, Python's protocols 2 to 5).

The classes that a pickle names are never looked up: each known name stands for a function or a value of the caller's,
any other is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from vdengine.outside import first_line, printable


class Damaged(Exception):
    """The bytes are no pickle of the kind that is read here; the message says why."""


@dataclass(eq=False)  # eq=False: hashed by identity, as a key of a dictionary
class Instance:
    """An instance of a named class, with the state that its pickle gives it."""

    kind: str
    state: Any = None


class ClassName(NamedTuple):
    """What stands for a class whose instances are `Instance`s."""

    kind: str


Names = Mapping[tuple[str, str], Any]  # (module, name) -> a `ClassName`, a function to call, or a value
_MARK = object()
_MISFIT = "its parts do not fit together"


def unpickle(file: IO[bytes], names: Names, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle that begins here.

    Nothing is imported, no method of a value is called, and no step allocates more than the bytes that it reads.

    Args:
        names: what the pickle may name; functions among them are called with what the pickle says.
        persistent: makes a value of a persistent id; None: there are none.

    Raises:
        Damaged: an opcode, a name or a use of one that is not allowed, or a pickle that is cut short.
    """
    return _Pickle(file, names, persistent).value()


class _Pickle:
    """A pickle machine: a stack, and a memo of values to come back to."""

    def __init__(self, file: IO[bytes], names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.file, self.names, self.persistent = file, names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}  # no list: an index of 2^32 costs nothing here
        push, number, text = self.push, self.number, self.text
        # Every opcode that torch's writer may use; named as in Python's pickletools.
        self.steps: dict[bytes, Callable[[], Any]] = {
            b"\x80": lambda: number("<B"),  # PROTO
            b"\x95": lambda: number("<Q"),  # FRAME, a hint for readers of streams
            b"(": lambda: push(_MARK),
            b"N": lambda: push(None),
            b"\x88": lambda: push(True),
            b"\x89": lambda: push(False),
            b"K": lambda: push(number("<B")),  # BININT1
            b"M": lambda: push(number("<H")),  # BININT2
            b"J": lambda: push(number("<i")),  # BININT
            b"\x8a": lambda: push(int.from_bytes(self.take(number("<B")), "little", signed=True)),  # LONG1
            b"\x8c": lambda: push(text(number("<B"))),  # SHORT_BINUNICODE
            b"X": lambda: push(text(number("<I"))),  # BINUNICODE
            b")": lambda: push(()),
            b"]": lambda: push([]),
            b"}": lambda: push({}),
            b"\x85": lambda: self.tuple_of(1),
            b"\x86": lambda: self.tuple_of(2),
            b"\x87": lambda: self.tuple_of(3),
            b"t": lambda: push(tuple(self.to_mark())),
            b"a": lambda: self.extend([self.pop()]),
            b"e": lambda: self.extend(self.to_mark()),
            b"s": lambda: self.set_items([self.pop(), self.pop()][::-1]),
            b"u": lambda: self.set_items(self.to_mark()),
            b"c": lambda: self.find(self.line(), self.line()),  # GLOBAL
            b"\x93": lambda: self.find(*[self.pop(str), self.pop(str)][::-1]),  # STACK_GLOBAL
            b"R": self.reduce,
            b"\x81": self.new,
            b"b": self.build,
            b"\x94": lambda: self.remember(len(self.memo)),  # MEMOIZE
            b"q": lambda: self.remember(number("<B")),  # BINPUT
            b"r": lambda: self.remember(number("<I")),
            b"h": lambda: self.recall(number("<B")),  # BINGET
            b"j": lambda: self.recall(number("<I")),
            b"Q": self.refer,  # BINPERSID
        }

    def value(self) -> Any:
        """Run to the opcode STOP."""
        try:
            while (opcode := self.take(1)) != b".":
                if opcode not in self.steps:
                    raise Damaged(f"it uses the pickle opcode {opcode!r}, which no checkpoint needs")
                self.steps[opcode]()
            return self.pop()
        except (ValueError, TypeError, MemoryError) as error:  # no UTF-8; arguments that a function does not take
            raise Damaged(first_line(error)) from None

    # Reading. A count from the file is no reason to allocate: `read` gives at most what there is.

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise Damaged("it is cut short")
        return data

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        return self.take(count).decode("utf-8")

    def line(self) -> str:
        return self.file.readline(200).decode("utf-8").removesuffix("\n")

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, kind: type = object) -> Any:
        value = self.stack.pop() if self.stack else _MARK
        if value is _MARK or not isinstance(value, kind):
            raise Damaged(_MISFIT)
        return value

    def to_mark(self) -> list[Any]:
        values: list[Any] = []
        while self.stack:
            if (value := self.stack.pop()) is _MARK:
                return values[::-1]
            values.append(value)
        raise Damaged(_MISFIT)

    def remember(self, index: int) -> None:
        self.memo[index] = self.pop()
        self.push(self.memo[index])

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Damaged(_MISFIT)
        self.push(self.memo[index])

    # Containers.

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, values: list[Any]) -> None:
        target = self.pop(list)
        target += values
        self.push(target)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.pop(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | Instance):  # to hash a tuple of great depth overflows the C stack
                raise Damaged(_MISFIT)
            target[key] = value
        self.push(target)

    # Names and what is done with them.

    def find(self, module: str, name: str) -> None:
        if (module, name) not in self.names:
            raise Damaged(f"it asks for {shown(f'{module}.{name}')}, which no checkpoint needs")
        self.push(self.names[module, name])

    def reduce(self) -> None:
        arguments, function = self.pop(tuple), self.pop()
        if isinstance(function, ClassName) or not callable(function):
            raise Damaged(_MISFIT)
        self.push(function(*arguments))

    def new(self) -> None:
        arguments, of = self.pop(tuple), self.pop(ClassName)
        if arguments:
            raise Damaged(_MISFIT)
        self.push(Instance(of.kind))

    def build(self) -> None:
        state, instance = self.pop(), self.pop(Instance)
        instance.state = state
        self.push(instance)

    def refer(self) -> None:
        if self.persistent is None:
            raise Damaged("it refers to what is not in it")
        self.push(self.persistent(self.pop()))


def shown(text: str) -> str:
    """A name from the file, fit for a message."""
    return printable(text[:100])
