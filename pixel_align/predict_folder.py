"""One request about every picture of a folder: JSON lines and annotated pictures, resumable."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pixel_align import draw
from pixel_align.image import ImageError, read_image
from pixel_align.predict import Predictor
from pixel_align.raw_formats import LeftOut, RawFormat

PREDICTIONS, FAILURES, PICTURES, ASKED = "predictions.jsonl", "failures.jsonl", "pictures", "asked.json"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a folder: pictures answered in this start, answered before, and those that could not be read."""

    answered: int
    before: int
    failures: dict[str, str]  # file name -> why


def pictures_of(folder: Path) -> list[Path]:
    """The files of a folder that are named as pictures are, by name.

    Raises:
      ValueError: there is none.
    """
    PIL.Image.init()
    suffixes = {suffix for suffix, kind in PIL.Image.EXTENSION.items() if kind in PIL.Image.OPEN}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no picture, expected at least one. Check the path.")
    return found


def predict_folder(
    predictor: Predictor,
    pictures: Iterable[Path],
    out: Path,
    mode: str,
    said: dict[str, Any],
    *,
    most_failures: int,
) -> Iterator[Path]:
    """Answers about each picture and yields its path; `report` then says what became of them.

    OUT/predictions.jsonl has a line for each, with `file`; OUT/pictures the annotated ones; OUT/failures.jsonl those
    that could not be read; OUT/asked.json says what was asked. A picture that has its line is not asked about again:
    what was broken off goes on.

    Raises:
      ValueError: what cannot be asked; OUT holds answers to something else; more than `most_failures` pictures that
        cannot be read.
    """
    check_asked(out, mode, said)
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    _replace(out / ASKED, json.dumps(_asked(mode, said), ensure_ascii=False) + "\n")
    done = {line["file"] for line in _lines(out / PREDICTIONS)}
    failed = 0
    (out / FAILURES).unlink(missing_ok=True)  # they are tried again
    for path in pictures:
        if path.name in done:
            continue
        try:
            pixels = read_image(path)
        except ImageError as error:
            failed += 1
            _append(out / FAILURES, {"file": path.name, "error": str(error)})
            if failed > most_failures:
                raise ValueError(
                    f"{failed} pictures cannot be read, expected at most {most_failures}; the last: {error} "
                    f"All are in {str(out / FAILURES)!r}. Mend them, or set --max-failures."
                ) from error
            yield path
            continue
        predictor.set_image(pixels)
        prediction = predictor.predict(mode, **said)
        picture = out / PICTURES / f"{path.name}.png"
        partial = picture.with_suffix(".partial")
        draw.annotate(pixels, *prediction.marks()).save(partial, "PNG")
        partial.replace(picture)
        # The line last: a picture with a line has everything.
        _append(out / PREDICTIONS, {"file": path.name, **prediction.to_json()})
        yield path


def check_asked(out: Path, mode: str, said: Mapping[str, Any]) -> None:
    """Raises ValueError where OUT holds answers to another request: no file may mix the two."""
    if not (out / ASKED).is_file() or not answered_in(out):
        return
    then, now = json.loads((out / ASKED).read_text(encoding="utf-8")), _asked(mode, said)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{name} is {now.get(name)!r}, expected {then.get(name)!r}, which the answers in {str(out)!r} are to. "
                "Choose another --out."
            )


def write_raw(out: Path, form: RawFormat, said: Mapping[str, Any]) -> LeftOut:
    """Writes all that OUT holds in a publisher's format; see `raw_formats`. Gives what is left out, and why.

    Raises ValueError where two pictures would have one id.
    """
    return form.write(_lines(out / PREDICTIONS), said, out)


def report(out: Path, before: int) -> Report:
    """What OUT holds, of which `before` lines were there when this start began."""
    failures = {line["file"]: line["error"] for line in _lines(out / FAILURES)}
    return Report(answered_in(out) - before, before, failures)


def answered_in(out: Path) -> int:
    """How many pictures have their line."""
    return len(_lines(out / PREDICTIONS))


def _asked(mode: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A request in JSON terms; of a mask, what tells it from others."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return f"{value.shape[1]} x {value.shape[0]}, {hashlib.sha256(value.tobytes()).hexdigest()[:12]}"
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return {"mode": mode} | {name: plain(value) for name, value in said.items() if value is not None}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that was broken off is taken out of it."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        _replace(path, whole.decode())
    return [json.loads(line) for line in whole.splitlines()]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: str) -> None:
    """Writes a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
