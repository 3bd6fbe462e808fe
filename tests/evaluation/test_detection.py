"""Average precision against pycocotools run on COCO's files, by boxes and by masks."""

import contextlib
import copy
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixel_align.evaluation import detection

Picture = tuple[dict[str, Any], dict[str, Any]]


def world(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO file and results: three categories, crowds, small and large things, equal scores, empty pictures."""
    random = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 7))):
            x, y, w, h = (float(v) for v in random.integers([0, 0, 4, 4], [60, 60, 100, 160]))
            category, crowd = int(random.integers(1, 4)), int(random.random() < 0.15)
            common = {"image_id": image, "category_id": category, "id": len(truth) + 1, "iscrowd": crowd}
            truth.append({**common, "bbox": [x, y, w, h], "area": w * h * 0.8, "segmentation": polygon(x, y, w, h)})
            for _ in range(int(random.integers(0, 3))):
                box = [v + float(d) for v, d in zip((x, y, w, h), random.integers(-4, 5, 4), strict=True)]
                box[2:] = [max(side, 1.0) for side in box[2:]]
                score = round(float(random.random()), 1)
                found.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    pictures = [{"id": i, "height": 230, "width": 170} for i in range(1, images + 1)]
    categories = [{"id": i, "name": str(i)} for i in range(1, 5)]
    return {"images": pictures, "categories": categories, "annotations": truth}, found


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h * 0.7, x, y + h]]


def masked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**{k: v for k, v in f.items() if k != "bbox"}, "segmentation": polygon(*f["bbox"])} for f in found]


def theirs(dataset: dict[str, Any], found: list[dict[str, Any]], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        results = copy.deepcopy(found)
        if kind == "segm":
            for result in results:
                result["segmentation"] = truth.annToRLE(result)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) if value >= 0 else math.nan for value in evaluation.stats]


def ours(dataset: dict[str, Any], found: list[dict[str, Any]], kind: str) -> list[Picture]:
    from pixel_align.evaluation import masks

    result = []
    for image in sorted(dataset["images"], key=lambda image: image["id"]):
        size = image["height"], image["width"]
        sides: list[dict[str, Any]] = []
        for annotations in (dataset["annotations"], found):
            own = [a for a in annotations if a["image_id"] == image["id"]]
            side: dict[str, Any] = {"categories": np.array([a["category_id"] for a in own], int)}
            if kind == "segm":
                side["masks"] = [masks.as_rle(a["segmentation"], "mask", size) for a in own]
            else:
                side["boxes"] = [[a["bbox"][0], a["bbox"][1], *np.add(a["bbox"][:2], a["bbox"][2:])] for a in own]
            sides.append(side)
            if annotations is found:
                side["scores"] = np.array([a["score"] for a in own], float)
            else:
                side["areas"] = np.array([a["area"] for a in own], float)
                side["crowd"] = np.array([a.get("iscrowd", 0) for a in own], bool)
        result.append((sides[0], sides[1]))
    return result


def score(pictures: list[Picture]) -> dict[str, float]:
    return detection.summary([detection.row(*picture) for picture in pictures])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_figures_are_those_of_pycocotools(kind: str, seed: int) -> None:
    dataset, found = world(seed)
    found = masked(found) if kind == "segm" else found
    figures = score(ours(dataset, found, kind))
    expected = theirs(dataset, found, kind)
    assert list(figures.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0.05 < figures["AP"] < figures["AP50"] < 1 and figures["AP_small"] > 0 and figures["AP_large"] >= 0


def test_a_hundred_predictions_of_a_picture_and_category_count() -> None:
    """What is right comes last: the hundredth prediction still counts, the next one does not."""
    box, elsewhere = [0.0, 0.0, 50.0, 50.0], [100.0, 100.0, 5.0, 5.0]
    truth = {"image_id": 1, "category_id": 1, "id": 1, "iscrowd": 0, "bbox": box, "area": 2500.0}
    dataset = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}],
        "annotations": [truth, {**truth, "id": 2, "category_id": 2}],
    }
    for before, found_of in ((99, [0.01, 0.01]), (100, [0.0, 0.01])):
        found = [
            {"image_id": 1, "category_id": category, "bbox": place, "score": score}
            for category, wrong in ((1, before), (2, 99))
            for place, score in [(box, 0.1), *[(elsewhere, 0.9)] * wrong]
        ]
        figures = score(ours(dataset, found, "bbox"))
        assert list(figures.values()) == pytest.approx(theirs(dataset, found, "bbox"), abs=1e-12, nan_ok=True)
        assert figures["AP50"] == pytest.approx(sum(found_of) / 2)


def test_published_results_of_the_coco_api(samples: Path) -> None:
    """COCO's own example detections against the sample's instances, by pycocotools' figures."""
    dataset = json.loads((samples / "coco/annotations/instances_val2017.json").read_text())
    known = {image["id"] for image in dataset["images"]}
    results = json.loads((samples / "eval/instances_val2014_fakebbox100_results.json").read_text())
    found = [r for r in results if r["image_id"] in known]
    random = np.random.default_rng(0)
    for annotation in dataset["annotations"][::2]:
        jitter = np.maximum(np.array(annotation["bbox"]) * random.uniform(0.85, 1.1, 4), 0.5).tolist()
        common = {key: annotation[key] for key in ("image_id", "category_id")}
        found.append({**common, "bbox": jitter, "score": float(random.random())})
    expected = theirs(dataset, found, "bbox")
    assert list(score(ours(dataset, found, "bbox")).values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_order_of_pictures_and_copies_of_them() -> None:
    dataset, found = world(3)
    for index, result in enumerate(found):
        result["score"] = 1 - index / len(found)  # no two are equal
    rows = [detection.row(*picture) for picture in ours(dataset, found, "bbox")]
    figures = detection.summary(rows)
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert detection.summary(mixed) == pytest.approx(figures, abs=1e-12, nan_ok=True)
    assert detection.summary(rows * 2)["AP50"] == pytest.approx(figures["AP50"], abs=0.02)


def test_nothing_predicted_and_nothing_to_predict() -> None:
    target = {"boxes": [[0, 0, 50, 50]]}
    assert score([(target, {})])["AP"] == 0.0
    assert score([(target, {"boxes": [[0, 0, 50, 50]]})])["AP"] == pytest.approx(1.0)
    assert math.isnan(score([(target, {})])["AP_large"])
    nowhere: dict[str, Any] = {"boxes": []}
    assert all(math.isnan(value) for value in score([(nowhere, {"boxes": [[0, 0, 5, 5]]})]).values())
    assert math.isnan(score([])["AP"])


@pytest.mark.parametrize(
    ("target", "prediction", "said"),
    [
        ({"boxes": [[0, 0, math.nan, 5]]}, {}, "box 0 of target boxes"),
        ({"boxes": [[0, 0, 5, 5]]}, {"boxes": [[5, 0, 1, 5]]}, "box 0 of predicted boxes"),
        ({"boxes": [[0, 0, 5, 5]]}, {"boxes": [[0, 0, 5, 5]], "scores": [math.inf]}, "a score is inf"),
        ({"boxes": [[0, 0, 5, 5]]}, {"boxes": [[0, 0, 5, 5]], "scores": []}, "shape of scores is (0,), expected (1,)"),
        ({"masks": [np.ones((2, 3), bool)]}, {"masks": [np.ones((3, 2), bool)]}, "sizes of the masks"),
    ],
)
def test_what_is_no_detection_is_refused(target: Any, prediction: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        detection.row(target, prediction)
