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
from typing import IO, Any

from data_pipelines import DataError
from data_pipelines.narratives import is_gzipped

_PART = 1 << 22  # characters read at a time

# What reading fields of another shape than expected raises.
_OTHER = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def load(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a file; `what` it is called in messages. Raises DataError."""
    with expected(path, what, "a whole JSON file"):
        return json.loads(_text(path, what))


def elements(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """The elements of a file that is one JSON list, one after the other: memory holds a part of the text at a time."""
    with expected(path, what, "a whole JSON list"), _opened(path, what) as file:
        text = _Part(file)
        if text.next() != "[":
            raise ValueError("it is no list")
        text.at += 1
        while text.next() != "]":
            yield text.element()
            if text.next() == ",":
                text.at += 1
                if text.next() == "]":
                    raise ValueError(f"nothing follows the comma before character {text.passed}")
            elif text.next() != "]":
                raise ValueError(f"it ends or goes astray at character {text.passed}")
        text.at += 1
        if text.next():
            raise ValueError(f"more follows behind its end, character {text.passed}")


class _Part:
    """The part of a text that is in memory, and where in it reading stands."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._before, self._ended = file, "", 0, False
        self._decoder = json.JSONDecoder()
        self.at = 0

    @property
    def passed(self) -> int:
        """How many characters of the file lie behind."""
        return self._before + self.at

    def next(self) -> str:
        """The next character that is no white space, "" at the end of the file; reading stands there."""
        while True:
            self.at = _after_space(self._text, self.at)
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def element(self) -> Any:
        """The JSON value that begins here; reading stands behind it and the space that follows."""
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise ValueError(f"{error.msg}, character {self._before + error.pos}") from error
                continue
            # "1" may be the beginning of "1.5": a value is whole where the list goes on.
            end = _after_space(self._text, end)
            if self._text[end : end + 1] in (",", "]") or not self._more():
                self.at = end
                return found

    def _more(self) -> bool:
        """Reads on, more the longer what is kept already is. False at the end of the file."""
        kept = self._text[self.at :]
        try:
            fresh = self._file.read(max(_PART, len(kept)))
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(str(error)) from error
        if not fresh:
            return False
        self._text, self._before, self.at = kept + fresh, self._before + self.at, 0
        return True


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
    with _opened(path, what) as file:
        try:
            return file.read()
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(str(error)) from error


def _opened(path: str | os.PathLike[str], what: str) -> IO[str]:
    if not os.path.isfile(path):
        raise DataError(f"{what} is {os.fspath(path)!r}, expected a file that exists. Check its name.")
    kind = gzip.open if is_gzipped(Path(path)) else open
    return kind(path, "rt", encoding="utf-8-sig", newline="")


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
