"""Publishers' JSON files, plain or gzipped: read whole, or element by element where they are large.

Whatever is wrong with a file is one DataError that names it.
"""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import DataError

# What reading fields of another shape than expected raises.
_OTHER = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def load(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a file; `what` it is called in messages. Raises DataError."""
    with expected(path, what, "a whole JSON file"):
        return json.loads(_text(path, what))


def elements(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """The elements of a file that is one JSON list, one after the other: memory holds its text, not its objects."""
    with expected(path, what, "a whole JSON list"):
        text = _text(path, what)
        decoder = json.JSONDecoder()
        at = _after_space(text, 0)
        if text[at : at + 1] != "[":
            raise ValueError("it is no list")
        at = _after_space(text, at + 1)
        while text[at : at + 1] != "]":
            element, at = decoder.raw_decode(text, at)
            yield element
            at = _after_space(text, at)
            if text[at : at + 1] == ",":
                at = _after_space(text, at + 1)
                if text[at : at + 1] == "]":
                    raise ValueError(f"nothing follows the comma before character {at}")
            elif text[at : at + 1] != "]":
                raise ValueError(f"it ends or goes astray at character {at}")
        if _after_space(text, at + 1) != len(text):
            raise ValueError(f"more follows behind its end, character {at + 1}")


@contextlib.contextmanager
def expected(path: str | os.PathLike[str], what: str, form: str) -> Iterator[None]:
    """Within, whatever the content of a file does not hold to is a DataError that says what was expected: `form`."""
    try:
        yield
    except DataError:
        raise
    except _OTHER as error:
        said = "nested too deep" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{what} {os.fspath(path)!r} is broken ({said:.300}), expected {form}. Check the file, or fetch it again."
        ) from error


def _text(path: str | os.PathLike[str], what: str) -> str:
    if not os.path.isfile(path):
        raise DataError(f"{what} is {os.fspath(path)!r}, expected a file that exists. Check its name.")
    content = Path(path).read_bytes()
    try:
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(str(error)) from error


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
