"""Cases -> figures with intervals, by the metric that they are for.

A `Scorer` says what a metric's pair `row`, `summary` does not: how its figures move when pictures are resampled, and
how good one case is, for the sheet of worst and median cases.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import (
    answers,
    bootstrap,
    captioning,
    dense_captioning,
    detection,
    grounded_conversation,
    local_matching,
    meteor,
    point_l1,
    referring,
    traces,
)
from pixel_align.evaluation.bootstrap import Figures, Interval
from pixel_align.evaluation.formats import Case, Cases
from pixel_align.evaluation.rows import Row, column
from pixel_align.evaluation.weighted_precision import Curve, average

Parts = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """One metric over cases.

    Attributes:
      rows: of the cases, in their order; with the settings of a convention.
      summary: rows -> figures.
      resampled: rows -> the figures that get an interval, as functions of weights.
      quality: row -> how good one case is, larger is better, NaN where it cannot be said.
      measure: what `quality` is; of a distance, quality is the negative.
      conventions: settings of `rows` by the names of published ways to score; the first is the default.
      parts: rows -> {"by_...": {name of a part of the set: its figures}}.
      left_out: cases -> a line for each kind of figures that is left out, and why.
    """

    rows: Callable[..., list[Row]]
    summary: Callable[[Sequence[Row]], dict[str, float]]
    resampled: Callable[[Sequence[Row]], Figures]
    quality: Callable[[Row], float]
    measure: str
    conventions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    parts: Callable[[Sequence[Row]], Parts] = lambda rows: {}
    left_out: Callable[[Sequence[Case]], list[str]] = lambda cases: []


@dataclasses.dataclass(frozen=True)
class Score:
    """What `score` finds.

    Attributes:
      figures: name -> value. intervals: of some of them.
      quality: Float64[n], of each case, what `measure` says.
      cases: that were scored, with what was named on the way.
      parts, left_out: as `Scorer` has them. convention: by which it was scored, "" where there is one way only.
    """

    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    quality: np.ndarray
    measure: str
    cases: Cases
    parts: Parts = dataclasses.field(default_factory=dict)
    left_out: Sequence[str] = ()
    convention: str = ""


def score(
    cases: Cases, metrics: str, *, convention: str = "", resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> Score:
    """Scores cases by one of SCORERS.

    Args:
        convention: one of the scorer's, "" for its default.
        resamples: for the intervals; 0 for none.

    Raises:
        ValueError: no such convention, no case, or one that the metric refuses; its message then begins with the case.
    """
    scorer = SCORERS[metrics]
    convention = check_convention(metrics, convention)
    if not cases.cases:
        raise ValueError("number of cases is 0, expected at least 1. Check that both files are of one set.")
    rows = scorer.rows(cases.cases, **scorer.conventions.get(convention, {}))
    images = [case.image_id for case in cases.cases]
    found = bootstrap.intervals(scorer.resampled(rows), images, resamples=resamples, seed=seed) if resamples else {}
    quality = np.array([scorer.quality(row) for row in rows], np.float64)
    figures, left_out = scorer.summary(rows), scorer.left_out(cases.cases)
    return Score(figures, found, quality, scorer.measure, cases, scorer.parts(rows), left_out, convention)


def check_convention(metrics: str, convention: str) -> str:
    """The convention, the default one for "". Raises ValueError where the metric has none of this name."""
    known = SCORERS[metrics].conventions
    if convention and convention not in known:
        expected = f"one of {', '.join(known)}" if known else f"none: {metrics} are scored in one way"
        raise ValueError(f"convention is {convention!r}, expected {expected}. Choose one, or leave it out.")
    return convention or next(iter(known), "")


def _each(row: Callable[..., Row]) -> Callable[..., list[Row]]:
    def rows(cases: Sequence[Case], **settings: Any) -> list[Row]:
        found = []
        for case in cases:
            try:
                found.append(row(case.target, case.prediction, **settings))
            except ValueError as error:
                raise ValueError(f"case {case.id!r} of image {case.image_id!r}: {error}") from error
        return found

    return rows


def _sum(rows: Sequence[Row], key: str) -> np.ndarray:
    """Float64[n]: the sum of an array of each row."""
    return np.array([row[key].sum() for row in rows], np.float64)


def _count(rows: Sequence[Row], key: str) -> np.ndarray:
    """Float64[n]: the length of an array of each row."""
    return np.array([len(row[key]) for row in rows], np.float64)


def _mean(row: Row, key: str) -> float:
    return float(row[key].mean()) if row[key].size else float("nan")


def _kinds_left_out(cases: Sequence[Case]) -> list[str]:
    """ "box", "mask": what targets have and no prediction has, though some has the other."""
    given = {kind for kind in ("box", "mask") for case in cases if case.prediction.get(kind) is not None}
    wanted = {kind for kind in ("box", "mask") for case in cases if case.target.get(kind) is not None}
    return sorted(wanted - given) if given else []


def _referring_left_out(cases: Sequence[Case]) -> list[str]:
    plural = {"box": "boxes", "mask": "masks"}
    return [f"figures of {plural[kind]} left out: no prediction has a {kind}" for kind in _kinds_left_out(cases)]


_OF_KIND = {"box": ("iou",), "mask": ("mask_iou", "intersection", "union")}


def _referring_rows(cases: Sequence[Case]) -> list[Row]:
    empty = [key for kind in _kinds_left_out(cases) for key in _OF_KIND[kind]]
    return [{**row, **{key: row[key][:0] for key in empty}} for row in _each(referring.row)(cases)]


def _referring_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Without those that could not be measured: a set has boxes or masks or both, few have expressions of nothing."""
    return {name: value for name, value in referring.summary(rows).items() if not math.isnan(value)}


def _referring_parts(rows: Sequence[Row]) -> Parts:
    groups = {"by_split": referring.splits(rows), "by_length": referring.lengths(rows)}
    return {
        name: {part: {"cases": len(some), **_referring_figures(some)} for part, some in found.items()}
        for name, found in groups.items()
        if [*found] != [""]  # a set without splits
    }


def _referring(rows: Sequence[Row]) -> Figures:
    boxes, masked = _count(rows, "iou"), _count(rows, "mask_iou")
    nothing, said = _sum(rows, "no_target"), _sum(rows, "said_no_target")
    iou, mask_iou = ([row[key] for row in rows] for key in ("iou", "mask_iou"))
    over = {t: np.array([(one > t).sum() for one in iou], np.float64) for t in referring.THRESHOLDS}
    both, either = _sum(rows, "intersection"), _sum(rows, "union")
    present = masked * (1 - nothing)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if boxes.any():
        parts |= {f"P@{t:g}": (hits, boxes) for t, hits in over.items()}
        parts["P@0.5:0.95"] = (np.mean(list(over.values()), axis=0), boxes)
    if masked.any():
        parts["cIoU"], parts["gIoU"] = (both, either), (_sum(rows, "mask_iou"), masked)
        parts["cIoU_pixel_llm"] = (both, either + 1e-5 * masked)
    if present.any():
        for t in referring.THRESHOLDS:
            parts[f"mask_P@{t:g}"] = np.array([(one > t).sum() for one in mask_iou]) * present, present
        for t in referring.PUBLISHED_PRECISIONS:
            parts[f"Pr@{t:g}"] = np.array([(one >= t).sum() for one in mask_iou]) * present, present
    if nothing.any():
        parts["N-acc"], parts["T-acc"] = (said * nothing, nothing), ((1 - said) * (1 - nothing), 1 - nothing)
    return bootstrap.of_ratios(parts)


def _box_or_mask_iou(row: Row) -> float:
    return _mean(row, "iou" if len(row["iou"]) else "mask_iou")


def _answers(rows: Sequence[Row]) -> Figures:
    return bootstrap.of_ratios({key: (_sum(rows, key), _count(rows, key)) for key in ("exact", "VQA_style")})


def _dense(rows: Sequence[Row]) -> Figures:
    scores, case = column(rows, "score"), np.repeat(np.arange(len(rows)), [len(row["score"]) for row in rows])
    order = np.argsort(-scores, kind="stable")
    case = case[order]
    taken, iou, meteor = (column(rows, key)[order] for key in ("taken", "iou", "meteor"))
    regions, recalls = _sum(rows, "regions"), np.arange(100) / 100
    placed = {least: taken.astype(bool) & (iou >= least) for least in dense_captioning.IOUS}
    both = {
        f"AP_iou{least}_meteor{above:.2f}": Curve(
            case, np.flatnonzero(right & (meteor > above)), None, regions, recalls
        )
        for least, right in placed.items()
        for above in dense_captioning.METEORS
    }
    detection = {
        f"AP_detection_iou{least}": Curve(case, np.flatnonzero(right), None, regions, recalls)
        for least, right in placed.items()
    }

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = average([*both.values(), *detection.values()], weights)
        means = {"mAP": values[:, : len(both)].mean(axis=1), "mAP_detection": values[:, len(both) :].mean(axis=1)}
        return {**means, **dict(zip([*both, *detection], values.T, strict=True))}

    return figures


def _regions_found(row: Row) -> float:
    found = (row["taken"].astype(bool) & (row["iou"] >= 0.5)).sum()
    return float(found / row["regions"].sum()) if row["regions"].sum() else float("nan")


def _detection(rows: Sequence[Row]) -> Figures:
    curves = _curves_of_coco(rows)
    names = list(curves)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = average([curves[name] for name in names], weights)
        result = {}
        for figure, chosen in (("AP", None), ("AP50", 0.5), ("AP75", 0.75)):
            columns = [k for k, (_, threshold) in enumerate(names) if chosen in (None, threshold)]
            found = np.isfinite(values[:, columns])
            total = np.where(found, values[:, columns], 0).sum(axis=1)
            result[figure] = np.divide(total, found.sum(axis=1), out=np.full(len(total), np.nan), where=found.any(1))
        return result

    return figures


def _curves_of_coco(rows: Sequence[Row]) -> dict[tuple[int, float], Curve]:
    """(category, IoU threshold) -> curve over objects of all sizes, from pycocotools' own matching."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = detection.evaluation(rows)
        evaluation.evaluate()
    recalls, images = evaluation.params.recThrs, len(rows)
    result = {}
    for k, category in enumerate(evaluation.params.catIds):
        # Found by category, then by size of object, of which "all" is the first, then by picture.
        start = k * len(evaluation.params.areaRng) * images
        found = [(i, one) for i, one in enumerate(evaluation.evalImgs[start : start + images]) if one is not None]
        positives = np.zeros(images)
        for i, one in found:
            positives[i] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        if not positives.any():
            continue
        scores = np.concatenate([one["dtScores"] for _, one in found])
        order = np.argsort(-scores, kind="stable")
        case = np.repeat([i for i, _ in found], [len(one["dtScores"]) for _, one in found])[order]
        right, ignored = (
            np.concatenate([np.asarray(one[key]).reshape(len(evaluation.params.iouThrs), -1) for _, one in found], 1)
            for key in ("dtMatches", "dtIgnore")
        )
        for t, threshold in enumerate(evaluation.params.iouThrs):
            counted = ignored[t, order] == 0
            hits = np.flatnonzero((right[t, order] > 0) & counted)
            result[int(category), round(float(threshold), 2)] = Curve(case, hits, counted, positives, recalls)
    return result


def _targets_found(row: Row) -> float:
    """Share of the targets that some prediction of their category covers with IoU of 0.5 or more."""
    wanted = ~row["target_crowd"]
    if not wanted.any():
        return float("nan")
    table = row["table"].reshape(-1, len(row["target_category"]))
    same = row["category"][:, None] == row["target_category"][None]
    return float(((table >= 0.5) & same).any(axis=0)[wanted].mean())


def _captions(rows: Sequence[Row]) -> Figures:
    """BLEU and METEOR of the summed counts of each set. CIDEr weighs words by how many pictures of the whole set have
    them, in every resampled set: a set with copies of pictures would weigh them wrongly.
    """
    each, ones = captioning.each(rows), np.ones(len(rows))
    means = bootstrap.of_ratios({name: (each[name], ones) for name in _CAPTION_MEANS if name in each})
    asked = [key for key in ("bleu", "meteor") if key in rows[0]]
    counts = {key: np.stack([row[key] for row in rows]).astype(np.float64) for key in asked}
    if "meteor" in counts:
        # One by one: a pair that matches in full and in one piece counts otherwise in a sum.
        counts["meteor"] = np.stack([meteor.total([row["meteor"]]) for row in rows]).astype(np.float64)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = dict(means(weights))
        if "bleu" in counts:
            bleu = [captioning.summary([{"bleu": one}]) for one in weights @ counts["bleu"]]
            found |= {name: np.array([one[name] for one in bleu]) for name in bleu[0]}
        if "meteor" in counts:
            found["METEOR"] = np.array([meteor.score(one) for one in weights @ counts["meteor"]])
        return found

    return figures


_CAPTION_MEANS = ("ROUGE-L", "CIDEr", "CIDEr-D", "CIDEr-plain")


def _caption_rows(cases: Sequence[Case]) -> list[Row]:
    return _each(lambda target, said: captioning.row(target, said, metrics=captioning.ALL_METRICS))(cases)


def _narrative_rows(cases: Sequence[Case]) -> list[Row]:
    boxes = _each(local_matching.row)(cases)
    return [_prefixed("text_", a) | _prefixed("box_", b) for a, b in zip(_caption_rows(cases), boxes, strict=True)]


def _narrative_figures(rows: Sequence[Row]) -> dict[str, float]:
    text = captioning.summary([_part(row, "text_") for row in rows])
    return {**local_matching.summary([_part(row, "box_") for row in rows]), **text}


def _narratives(rows: Sequence[Row]) -> Figures:
    distances, text = _local([_part(row, "box_") for row in rows]), _captions([_part(row, "text_") for row in rows])
    return lambda weights: {**distances(weights), **text(weights)}


def _local(rows: Sequence[Row]) -> Figures:
    parts, counts = {}, []
    for name in filter("segments".__ne__, rows[0]):
        total, count = _sum(rows, name), _count(rows, name)
        parts[f"LBM_{name}"] = _mean_of_those(total, count)
        parts[f"LBM_{name}_pooled"] = total, count
        counts.append(count)
    ratios = bootstrap.of_ratios(parts)
    shares = bootstrap.of_ratios({str(k): (count, _sum(rows, "segments")) for k, count in enumerate(counts)})
    return lambda weights: {**ratios(weights), "LBM_matched_share": np.max([*shares(weights).values()], axis=0)}


def _mean_of_those(total: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts Float64[n] of cases -> the ratio that is the mean of the means of those cases that have any."""
    return np.divide(total, count, out=np.zeros(len(total)), where=count > 0), (count > 0).astype(np.float64)


def _part(row: Row, prefix: str) -> Row:
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


def _prefixed(prefix: str, row: Row) -> Row:
    return {prefix + key: value for key, value in row.items()}


def _conversation_left_out(cases: Sequence[Case]) -> list[str]:
    known = any("similarity" in case.prediction for case in cases)
    return [] if known else ["mask_recall left out: no prediction has similarity, the likeness of phrases"]


def _conversations(cases: Sequence[Case]) -> list[Row]:
    rows = _each(grounded_conversation.row)(cases)
    # Recall needs the likeness of phrases, which files mostly do not hold; none is not 0.
    known = np.array([any("similarity" in case.prediction for case in cases)])
    return [{**row, "recall_known": known} for row in rows]


def _conversation_figures(rows: Sequence[Row]) -> dict[str, float]:
    figures = grounded_conversation.summary(rows)
    known = any(row["recall_known"].any() for row in rows)
    return {name: value for name, value in figures.items() if known or not name.startswith("mask_recall")}


def _grounded(rows: Sequence[Row]) -> Figures:
    phrases, ones = _sum(rows, "phrases"), np.ones(len(rows))
    parts = {"mIoU": (_sum(rows, "miou"), ones), "mIoU_optimal": (_sum(rows, "miou_optimal"), ones)}
    if any(row["recall_known"].any() for row in rows):
        parts["mask_recall"] = _sum(rows, "recalled"), phrases
        parts["mask_recall_optimal"] = _sum(rows, "recalled_optimal"), phrases
    ratios = bootstrap.of_ratios(parts)
    ap = _detection([_part(row, "ap_") for row in rows])
    told = np.array([any(key.startswith("text_") for key in row) for row in rows])
    texts = [_part(row, "text_") for row, one in zip(rows, told, strict=True) if one]
    words = _captions(texts) if texts else None

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        said = words(weights[:, told]) if words else {}
        kept = {name: said[name] for name in grounded_conversation.TEXT_METRICS if name in said}
        return {**ratios(weights), "AP50": ap(weights)["AP50"], **kept}

    return figures


def _traces(cases: Sequence[Case]) -> list[Row]:
    """The house's figures; where words have places from a trace also the published ones, of words and their boxes."""
    names = sorted({name for case in cases for name in case.target["object_names"]})
    rows = _each(lambda target, prediction: traces.row(target, prediction, names))(cases)
    if not any(np.any(case.target["word_located"]) for case in cases):
        return rows
    points, boxes = _each(_points_of_words)(cases), _each(_boxes_of_words)(cases)
    return [row | _prefixed("l1_", a) | _prefixed("box_", b) for row, a, b in zip(rows, points, boxes, strict=True)]


def _points_of_words(target: Mapping[str, Any], prediction: Mapping[str, Any]) -> Row:
    """point_l1 with the corners of a word's box as its true points: by index on the given text, matched on its own."""
    located = np.repeat(np.asarray(target["word_located"], bool), 2).reshape(-1, 2)
    corners = np.asarray(target["word_boxes"], np.float64).reshape(-1, 2, 2)
    truth = {"points": corners, "points_valid": located, "size": target["size"], "tokens": traces.words_of(target)}
    given = point_l1.row(truth, {"points": prediction.get("points", ())})
    said = {"points": prediction.get("word_points", ()), "tokens": traces.words_of(prediction)}
    return {**given, "matched": point_l1.row(truth, said)["matched"]}


def _boxes_of_words(target: Mapping[str, Any], prediction: Mapping[str, Any]) -> Row:
    """LBM with words as segments: on the given text, the box around a word's points against its own."""
    height, width = target["size"]
    located = np.asarray(target["word_located"], bool)[:, None]
    boxes = np.where(located, np.reshape(target["word_boxes"], (-1, 4)), [0.0, 0.0, width, height])
    points = np.asarray(prediction.get("points", ()), np.float64)
    found = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1) if points.size else ()
    return local_matching.row({"boxes": boxes, "size": target["size"]}, {"boxes": found})


def _trace_figures(rows: Sequence[Row]) -> dict[str, float]:
    found = traces.summary(rows)
    for prefix, metric in (("l1_", point_l1), ("box_", local_matching)):
        if parts := [part for row in rows if (part := _part(row, prefix))]:
            found |= metric.summary(parts)
    return found


def _trace_ratios(rows: Sequence[Row]) -> Figures:
    bearing = _sum(rows, "bearing")
    parts = {
        "point_distance": (_sum(rows, "distance"), _count(rows, "distance")),
        "inside_box": (_sum(rows, "inside"), _count(rows, "inside")),
        "point_distance_free": (_sum(rows, "distance_free"), _count(rows, "distance_free")),
        "inside_box_free": (_sum(rows, "inside_free"), bearing),
        "matched_words": (_count(rows, "distance_free"), bearing),
    }
    if "l1_published" not in rows[0]:
        return bootstrap.of_ratios(parts)
    unpadded, matched = _count(rows, "l1_unpadded"), _count(rows, "l1_matched")
    parts |= {
        "point_l1": (_sum(rows, "l1_published"), np.ones(len(rows))),
        "point_l1_unpadded": _mean_of_those(_sum(rows, "l1_unpadded"), unpadded),
        "point_l1_matched": _mean_of_those(_sum(rows, "l1_matched"), matched),
        "point_l1_matched_share": (matched, unpadded),
    }
    ratios, boxes = bootstrap.of_ratios(parts), _local([_part(row, "box_") for row in rows])
    return lambda weights: {**ratios(weights), **boxes(weights)}


SCORERS: Mapping[str, Scorer] = {
    "referring": Scorer(
        _referring_rows,
        _referring_figures,
        _referring,
        _box_or_mask_iou,
        "IoU",
        parts=_referring_parts,
        left_out=_referring_left_out,
    ),
    "captions": Scorer(_caption_rows, captioning.summary, _captions, lambda row: meteor.score(row["meteor"]), "METEOR"),
    "narratives": Scorer(
        _narrative_rows, _narrative_figures, _narratives, lambda row: meteor.score(row["text_meteor"]), "METEOR"
    ),
    "answers": Scorer(
        _each(answers.row), answers.summary, _answers, lambda row: _mean(row, "VQA_style"), "agreement with the answers"
    ),
    "dense_captions": Scorer(
        _each(dense_captioning.row),
        dense_captioning.summary,
        _dense,
        _regions_found,
        "share of regions found",
        conventions=dense_captioning.CONVENTIONS,
    ),
    "detection": Scorer(_each(detection.row), detection.summary, _detection, _targets_found, "share of targets found"),
    "grounded_conversation": Scorer(
        _conversations,
        _conversation_figures,
        _grounded,
        lambda row: _mean(row, "miou"),
        "mIoU",
        left_out=_conversation_left_out,
    ),
    "traces": Scorer(_traces, _trace_figures, _trace_ratios, lambda row: -_mean(row, "distance"), "distance of points"),
}
