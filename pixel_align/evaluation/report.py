"""What `pixel-align score` leaves: a table, metrics.json, and a sheet of the worst and the median cases."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import rich.table

from pixel_align import draw, geometry
from pixel_align.evaluation import masks
from pixel_align.evaluation.bootstrap import Interval
from pixel_align.evaluation.formats import Case, Cases
from pixel_align.evaluation.scoring import Score
from pixel_align.image import ImageError, read_image

EACH = 4  # worst and median cases on a sheet
_NAMED = 20  # ids in metrics.json and messages
_MOST_PLACES = 8  # on one picture: more cannot be told apart
_MOST_TEXTS = 4  # above it
_OF_PARTS = ("P@0.5", "P@0.5:0.95", "cIoU", "gIoU", "N-acc", "T-acc")  # in the table


def table(score: Score, title: str) -> rich.table.Table:
    """Figures with their intervals."""
    result = rich.table.Table(title=title)
    result.add_column("metric")
    for column in ("value", "95% low", "95% high"):
        result.add_column(column, justify="right")
    for name, value in score.figures.items():
        low, high = score.intervals.get(name, Interval(math.nan, math.nan))
        result.add_row(name, *("-" if math.isnan(one) else f"{one:.4f}" for one in (value, low, high)))
    return result


def part_tables(score: Score) -> list[rich.table.Table]:
    """The main figures of the parts of a set, a table for each way to part it."""
    tables = []
    for name, parts in score.parts.items():
        shown = [figure for figure in _OF_PARTS if any(figure in figures for figures in parts.values())]
        result = rich.table.Table(name.replace("_", " "), "cases")
        for column in shown:
            result.add_column(column, justify="right")
        for part, figures in parts.items():
            values = (f"{figures[figure]:.4f}" if figure in figures else "-" for figure in shown)
            result.add_row(part, f"{figures['cases']:,}", *values)
        tables.append(result)
    return tables


def remarks(score: Score) -> list[str]:
    """A line for each kind of figures left out, and of id that did not fit: how many, what became of them, the first
    few.
    """
    cases = score.cases
    kinds = (
        ("targets without a prediction, which count as wrong", _still_missing(cases)),
        ("predictions for a target that had one before, left out", cases.duplicate),
        ("predictions for no target, left out", cases.unknown),
    )
    return [
        *score.left_out,
        *_counted(kinds),
    ]


def _counted(kinds: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    return [
        f"{len(ids):,} {what}: {', '.join(ids[:_NAMED])}{', ...' if len(ids) > _NAMED else ''}"
        for what, ids in kinds
        if ids
    ]


def document(score: Score, **settings: Any) -> dict[str, Any]:
    """What metrics.json holds, in JSON terms: settings, counts, figures, intervals; figures that are NaN are null."""
    missing = _still_missing(score.cases)
    kinds = {"missing": missing, "duplicate": score.cases.duplicate, "unknown": score.cases.unknown}
    return {
        **settings,
        "cases": len(score.cases.cases),
        "images": len({case.image_id for case in score.cases.cases}),
        **{kind: {"count": len(ids), "first": list(ids[:_NAMED])} for kind, ids in kinds.items()},
        **({"convention": score.convention} if score.convention else {}),
        **({"left_out": list(score.left_out)} if score.left_out else {}),
        **{name: _finite(value) for name, value in score.figures.items()},
        "intervals_95": {name: [_finite(edge) for edge in pair] for name, pair in score.intervals.items()},
        **{
            way: {part: {name: _finite(value) for name, value in figures.items()} for part, figures in parts.items()}
            for way, parts in score.parts.items()
        },
    }


def check_folder(option: str, folder: Path) -> None:
    """Raises ValueError, before any work, where a folder can be neither made nor written to."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "cannot be written to" if nearest.is_dir() else "is no folder"
        raise ValueError(
            f"{option} is {str(folder)!r}, expected a folder to write to: {nearest} {why}. Choose another."
        )


def write(content: Mapping[str, Any], sheet: PIL.Image.Image | None, folder: Path) -> None:
    """metrics.json and, where there is a sheet, report.png, each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    if sheet is not None:
        partial = folder / ".report.partial.png"
        sheet.save(partial)
        os.replace(partial, folder / "report.png")
    partial = folder / ".metrics.json.partial"
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, folder / "metrics.json")


def sheet(score: Score, folders: Sequence[Path], each: int = EACH) -> PIL.Image.Image | None:
    """The worst and the median predicted cases whose pictures are found, at most one of a picture; None where none is.

    A row of worst ones above a row from the middle of the set, by what `score.measure` says.
    """
    missing = set(score.cases.missing)
    usable = [i for i, case in enumerate(score.cases.cases) if case.id not in missing and np.isfinite(score.quality[i])]
    order = sorted(usable, key=lambda i: (score.quality[i], score.cases.cases[i].id))
    middle = len(order) // 2
    outward = sorted(range(len(order)), key=lambda k: (abs(k - middle), k))
    shown: set[str] = set()
    rows = []
    for name, candidates in (("worst", order), ("median", [order[k] for k in outward])):
        pages: list[PIL.Image.Image] = []
        for i in candidates[: 50 * each]:  # pictures may be few of many
            case = score.cases.cases[i]
            if len(pages) == each or case.image_id in shown:
                continue
            pixels = _pixels(case, folders)
            if pixels is not None:
                shown.add(case.image_id)
                head = f"{name}: {score.measure} {abs(score.quality[i]):.3f}, image {case.image_id}"
                pages.append(page(case, pixels, head))
        if pages:
            rows.append(pages)
    if not rows:
        return None
    # Each row is a sheet of its own: a short one does not shift the next.
    return draw.sheet([draw.sheet(pages, columns=len(pages)) for pages in rows], columns=1, gap=0)


def page(case: Case, pixels: np.ndarray, head: str) -> PIL.Image.Image:
    """One case on its picture, uint8[H, W, 3]: what is true and what was predicted."""
    target, prediction = case.target, case.prediction
    if "word_spans" in target:
        return _words(case, pixels, head)
    if "captions" in target and "boxes" not in target and "masks" not in target:
        box = target.get("box")
        given = [] if box is None else [box]
        said, wanted = prediction.get("text") or "nothing", target["captions"][0]
        title = (
            f"{head}. Said: \N{LEFT DOUBLE QUOTATION MARK}{said}\N{RIGHT DOUBLE QUOTATION MARK}. Reference: {wanted}"
        )
        return _places(pixels, ["region"][: len(given)], given, [None] * len(given), title)
    if "boxes" in target or "masks" in target:
        return _many(case, pixels, head)
    sides = (target, prediction)
    boxes = [side.get("box") for side in sides]
    shapes = [_decoded(side.get("mask"), pixels.shape) for side in sides]
    title = f"{head}: \N{LEFT DOUBLE QUOTATION MARK}{target['text']}\N{RIGHT DOUBLE QUOTATION MARK}"
    return _places(pixels, ["true", "predicted"], boxes, shapes, title)


def find_picture(case: Case, folders: Sequence[Path]) -> Path | None:
    """The file of a case's picture: by its published name, with or without its folders, or by its id."""
    names = [case.file, Path(case.file).name] if case.file else []
    if case.image_id.isdigit():
        digits = case.image_id.zfill(12)
        names += [f"{digits}.jpg", *(f"COCO_{split}2014_{digits}.jpg" for split in ("train", "val", "test"))]
    names += [f"{case.image_id}{suffix}" for suffix in (".jpg", ".jpeg", ".png")]
    for folder in folders:
        for name in names:
            path = (folder / name).resolve()
            # A published name is from a stranger: it must not lead out of the folder.
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
    return None


def _pixels(case: Case, folders: Sequence[Path]) -> np.ndarray | None:
    path = find_picture(case, folders)
    if path is None:
        return None
    try:
        return read_image(path)
    except ImageError:
        return None


def _words(case: Case, pixels: np.ndarray, head: str) -> PIL.Image.Image:
    """Words of a trace: predicted points of the target's own words beside their true places."""
    target = case.target
    words = [target["text"][start:end] for start, end in target["word_spans"]]
    located = target["word_located"]
    points = case.prediction.get("points", ())
    centers = geometry.box_centers(np.asarray(target["word_boxes"], np.float64)) if len(words) else np.zeros((0, 2))
    truth = [centers[k][None] if located[k] else None for k in range(len(words))]
    said = [points[k] if located[k] and len(points) == len(words) else None for k in range(len(words))]
    return draw.comparison(pixels, words, said, truth, head, side=560)


def _many(case: Case, pixels: np.ndarray, head: str) -> PIL.Image.Image:
    """Regions of a picture: the best-scored predictions with what they say, the true ones as white outlines."""
    target, prediction = case.target, case.prediction
    key = "masks" if "masks" in target else "boxes"
    found = prediction.get(key, ())
    scores = np.asarray(prediction.get("scores", np.zeros(len(found))), np.float64)
    best = np.argsort(-scores, kind="stable")[:_MOST_PLACES].tolist()
    texts = prediction.get("captions") or prediction.get("phrases") or prediction.get("categories") or []
    names = [str(texts[i]) if i < len(texts) else str(i) for i in best]
    boxes: list[np.ndarray | None] = [None] * len(best)
    shapes: list[np.ndarray | None] = [None] * len(best)
    if key == "boxes":
        # Narratives count in fractions of the picture, their "size" being 1.
        height, width = (pixels.shape[k] / target["size"][k] if "size" in target else 1.0 for k in (0, 1))
        scale = np.array([width, height, width, height])
        boxes = [found[i] * scale if _is_place(found[i], target) else None for i in best]
        truth = [_frame(box * scale, pixels.shape) for box in target[key] if _is_place(box, target)]
        seen = _outlined(pixels, truth)
    else:
        shapes = [_decoded(found[i], pixels.shape) for i in best]
        decoded = [_decoded(mask, pixels.shape) for mask in target[key]]
        seen = _outlined(pixels, [mask for mask in decoded if mask is not None])
    few = f", the best {len(best)} shown" if len(best) < len(found) else ""
    wanted = target.get("phrases") or target.get("utterances") or target.get("captions") or ()
    said = f": {'; '.join(wanted[:_MOST_TEXTS])}{'; ...' if len(wanted) > _MOST_TEXTS else ''}" if wanted else ""
    return _places(
        seen, names, boxes, shapes, f"{head}. {len(found)} predicted{few}. {len(target[key])} true (white){said}"
    )


def _is_place(box: np.ndarray, target: Mapping[str, Any]) -> bool:
    """Whether a box is another than the whole picture, which in narratives stands for no place."""
    return "size" not in target or not np.array_equal(box, (0, 0, *reversed(target["size"])))


def _frame(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A box xyxy in pixels -> bool[H, W], True inside it."""
    x0, y0, x1, y1 = np.rint(geometry.clip_boxes(box, (0.0, 0.0, shape[1], shape[0]))).astype(int).tolist()
    inside = np.zeros(tuple(shape[:2]), bool)
    inside[y0:y1, x0:x1] = True
    return inside


def _outlined(pixels: np.ndarray, shapes: Sequence[np.ndarray]) -> np.ndarray:
    """A copy of the picture with the edges of masks, bool[H, W] each, in white on black."""
    result = pixels.copy()
    for colour, reach in ((0, 3), (255, 2)):
        for mask in shapes:
            core = mask.copy()
            for _ in range(max(1, round(max(mask.shape) / 640)) * reach):
                core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
                core[[0, -1], :] = core[:, [0, -1]] = False
            result[mask & ~core] = colour
    return result


def _places(
    pixels: np.ndarray,
    names: Sequence[str],
    boxes: Sequence[Any],
    shapes: Sequence[np.ndarray | None],
    title: str,
) -> PIL.Image.Image:
    """Named boxes and masks on a picture; a name without either is left out."""
    kept, points = [], []
    for k, (box, shape) in enumerate(zip(boxes, shapes, strict=True)):
        if box is None and shape is not None and shape.any():
            rows, columns = np.nonzero(shape)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if box is not None:
            kept.append(k)
            points.append(geometry.box_centers(np.asarray(box, np.float64))[None])
    return draw.annotate(
        pixels,
        [names[k] for k in kept],
        points,
        [None if boxes[k] is None else np.asarray(boxes[k], np.float64) for k in kept],
        [shapes[k] for k in kept],
        title,
        side=560,
        merge=0,
    )


def _decoded(mask: Any, shape: Sequence[int]) -> np.ndarray | None:
    """A mask -> bool[H, W] of the picture, None where it is of another size."""
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray):
        mask = masks.decode(mask, "mask")
    return mask.astype(bool) if mask.shape == tuple(shape[:2]) else None


def _still_missing(cases: Cases) -> tuple[str, ...]:
    """Missing ids among the cases: none where only what was predicted is scored."""
    scored = {case.id for case in cases.cases}
    return tuple(key for key in cases.missing if key in scored)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
