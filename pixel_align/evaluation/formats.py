"""Files of predictions and targets, of any system -> cases that a metric can score.

A case is one target with what was predicted for it. Nothing is dropped silently: a target without a prediction stays a
case with the metric's empty prediction, which counts as wrong, and is named as missing; of several predictions for one
target the first counts and the others are named as duplicates; predictions for no target are named as unknown. A broken
file or record is refused: see `json_files`. One thing is read otherwise than it stands: a negative side of a region in
Visual Genome's own file is read as 0, so that the region is a box without extent.

Sources: COCO's API for `coco_*`; the PixelLLM and GLaMM releases for theirs, as far as their files are described there.
Where the release does not hold the code that writes a file, its fields are inferred; `READERS` says of which.
"""

import collections
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixel_align.evaluation import json_files, masks
from pixel_align.evaluation.json_files import Record


@dataclasses.dataclass(frozen=True)
class Case:
    """One target and its prediction, both as the metric's module says."""

    id: str
    image_id: str
    target: Mapping[str, Any]
    prediction: Mapping[str, Any]
    file: str = ""  # of the picture as published, "" where it is not told


@dataclasses.dataclass(frozen=True)
class Cases:
    """What two files give.

    Attributes:
      cases: in the order of the targets.
      missing: ids of targets without a prediction.
      duplicate: ids of predictions after the first for one target, each as often as it came.
      unknown: ids of predictions for no target, each as often as it came.
    """

    cases: list[Case]
    missing: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def only_predicted(self) -> "Cases":
        """Without the targets that have no prediction, as several published evaluators score."""
        without = set(self.missing)
        kept = [case for case in self.cases if case.id not in without]
        return dataclasses.replace(self, cases=kept)


def pixel_llm(predictions: Path, targets: Path) -> Cases:
    """Referring expressions as PixelLLM's evaluator writes and reads them.

    Predictions: [{id, image_id, bbox xywh, refexp, segmentation run lengths, optional}], id that of the expression. A
    model says that nothing is there by `no_target` true, or by a `bbox` of null where it gives no mask.
    Targets: COCO json; of an annotation `refexp_id`, a number or a list, else `id`, names its expressions, and their
    words are `refexp` (a text or a list), `raw`, or the `caption` of its picture. Expressions that name nothing, as
    gRefCOCO has them, have `no_target` true, and neither `bbox` nor `segmentation`; several things named at once have
    one `segmentation`, and no `bbox`.
    """
    content = _coco(targets, "targets")
    pictures = _pictures(content, targets)
    truths: dict[str, _Truth] = {}
    for record in json_files.records(content["annotations"], _where(targets, "annotations")):
        picture = pictures.get(image := record.identity("image_id"))
        if picture is None:
            record.refuse("image_id", f"one of the {len(pictures)} images of the file")
        key = record.first("refexp_id", "id")
        many = isinstance(record.fields.get(key), list)
        ids = [Record({key: one}, record.where).identity(key) for one in record.fields[key]] if many else []
        words = _expressions(record, picture, len(ids or [0]))
        size = picture.size()
        target: dict[str, Any] = {"mask": _mask(record, "segmentation", size)}
        if _flag(record, "no_target"):
            for part in ("bbox", "segmentation"):
                if record.fields.get(part) not in (None, []):
                    record.refuse(part, "none with no_target")
            target["no_target"] = True
        elif "bbox" in record or target["mask"] is None:
            target["box"] = record.box("bbox")
        if isinstance(record.fields.get("split"), str):
            target["split"] = record.fields["split"]
        for one, text in zip(ids or [record.identity(key)], words, strict=True):
            if one in truths:
                record.refuse(key, f"ids that no other annotation has; {one} came before")
            truths[one] = _Truth(image, {**target, "text": text}, _file(picture))

    def predicted() -> Iterator[tuple[str, dict[str, Any]]]:
        for record in json_files.records(json_files.load(predictions, "predictions"), _where(predictions)):
            key = record.identity(record.first("id", "refexp_id"))
            if "image_id" in record and key in truths and record.identity("image_id") != truths[key].image:
                record.refuse("image_id", f"{truths[key].image}, the picture of expression {key}")
            found: dict[str, Any] = {}
            if "bbox" in record.fields:
                found["box"] = record.box("bbox") if "bbox" in record else None
            if "segmentation" in record:
                found["mask"] = _mask(record, "segmentation", None)
            if "no_target" in record:
                found["no_target"] = _flag(record, "no_target")
            yield key, found

    return _pair(truths, predicted(), {})


def coco_captions(predictions: Path, targets: Path) -> Cases:
    """COCO caption results, [{image_id, caption}], against captions_*.json: a case for each picture, all references."""
    content = _coco(targets, "targets")
    files = {key: _file(record) for key, record in _pictures(content, targets).items()}
    references: dict[str, list[str]] = {}
    for record in json_files.records(content["annotations"], _where(targets, "annotations")):
        references.setdefault(record.identity("image_id"), []).append(record.text("caption"))
    truths = {image: _Truth(image, {"captions": texts}, files.get(image, "")) for image, texts in references.items()}
    return _pair(truths, _texts(predictions, ("image_id",)), {"text": ""})


def region_captions(predictions: Path, targets: Path) -> Cases:
    """One sentence for each given region: [{id, caption}] against COCO json with one `caption` for each annotation, or
    Visual Genome's region_descriptions.json. The id is that of the annotation or region. Inferred.
    """
    truths: dict[str, _Truth] = {}
    for image, record, box, text, file in _regions(targets):
        key = record.identity(record.first("id", "region_id"))
        if key in truths:
            record.refuse(record.first("id", "region_id"), "an id that no other region has")
        truths[key] = _Truth(image, {"captions": [text], "box": box}, file)
    return _pair(truths, _texts(predictions, ("id", "region_id")), {"text": ""})


def dense_captions(predictions: Path, targets: Path) -> Cases:
    """Dense captions, one case for each picture, in GRiT's spelling of COCO json or Visual Genome's own.

    Predictions: [{image_id, bbox xywh, score, caption}]; `phrase` and `object_description` are read as `caption`.
    Targets: COCO json with a `caption` for each annotation, or region_descriptions.json. Inferred: neither release says
    what its evaluator reads.
    """
    truths: dict[str, _Truth] = {}
    for image, _, box, text, file in _regions(targets):
        truth = truths.setdefault(image, _Truth(image, {"boxes": [], "captions": []}, file))
        truth.target["boxes"].append(box)
        truth.target["captions"].append(text)
    found: dict[str, dict[str, list[Any]]] = {}
    unknown = []
    for record in json_files.records(json_files.load(predictions, "predictions"), _where(predictions)):
        image = record.identity("image_id")
        if image not in truths:
            unknown.append(image)
            continue
        box, score = record.box("bbox"), record.number("score")
        text = record.text(record.first("caption", "phrase", "object_description"))
        one = found.setdefault(image, {"boxes": [], "scores": [], "captions": []})
        one["boxes"].append(box)
        one["scores"].append(score)
        one["captions"].append(text)

    def arrays(parts: Mapping[str, list[Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {**parts, "boxes": np.reshape(parts["boxes"], (-1, 4))}
        return {**result, "scores": np.array(parts["scores"], np.float64)} if "scores" in parts else result

    empty: dict[str, list[Any]] = {"boxes": [], "scores": [], "captions": []}
    cases = [
        Case(image, image, arrays(truth.target), arrays(found.get(image, empty)), truth.file)
        for image, truth in truths.items()
    ]
    return Cases(cases, tuple(image for image in truths if image not in found), (), tuple(unknown))


def coco_detection(predictions: Path, targets: Path) -> Cases:
    """COCO detection results, [{image_id, category_id, bbox xywh, score, segmentation}], against instances_*.json: one
    case for each picture. Masks are scored where the first prediction has one, else boxes.
    """
    content = _coco(targets, "targets")
    pictures = _pictures(content, targets)
    listed = list(json_files.records(json_files.load(predictions, "predictions"), _where(predictions)))
    by_mask = bool(listed) and "segmentation" in listed[0]
    key = "masks" if by_mask else "boxes"
    categories = json_files.records(content.get("categories", []), _where(targets, "categories"))
    names = {int(record.number("id")): record.text("name") for record in categories}
    truths = {
        image: _Truth(image, {key: [], "categories": [], "captions": [], "crowd": [], "areas": []}, _file(record))
        for image, record in pictures.items()
    }
    for record in json_files.records(content["annotations"], _where(targets, "annotations")):
        image = record.identity("image_id")
        if image not in truths:
            record.refuse("image_id", f"one of the {len(truths)} images of the file")
        target = truths[image].target
        if by_mask:
            target[key].append(_mask(record, "segmentation", pictures[image].size()))
        else:
            target[key].append(record.box("bbox"))
        box = record.box("bbox")
        target["areas"].append(record.number("area") if "area" in record else float((box[2:] - box[:2]).prod()))
        target["categories"].append(category := int(record.number("category_id")))
        target["captions"].append(names.get(category, str(category)))
        target["crowd"].append(bool(record.fields.get("iscrowd", 0)))
    found: dict[str, dict[str, list[Any]]] = {}
    unknown = []
    for record in listed:
        image = record.identity("image_id")
        if image not in truths:
            unknown.append(image)
            continue
        one = found.setdefault(image, {key: [], "categories": [], "captions": [], "scores": []})
        one[key].append(_mask(record, "segmentation", pictures[image].size()) if by_mask else record.box("bbox"))
        one["categories"].append(category := int(record.number("category_id")))
        one["captions"].append(names.get(category, str(category)))
        one["scores"].append(record.number("score"))
    cases = [Case(image, image, truth.target, found.get(image, {}), truth.file) for image, truth in truths.items()]
    return Cases(cases, tuple(image for image in truths if image not in found), (), tuple(unknown))


def glamm(predictions: Path, targets: Path) -> Cases:
    """Grounded conversation in GLaMM's files, one case for each picture.

    Predictions: a list or a folder of {image_id, caption, phrases, pred_masks run lengths}. Targets: COCO json, or a
    folder of them: annotations with a `segmentation` are masks, the others sentences (`caption`, and `labels`, the
    phrases of the masks in order, where they are there). Mask recall is scored where predictions have `similarity`, a
    table of the likeness of each of the target's phrases to each predicted one. Inferred.
    """
    truths: dict[str, _Truth] = {}
    for path in _json_files(targets, "targets"):
        content = _coco(path, "targets")
        pictures = _pictures(content, path)
        for record in json_files.records(content["annotations"], _where(path, "annotations")):
            image = record.identity("image_id")
            picture = pictures.get(image)
            file = _file(picture) if picture is not None else ""
            empty: dict[str, Any] = {"captions": [], "phrases": [], "masks": []}
            truth = truths.setdefault(image, _Truth(image, empty, file))
            if "segmentation" in record:
                mask = _mask(record, "segmentation", picture.size() if picture is not None else None)
                truth.target["masks"].append(mask)
            else:
                truth.target["captions"].append(record.text("caption"))
                if "labels" in record:
                    truth.target["phrases"].extend(record.texts("labels"))

    def predicted() -> Iterator[tuple[str, dict[str, Any]]]:
        for path in _json_files(predictions, "predictions"):
            content = json_files.load(path, "predictions")
            many = content if isinstance(content, list) else [content]
            for record in json_files.records(many, _where(path)):
                where = f"pred_masks of {record.where}"
                given = record.fields.get("pred_masks", [])
                if not isinstance(given, list):
                    record.refuse("pred_masks", "a list of masks")
                found = [_mask(Record({"mask": mask}, where), "mask", None) for mask in given]
                phrases = record.texts("phrases") if "phrases" in record else []
                image = Path(record.identity("image_id")).stem
                text = record.text("caption")
                answer: dict[str, Any] = {"text": text, "phrases": phrases, "masks": found}
                if "similarity" in record:
                    answer["similarity"] = record.array("similarity", len(phrases))
                yield image, answer

    return _pair(truths, predicted(), {"text": "", "phrases": [], "masks": []})


def narratives(predictions: Path, targets: Path) -> Cases:
    """Localized Narratives' own JSON lines on both sides: texts, and the box of the trace during each utterance.

    A prediction is for the target of the same image_id and annotator_id; where several have both, for the one of the
    same turn. An utterance without a trace has the box of the whole picture, which is not scored. Inferred: no release
    says how its narratives are written.
    """
    truths: dict[str, _Truth] = {}
    for key, image, text, utterances, boxes in _narratives(targets, "targets"):
        parts = {"captions": [text], "boxes": boxes, "utterances": utterances, "size": (1, 1)}
        truths[key] = _Truth(image, parts, f"{image}.jpg")
    predicted = (
        (key, {"text": text, "boxes": boxes, "captions": utterances})
        for key, _, text, utterances, boxes in _narratives(predictions, "predictions")
    )
    return _pair(truths, predicted, {"text": "", "boxes": np.zeros((0, 4)), "captions": []})


def traces(predictions: Path, targets: Path) -> Cases:
    """Our own JSON lines: what `evaluate` writes as predictions.jsonl and targets.jsonl.

    Predictions: {id, read: words of the target's text, text, words}; a word is {word, points [P, 2], ...}.
    Targets: {id, image_id, text, word_spans, word_boxes, word_located, object_boxes, object_names, size}, as in
    `evaluation.traces`, in pixels.
    """
    truths: dict[str, _Truth] = {}
    for record in json_files.load_lines(targets, "targets"):
        text = record.text("text")
        spans = _spans(record, "word_spans", text)
        height, width = record.array("size").tolist() if len(record.array("size")) == 2 else (0, 0)
        if height < 1 or width < 1:
            record.refuse("size", "[height, width] in pixels")
        target = {
            "text": text,
            "word_spans": spans,
            "word_boxes": record.array("word_boxes", 4),
            "word_located": record.array("word_located").astype(bool),
            "object_boxes": record.array("object_boxes", 4),
            "object_names": record.texts("object_names"),
            "size": (int(height), int(width)),
        }
        if not len(spans) == len(target["word_boxes"]) == len(target["word_located"]):
            record.refuse("word_boxes", f"as many as words, {len(spans)}")
        if len(target["object_boxes"]) != len(target["object_names"]):
            record.refuse("object_boxes", "as many as object_names")
        if (key := record.identity("id")) in truths:
            record.refuse("id", "an id that no other line has")
        truths[key] = _Truth(record.identity("image_id"), target, "")

    def predicted() -> Iterator[tuple[str, dict[str, Any]]]:
        for record in json_files.load_lines(predictions, "predictions"):
            text, words = record.text("text"), record.several("words")
            spans, at = [], 0
            for word in words:
                start = text.find(spelled := word.text("word"), at)
                if start < 0:
                    word.refuse("word", f"a word of {text[:60]!r}, in order")
                at = start + len(spelled)
                spans.append((start, at))
            key = record.identity("id")
            read = record.several("read")
            if key in truths and len(read) != len(truths[key].target["word_spans"]):
                record.refuse("read", f"one entry for each of the {len(truths[key].target['word_spans'])} words of it")
            found = {
                "text": text,
                "word_spans": np.array(spans, int).reshape(-1, 2),
                "word_points": _points(words),
                "points": _points(read),
            }
            yield key, found

    return _pair(truths, predicted(), {})


def our_regions(predictions: Path, targets: Path) -> Cases:
    """Our own JSON lines of the modes refer and segment: a case for each expression.

    Predictions: {id, region_id [K], regions: [{text, box xyxy, mask run lengths, optional}]}; a box of null, or
    `no_target` true in a region, says that nothing is there.
    Targets: {id, image_id, region_id [K], region_text [K], boxes [K, 4] xyxy, masks [K] of run lengths or null}; a box
    of null without a mask is that of an expression that names nothing.
    """
    truths: dict[str, _Truth] = {}
    for name, image, text, box, mask, _ in _our_targets(targets):
        nothing = {"no_target": True} if box is None and mask is None else {}
        truths[name] = _Truth(image, {"text": text, "box": box, "mask": mask, **nothing}, "")

    def predicted() -> Iterator[tuple[str, dict[str, Any]]]:
        for name, region in _our_predictions(predictions):
            found: dict[str, Any] = {"box": _box(region, "box")}
            if (mask := _mask(region, "mask", None)) is not None:
                found["mask"] = mask
            if "no_target" in region:
                found["no_target"] = _flag(region, "no_target")
            yield name, found

    return _pair(truths, predicted(), {})


def our_descriptions(predictions: Path, targets: Path) -> Cases:
    """Our own JSON lines of the mode describe, as `our_regions` has them: a case for each region."""
    truths: dict[str, _Truth] = {}
    for name, image, text, box, _, record in _our_targets(targets):
        if box is None:
            record.refuse("boxes", "a box for each region")
        truths[name] = _Truth(image, {"captions": [text], "box": box}, "")
    said = ((name, {"text": region.text("text")}) for name, region in _our_predictions(predictions))
    return _pair(truths, said, {"text": ""})


def our_answers(predictions: Path, targets: Path) -> Cases:
    """Our own JSON lines of the mode answer, as `our_regions` has them: a case for each question."""
    truths = {name: _Truth(image, {"answers": [text]}, "") for name, image, text, _, _, _ in _our_targets(targets)}
    said = ((name, {"text": region.text("text")}) for name, region in _our_predictions(predictions))
    return _pair(truths, said, {"text": ""})


def vqa(predictions: Path, targets: Path) -> Cases:
    """VQA's results, [{question_id, answer}], against its annotations: {annotations: [{question_id, image_id, answers:
    [{answer}]}]}, a case for each question.
    """
    content = json_files.load(targets, "targets")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f"targets {str(targets)!r} are no annotations of VQA, expected annotations. Check the file.")
    truths: dict[str, _Truth] = {}
    for record in json_files.records(content["annotations"], _where(targets, "annotations")):
        answers = [one.text("answer") for one in record.several("answers")]
        if not answers:
            record.refuse("answers", "one or more")
        if (key := record.identity("question_id")) in truths:
            record.refuse("question_id", "an id that no other question has")
        truths[key] = _Truth(record.identity("image_id"), {"answers": answers}, "")
    listed = json_files.records(json_files.load(predictions, "predictions"), _where(predictions))
    said = ((record.identity("question_id"), {"text": record.text("answer")}) for record in listed)
    return _pair(truths, said, {"text": ""})


def _our_targets(path: Path) -> Iterator[tuple[str, str, str, np.ndarray | None, masks.Rle | None, Record]]:
    """(region id, image id, text, box Float64[4], mask, its line) of each region."""
    known: set[str] = set()
    for record in json_files.load_lines(path, "targets"):
        names, texts = record.texts("region_id"), record.texts("region_text")
        boxes: list[Any] = record.fields.get("boxes", [])
        kept: list[Any] = record.fields.get("masks") or [None] * len(names)
        for key, values in (("region_text", texts), ("boxes", boxes), ("masks", kept)):
            if not isinstance(values, list) or len(values) != len(names):
                record.refuse(key, f"as many as regions, {len(names)}")
        image = record.identity("image_id")
        for name, text, box, mask in zip(names, texts, boxes, kept, strict=True):
            if name in known:
                record.refuse("region_id", f"ids that no other region has; {name} came before")
            known.add(name)
            own = Record({"box": box, "mask": mask}, f"region {name} of {record.where}")
            yield name, image, text, _box(own, "box"), _mask(own, "mask", None), record


def _our_predictions(path: Path) -> Iterator[tuple[str, Record]]:
    for record in json_files.load_lines(path, "predictions"):
        names, regions = record.texts("region_id"), record.several("regions")
        if len(names) != len(regions):
            record.refuse("regions", f"as many as region_id, {len(names)}")
        yield from zip(names, regions, strict=True)


class Reader(NamedTuple):
    """One format: how it is read, and which metrics score it (a key of `scoring.SCORERS`)."""

    read: Callable[[Path, Path], Cases]
    metrics: str
    told: str  # one line: what the two files are


READERS: Mapping[str, Reader] = {
    "pixel_llm": Reader(pixel_llm, "referring", "PixelLLM's referring predictions, COCO json with refexp_id"),
    "coco_captions": Reader(coco_captions, "captions", "COCO caption results, captions_*.json"),
    "coco_detection": Reader(coco_detection, "detection", "COCO detection results, instances_*.json"),
    "region_captions": Reader(region_captions, "captions", "[{id, caption}], regions with captions (inferred)"),
    "grit": Reader(dense_captions, "dense_captions", "[{image_id, bbox, score, caption}], regions (inferred)"),
    "glamm": Reader(glamm, "grounded_conversation", "GLaMM's predictions, COCO json of masks and captions (inferred)"),
    "localized_narratives": Reader(
        narratives, "narratives", "Localized Narratives' JSON lines on both sides (inferred)"
    ),
    "ours": Reader(traces, "traces", "predictions.jsonl and targets.jsonl of `pixel-align evaluate`, mode trace"),
    "our_regions": Reader(our_regions, "referring", "the same of the modes refer and segment"),
    "our_descriptions": Reader(our_descriptions, "captions", "the same of the mode describe"),
    "our_answers": Reader(our_answers, "answers", "the same of the mode answer"),
    "vqa": Reader(vqa, "answers", "VQA's results, its annotations"),
}


def reader(name: str) -> Reader:
    """The format of this name. Raises ValueError, which lists them all, where there is none."""
    if name not in READERS:
        close = difflib.get_close_matches(name, READERS, n=1)
        known = f"Did you mean {close[0]!r}?" if close else "Choose one of them."
        raise ValueError(f"format is {name!r}, expected one of {', '.join(READERS)}. {known}")
    return READERS[name]


class _Truth(NamedTuple):
    image: str
    target: dict[str, Any]
    file: str


def _pair(
    truths: Mapping[str, _Truth], predicted: Iterable[tuple[str, dict[str, Any]]], empty: Mapping[str, Any]
) -> Cases:
    """The first prediction of each id with its target, `empty` where there is none."""
    if not truths:
        raise ValueError("number of targets is 0, expected at least 1. Give the annotations of the evaluation set.")
    found: dict[str, dict[str, Any]] = {}
    duplicate, unknown = [], []
    for key, prediction in predicted:
        if key not in truths:
            unknown.append(key)
        elif key in found:
            duplicate.append(key)
        else:
            found[key] = prediction
    cases = [Case(key, truth.image, truth.target, found.get(key, empty), truth.file) for key, truth in truths.items()]
    return Cases(cases, tuple(key for key in truths if key not in found), tuple(duplicate), tuple(unknown))


def _texts(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in json_files.records(json_files.load(path, "predictions"), _where(path)):
        yield record.identity(record.first(*keys)), {"text": record.text("caption")}


def _narratives(path: Path, what: str) -> Iterator[tuple[str, str, str, list[str], np.ndarray]]:
    """(id, image id, text, utterances, boxes Float64[n, 4] xyxy in [0, 1]) of each line."""
    turns: collections.Counter[str] = collections.Counter()
    for record in json_files.load_lines(path, what):
        image = record.identity("image_id")
        name = f"{image}/{record.identity('annotator_id')}"
        turns[name] += 1
        strokes = record.fields.get("traces", [])
        if not isinstance(strokes, list):
            record.refuse("traces", "a list of strokes")
        points = [point for stroke in strokes for point in json_files.records(stroke, f"a stroke of {record.where}")]
        moves = np.array([[point.number(key) for key in ("x", "y", "t")] for point in points]).reshape(-1, 3)
        utterances = record.several("timed_caption")
        boxes = np.tile([0.0, 0.0, 1.0, 1.0], (len(utterances), 1))
        for k, utterance in enumerate(utterances):
            start, end = utterance.number("start_time"), utterance.number("end_time")
            during = moves[(moves[:, 2] >= start) & (moves[:, 2] <= end), :2]
            if len(during):
                boxes[k] = [*during.min(axis=0), *during.max(axis=0)]
        texts = [utterance.text("utterance") for utterance in utterances]
        yield f"{name}#{turns[name]}", image, record.text("caption"), texts, boxes


def _regions(path: Path) -> Iterator[tuple[str, Record, np.ndarray, str, str]]:
    """(image id, record, box, text, file) of each described region, from COCO json or Visual Genome's."""
    content = json_files.load(path, "targets")
    if isinstance(content, list):
        for picture in json_files.records(content, _where(path)):
            for region in picture.several("regions"):
                image = region.identity("image_id") if "image_id" in region else picture.identity("id")
                corner = [region.number(key) for key in ("x", "y")]
                sides = [region.number(key) for key in ("width", "height")]
                box = np.array([*corner, corner[0] + max(sides[0], 0), corner[1] + max(sides[1], 0)])
                yield image, region, box, region.text("phrase").strip(), f"{image}.jpg"
        return
    content = _coco(path, "targets")
    files = {key: _file(record) for key, record in _pictures(content, path).items()}
    for record in json_files.records(content["annotations"], _where(path, "annotations")):
        image = record.identity("image_id")
        yield image, record, record.box("bbox"), record.text(record.first("caption", "phrase")), files.get(image, "")


def _coco(path: Path, what: str) -> dict[str, Any]:
    content = json_files.load(path, what)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(
            f"{what} {str(path)!r} has no list of annotations, expected COCO json: images, annotations. Check that it "
            "is not the predictions."
        )
    return content


def _pictures(content: Mapping[str, Any], path: Path) -> dict[str, Record]:
    images = json_files.records(content.get("images", []), _where(path, "images"))
    return {record.identity("id"): record for record in images}


def _file(picture: Record) -> str:
    name = picture.fields.get("file_name", "")
    return name if isinstance(name, str) and len(name) < 1_000 else ""


def _expressions(record: Record, picture: Record, count: int) -> list[str]:
    for source, key in ((record, "refexp"), (record, "raw"), (picture, "caption")):
        if key in source:
            if isinstance(source.fields[key], str):
                return [source.text(key)] * count
            texts = source.texts(key)
            if len(texts) != count:
                source.refuse(key, f"as many texts as ids, {count}")
            return texts
    return [""] * count


def _mask(record: Record, key: str, size: tuple[int, int] | None) -> masks.Rle | None:
    if key not in record or record.fields[key] == []:
        return None
    return masks.as_rle(record.fields[key], f"{key} in {record.where}", size)


def _box(record: Record, key: str) -> np.ndarray | None:
    """x0, y0, x1, y1 as Float64[4]; None of null."""
    if record.fields.get(key, ()) is None:
        return None
    box = record.array(key)
    if box.shape != (4,):
        record.refuse(key, "x0, y0, x1, y1")
    return box


def _flag(record: Record, key: str) -> bool:
    """True or false, or 1 or 0; false where it is missing."""
    value = record.fields.get(key, False)
    if value not in (0, 1, None):
        record.refuse(key, "true or false")
    return bool(value)


def _points(words: list[Record]) -> np.ndarray:
    """Float64[W, P, 2]; words of one text have equally many points."""
    arrays = [word.array("points", 2) for word in words]
    if len({array.shape for array in arrays}) > 1:
        words[0].refuse("points", "equally many for each word of a text")
    return np.stack(arrays) if arrays else np.zeros((0, 1, 2))


def _spans(record: Record, key: str, text: str) -> np.ndarray:
    spans = record.array(key, 2).astype(int)
    if len(spans) and (spans.min() < 0 or spans.max() > len(text) or (spans[:, 0] >= spans[:, 1]).any()):
        record.refuse(key, "[start, end) in characters of the text")
    return spans


def _json_files(path: Path, what: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.json"))
    if not found:
        raise FileNotFoundError(f"{what} folder {str(path)!r} holds no .json file, expected some. Check the name.")
    return found


def _where(path: Path, what: str = "") -> str:
    return f"{what} of {path.name!r}" if what else repr(path.name)
