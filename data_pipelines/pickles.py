"""Pickles of plain data, from strangers: lists, dicts, texts and numbers are read, nothing in the file is ever run.

A pickle is a program; most of its instructions build plain data, a few name a class or a function and call it. A file
that holds any of the few is refused before the first is followed, by the name that it asks for.
"""

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from data_pipelines import DataError

MAX_BYTES = 512 * 1024**2  # the largest published refs file has some 40 MB

_PLAIN = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    )
)
_NUMBERED = frozenset(("PUT", "LONG_BINPUT"))


def load(path: str | os.PathLike[str], what: str) -> Any:
    """The plain data in a pickle, of any protocol and of Python 2 too; `what` it is called in messages.

    Raises:
      DataError: no such file, too large, cut off, or asking for anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{what} is {str(path)!r}, expected a file that exists. Check its name.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{what} {str(path)!r} has {size:,} bytes, expected at most {MAX_BYTES:,}. Check the file.")
    content = path.read_bytes()
    try:
        _check(content, f"{what} {str(path)!r}")
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except DataError:
        raise
    # What Python's reader is known to raise on bytes that are no whole pickle.
    except (pickle.UnpicklingError, ValueError, LookupError, EOFError, TypeError, AttributeError) as error:
        raise DataError(
            f"{what} {str(path)!r} is broken ({type(error).__name__}: {error}), expected a whole pickle. Fetch it "
            "again."
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function: a second lock behind `_check`."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _check(content: bytes, what: str) -> None:
    """Raises DataError at the first instruction that does more than build plain data."""
    said: list[str] = []  # the last two texts: what a class is named by
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in _PLAIN:
            asked = ".".join(str(argument).split() if argument is not None else said)
            wants = asked if "GLOBAL" in operation.name or operation.name == "INST" else operation.name
            raise DataError(
                f"{what} asks for {wants!r:.200}, expected plain data only: lists, dicts, texts, numbers. Nothing in "
                "it was run; fetch the file from its publisher."
            )
        # A number far beyond what the file can hold would have Python reserve memory for it.
        if operation.name in _NUMBERED and not 0 <= int(argument or 0) <= len(content):
            raise DataError(f"{what} stores a thing under number {argument}, expected a whole pickle. Fetch it again.")
        if isinstance(argument, str):
            said = [*said[-1:], argument]
