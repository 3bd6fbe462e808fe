"""JSON from strangers: a file is read whole or refused in one line that says where it is wrong.

Refused are files that are missing, larger than `MAX_BYTES`, cut off, not UTF-8, nested too deep for Python, or that
hold NaN or Infinity, which are not JSON; and fields that are missing, of another type, not finite, or texts longer than
`MAX_TEXT`. Nothing is repaired here; `formats` says what it reads otherwise than it stands.
"""

import dataclasses
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np

MAX_BYTES = 4 * 1024**3  # of one file; parsed, it fills several times as much memory
MAX_TEXT = 20_000  # characters of one caption


def load(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a JSON file; `what` it is called in messages. Raises ValueError, FileNotFoundError."""
    path = Path(path)
    _check_file(path, what)
    return _parse(path.read_bytes(), f"{what} {str(path)!r}")


def load_lines(path: str | os.PathLike[str], what: str) -> Iterator["Record"]:
    """The objects of a file of JSON lines, empty lines left out. Raises ValueError, FileNotFoundError."""
    path = Path(path)
    _check_file(path, what)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"line {number} of {what} {path.name!r}"
                yield Record.of(_parse(line, where), where)


def records(content: Any, where: str) -> Iterator["Record"]:
    """A parsed list -> its objects. Raises ValueError where it is something else."""
    if not isinstance(content, list):
        _refuse(where, f"a {type(content).__name__}", "a list of objects")
    for number, item in enumerate(content):
        name = f"record {number} of {where}"
        yield Record.of(item, name)


@dataclasses.dataclass(frozen=True)
class Record:
    """One object and where it stands, which messages name. The readers of fields raise ValueError."""

    fields: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, content: Any, where: str) -> "Record":
        if not isinstance(content, dict):
            _refuse(where, f"a {type(content).__name__}", "an object")
        return cls(content, where)

    def __contains__(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def first(self, *keys: str) -> str:
        """The first of several names of one field that is there, else the first of all."""
        return next((key for key in keys if key in self), keys[0])

    def text(self, key: str) -> str:
        value = self.fields.get(key)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            self.refuse(key, f"a text of at most {MAX_TEXT:,} characters")
        return value

    def identity(self, key: str) -> str:
        """A number or a text that names something, as text: 7 and "7" are one."""
        value = self.fields.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > 1_000:
            self.refuse(key, "a number or a name")
        return str(value)

    def number(self, key: str) -> float:
        value = self.fields.get(key)
        if not _is_number(value):
            self.refuse(key, "a finite number")
        return float(value)

    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, None where they are not both there."""
        if "height" not in self or "width" not in self:
            return None
        height, width = self.number("height"), self.number("width")
        if height < 1 or width < 1:
            self.refuse("height" if height < 1 else "width", "at least 1 pixel")
        return int(height), int(width)

    def box(self, key: str) -> np.ndarray:
        """x, y, width, height in pixels -> Float64[4] xyxy."""
        value = self.fields.get(key)
        if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)) or min(value[2:]) < 0:
            self.refuse(key, "x, y, width, height, finite numbers with no negative side")
        x, y, width, height = map(float, value)
        return np.array([x, y, x + width, y + height])

    def array(self, key: str, *last: int) -> np.ndarray:
        """Nested lists of finite numbers -> Float64[..., *last]; an empty list is [0, *last]."""
        value = self.fields.get(key)
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError, OverflowError):
            array = np.array(np.nan)
        if isinstance(value, list) and array.size == 0:
            return np.zeros((0, *last))
        if array.ndim != len(last) + 1 or array.shape[1:] != last or not np.isfinite(array).all():
            self.refuse(key, f"lists [n, {', '.join(map(str, last))}] of finite numbers" if last else "finite numbers")
        return array

    def several(self, key: str) -> list["Record"]:
        """A list of objects; a missing one is empty."""
        return list(records(self.fields.get(key, []), f"{key} of {self.where}"))

    def texts(self, key: str) -> list[str]:
        value = self.fields.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value):
            self.refuse(key, f"a list of texts of at most {MAX_TEXT:,} characters")
        return value

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raises the ValueError that says what is wrong with a field."""
        got = reprlib.repr(self.fields[key]) if key in self.fields else "missing"
        _refuse(f"{key} in {self.where}", got, expected)


def _refuse(what: str, got: str, expected: str) -> NoReturn:
    raise ValueError(f"{what} is {got}, expected {expected}. Correct the file, or name the format that it has.")


def _is_number(value: Any) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and abs(value) < 1e15
    except OverflowError:
        return False


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{what} file is {str(path)!r}, expected a file that exists. Check the name.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"{what} {str(path)!r} has {size:,} bytes, expected at most {MAX_BYTES:,}. Score it in several parts."
        )


def _parse(content: bytes, where: str) -> Any:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(content, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ValueError(f"{where} is no JSON ({said}), expected a whole JSON document. Write it again.") from error
