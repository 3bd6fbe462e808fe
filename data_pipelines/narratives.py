"""The publisher's lines of Localized Narratives, read and checked: file -> line -> `Narrative`.

Lines come from strangers: whatever is no narrative is a BadRecord that says why, and no line raises anything else.
"""

import dataclasses
import glob
import gzip
import json
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import DataError
from data_pipelines.alignment import Utterance
from pixel_align.text_alignment import words_of

# Alignment compares every word of a caption with every word spoken; real narratives have some hundred at most.
MAX_WORDS = 2_000
_LARGEST = 1e9  # of times and coordinates: what is larger is none, and its square must still be a number


class BadRecord(ValueError):
    """A line that is no narrative; the message says why."""


class Dropped(ValueError):
    """A line with which nothing is wrong, but that has no place in the set: counted under the message, a few words."""


@dataclasses.dataclass(frozen=True)
class Narrative:
    """One narrative as published. Times are in seconds, x and y in [0, 1] of the picture, now and then outside."""

    dataset_id: str
    image_id: str
    annotator_id: int
    caption: str
    utterances: tuple[Utterance, ...]
    traces: tuple[np.ndarray, ...]  # strokes, each float64[n, 3] of (x, y, t)


@dataclasses.dataclass
class Skipped:
    """Narratives left out, counted by reason; each is named while there are few."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    named: list[str] = dataclasses.field(default_factory=list)
    NAMED = 200  # beyond these, only counted

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, reason: str, name: str, why: str, narratives: int = 1) -> None:
        """Notes `narratives` left out for one `reason` (a few fixed words).

        `name` says which, `why` what exactly is wrong.
        """
        self.counts[reason] += narratives
        if len(self.named) < self.NAMED:
            self.named.append(f"{name}: {why}")

    def merge(self, other: "Skipped") -> None:
        self.counts.update(other.counts)
        self.named.extend(other.named[: self.NAMED - len(self.named)])


def parse_narrative(line: bytes | str) -> Narrative:
    """One line of the publisher's jsonl -> Narrative. Raises BadRecord on anything that is not one.

    The seventh field, `voice_recording`, is not read; unknown fields are let be.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadRecord(f"is a {type(record).__name__}, expected an object")
    image_id = record.get("image_id")
    image_id = str(image_id) if isinstance(image_id, int) and not isinstance(image_id, bool) else image_id
    annotator_id = int(_typed(record, "annotator_id", int))
    if not -(2**63) <= annotator_id < 2**63:
        raise BadRecord(f"annotator_id is {reprlib.repr(annotator_id)}, expected a number of 64 bits")
    narrative = Narrative(
        dataset_id=_text(record, "dataset_id"),
        image_id=_text({"image_id": image_id}, "image_id"),
        annotator_id=annotator_id,
        caption=_text(record, "caption"),
        utterances=tuple(_utterance(item) for item in _typed(record, "timed_caption", list)),
        traces=tuple(_stroke(item) for item in _typed(record, "traces", list)),
    )
    _check_length("caption", [narrative.caption])
    _check_length("timed_caption", [utterance.text for utterance in narrative.utterances])
    return narrative


def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Lines of one or several jsonl files, as (file:line, line), without empty ones.

    Names may be globs, files may be gzipped. Raises DataError where a name finds no file, a file has no lines, or a
    gzipped one is damaged.
    """
    for path in annotation_files(patterns):
        empty = True
        try:
            with gzip.open(path) if is_gzipped(path) else path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        empty = False
                        yield f"{path.name}:{number}", line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"annotation file {str(path)!r} is broken ({error}), expected a whole file. Fetch it again."
            ) from error
        if empty:
            raise DataError(
                f"annotation file {str(path)!r} is empty, expected one narrative per line. Check --annotations."
            )


def annotation_files(patterns: Sequence[str]) -> list[Path]:
    """The files that names or globs stand for, in a fixed order, each once. DataError where one stands for none."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = (
            [pattern]
            if os.path.isfile(pattern)
            else sorted(name for name in glob.glob(pattern) if os.path.isfile(name))
        )
        if not found:
            raise DataError(f"annotation file is {pattern!r}, expected a file that exists. Check --annotations.")
        files.update((Path(name), None) for name in found)
    return list(files)


def is_gzipped(path: Path) -> bool:
    """Whether a file is gzipped, told by its first two bytes: the name does not always say it."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _typed(record: Mapping[str, Any], key: str, kind: type) -> Any:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "missing" if key not in record else f"a {type(value).__name__}"
        raise BadRecord(f"{key} is {found}, expected a {kind.__name__}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value: str = _typed(record, key, str)
    if not value.strip():
        raise BadRecord(f"{key} is empty, expected text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRecord(f"{key} holds half of a surrogate pair, expected text that UTF-8 can spell")
    return value


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    # The comparison is exact for integers of any length, and false for NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise BadRecord(f"{key} is {reprlib.repr(value)}, expected a number of at most {_LARGEST:.0e} in size")
    return float(value)


def _utterance(item: Any) -> Utterance:
    if not isinstance(item, dict):
        raise BadRecord(f"timed_caption holds a {type(item).__name__}, expected objects")
    return Utterance(_typed(item, "utterance", str), _number(item, "start_time"), _number(item, "end_time"))


def _stroke(points: Any) -> np.ndarray:
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise BadRecord("traces holds something else than lists of objects, expected strokes of points")
    # One conversion for the whole stroke; booleans and texts show in its type. A missing key becomes an object and
    # shows too, as does an integer that no machine type holds.
    try:
        values = np.array([[point.get("x"), point.get("y"), point.get("t")] for point in points])
    except (ValueError, OverflowError) as error:
        raise BadRecord(f"a point of traces lacks x, y or t as numbers ({error})") from error
    if not points:
        return np.zeros((0, 3))
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not (abs(values.astype(np.float64)) <= _LARGEST).all():
        raise BadRecord(f"a point of traces lacks x, y or t as numbers of at most {_LARGEST:.0e} in size")
    return values.astype(np.float64)


def _check_length(key: str, texts: Sequence[str]) -> None:
    """Refuses more than MAX_WORDS texts, or texts of more words together."""
    count = len(texts)
    # A word takes a character and another to part it from the next: short texts need no counting.
    if sum(len(text) + 1 for text in texts) > 2 * MAX_WORDS:
        count = max(count, sum(len(words_of(text)) for text in texts))
    if count > MAX_WORDS:
        raise BadRecord(f"{key} has {count} words or utterances, expected at most {MAX_WORDS}")
