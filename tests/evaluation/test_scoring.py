"""Intervals of each metric are those of its own summary; figures are those of the metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import (
    bootstrap,
    dense_captioning,
    formats,
    meteor,
    report,
    scoring,
    weighted_precision,
)
from pixel_align.evaluation.formats import Case, Cases

Make = Callable[[np.random.Generator, int], Case]


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)


def mask(rng: np.random.Generator) -> np.ndarray:
    found = np.zeros((12, 16), bool)
    y, x = rng.integers(0, 6, 2)
    found[y : y + 6, x : x + 8] = True
    return found


def expression(rng: np.random.Generator, k: int) -> Case:
    nothing = k % 5 == 0
    box = boxes(rng, 1)[0]
    target = {"text": "a cat", "mask": mask(rng)} | ({"no_target": True, "mask": None} if nothing else {"box": box})
    said = {} if k % 7 == 0 else {"box": box + rng.uniform(0, 15), "mask": mask(rng)}
    if k % 4 == 0:
        said = {"no_target": True}
    return Case(str(k), str(k // 2), target, said)


def regions(rng: np.random.Generator, k: int) -> Case:
    true = boxes(rng, int(rng.integers(0, 6)))
    found = np.concatenate([true + rng.uniform(-4, 4, true.shape[:1])[:, None], boxes(rng, 3)])[: 8 * (k % 4 != 0)]
    captions = [str(rng.choice(["a cat", "a dog", "the red car"])) for _ in range(20)]
    # All different: the order of equal ones is the order of pictures, which a set drawn with repeats changes.
    scores = rng.random(len(found))
    prediction = {"boxes": found, "scores": scores, "captions": captions[: len(found)]}
    return Case(str(k), str(k), {"boxes": true, "captions": captions[: len(true)]}, prediction)


def objects(rng: np.random.Generator, k: int) -> Case:
    one = regions(rng, k)
    target = {"boxes": one.target["boxes"], "categories": rng.integers(1, 4, len(one.target["boxes"]))}
    target["crowd"] = rng.random(len(target["boxes"])) < 0.2
    said = {key: one.prediction[key] for key in ("boxes", "scores")}
    return Case(str(k), str(k), target, {**said, "categories": rng.integers(1, 4, len(said["boxes"]))})


def conversation(rng: np.random.Generator, k: int) -> Case:
    masks, said = ([mask(rng) for _ in range(count)] for count in rng.integers(0, 4, 2))
    likeness = rng.uniform(0, 1, (len(masks), len(said)))
    prediction = {"masks": said, "phrases": ["x"] * len(said), "similarity": likeness}
    one = caption(rng, k)
    target = {"masks": masks, "phrases": ["x"] * len(masks), "captions": one.target["captions"] * (k % 6 != 0)}
    return Case(str(k), str(k), target, {**prediction, **one.prediction})


def trace(rng: np.random.Generator, k: int) -> Case:
    spans = np.array([[0, 1], [2, 5], [6, 8], [9, 13]])
    target = {
        "text": "a cat on snow", "word_spans": spans, "word_boxes": boxes(rng, 4), "word_located": rng.random(4) < 0.7,
        "object_boxes": np.zeros((0, 4)), "object_names": [], "size": (100, 100),
    }  # fmt: skip
    points = rng.uniform(0, 100, (4, 2, 2))
    said = {"points": points, "text": "a cat", "word_spans": spans[:2], "word_points": points[:2]}
    return Case(str(k), str(k // 2), target, said)


TEXTS = ("a cat on the mat", "two dogs run", "the red car is parked", "a man rides a red horse", "dogs and cats")


def caption(rng: np.random.Generator, k: int) -> Case:
    references = rng.choice(TEXTS, int(rng.integers(1, 4))).tolist()
    return Case(str(k), str(k // 2), {"captions": references}, {"text": str(rng.choice((*TEXTS, "")))})


def narrative(rng: np.random.Generator, k: int) -> Case:
    one, found = caption(rng, k), boxes(rng, 3) / 100
    target = {**one.target, "boxes": boxes(rng, 1 + k % 4) / 100, "size": (1, 1)}
    target["boxes"][: k % 2] = [0, 0, 1, 1]  # no place: which windows meet it differs
    return Case(one.id, one.image_id, target, {**one.prediction, "boxes": found})


def question(rng: np.random.Generator, k: int) -> Case:
    answers = rng.choice(["two", "2", "no"], 1 + k % 5).tolist()
    return Case(str(k), str(k // 3), {"answers": answers}, {"text": ("two", "no", "")[k % 3]})


def words(references: list[str], said: str) -> float:
    return 1.0 if said in references else 0.12


def letters(references: list[str], said: str) -> np.ndarray:
    """Counts in METEOR's order, of a measure that needs no tables: words that some reference has."""
    best = max(references, key=lambda text: len(set(text.split()) & set(said.split())))
    both = len(set(best.split()) & set(said.split()))
    counts = np.zeros(23, np.int32)
    counts[:2] = len(said.split()), len(best.split())
    counts[[4, 5, 20, 21, 22]] = both, both, min(both, 1), both, both
    return counts


MAKERS: dict[str, Make] = {
    "referring": expression,
    "captions": caption,
    "answers": question,
    "narratives": narrative,
    "dense_captions": regions,
    "detection": objects,
    "grounded_conversation": conversation,
    "traces": trace,
}


@pytest.fixture(autouse=True)
def quick_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_captioning, "meteor_score", words, raising=False)
    monkeypatch.setattr(meteor, "statistics", letters)


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_resampled_figures_are_those_of_the_resampled_rows(metrics: str) -> None:
    rng = np.random.default_rng(0)
    cases = [MAKERS[metrics](rng, k) for k in range(24)]
    scorer = scoring.SCORERS[metrics]
    rows = scorer.rows(cases)
    weights = np.stack([np.bincount(rng.integers(24, size=24), minlength=24) for _ in range(8)]).astype(float)
    weights[0] = 1
    fast = scorer.resampled(rows)(weights)
    slow = bootstrap.of_rows(rows, scorer.summary)(weights)
    assert fast and fast.keys() <= slow.keys()
    for name, values in fast.items():
        assert np.isfinite(values).any()
        if name.startswith("CIDEr"):
            # Its weights of words are those of the whole set in all sets.
            assert values[0] == pytest.approx(slow[name][0])
            continue
        if (metrics, name) == ("grounded_conversation", "AP50"):
            # All scores are equal: copies of a picture stand in another order.
            assert values[0] == pytest.approx(slow[name][0])
            np.testing.assert_allclose(values, slow[name], atol=0.05)
            continue
        np.testing.assert_allclose(values, slow[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_a_score_has_the_figures_of_the_metric_inside_its_intervals(metrics: str) -> None:
    rng = np.random.default_rng(1)
    cases = Cases([MAKERS[metrics](rng, k) for k in range(30)])
    found = scoring.score(cases, metrics, resamples=60)
    for name, (low, high) in found.intervals.items():
        assert low <= high and low - 0.1 <= found.figures[name] <= high + 0.1, name
    assert len(found.quality) == 30 and np.isfinite(found.quality).any()
    assert scoring.score(cases, metrics, resamples=60).intervals == found.intervals
    assert scoring.score(cases, metrics, resamples=0).intervals == {}


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_the_order_of_cases_does_not_matter(metrics: str) -> None:
    rng = np.random.default_rng(2)
    made = [MAKERS[metrics](rng, k) for k in range(12)]
    one, other = (scoring.score(Cases(cases), metrics, resamples=0) for cases in (made, made[::-1]))
    for name, value in one.figures.items():
        if (metrics, name) == ("grounded_conversation", "AP50"):
            continue  # published with all scores equal, so that the order of pictures decides
        assert other.figures[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name
    np.testing.assert_array_equal(one.quality, other.quality[::-1])


def test_a_recall_is_reached_where_its_quotient_of_floats_is() -> None:
    for recalls in (np.linspace(0, 1, 101), np.arange(100) / 100):
        for positives in (1, 7, 29, 58, 100, 333):
            hits = np.arange(positives + 1.0)
            twice = np.stack([hits, hits])
            first = weighted_precision._reached(twice, np.full((2, 1), float(positives)), recalls)
            np.testing.assert_array_equal(first, [np.searchsorted(hits / positives, recalls)] * 2)


def test_nothing_predicted_is_wrong_and_the_best_is_right() -> None:
    box = np.array([0.0, 0, 10, 10])
    right = Case("1", "1", {"text": "a", "box": box}, {"box": box})
    wrong = Case("2", "2", {"text": "a", "box": box}, {})
    assert scoring.score(Cases([right, wrong]), "referring").figures["P@0.5"] == 0.5
    assert scoring.score(Cases([right, wrong]), "referring").quality.tolist() == [1.0, 0.0]
    # What could not be measured is no figure.
    assert "cIoU" not in scoring.score(Cases([right]), "referring", resamples=0).figures


PICTURE = {"id": 7, "width": 20, "height": 10, "file_name": "7.jpg"}
RLE = {"size": [10, 20], "counts": [0, 40, 160]}
STROKE = {"image_id": "7", "annotator_id": 1, "caption": "a cat", "traces": [[{"x": 0.1, "y": 0.1, "t": 0.5}]],
          "timed_caption": [{"utterance": "a cat", "start_time": 0, "end_time": 1}]}  # fmt: skip
WORD = {"word": "cat", "points": [[1, 1], [5, 5]]}
TRACE = {"id": "t", "image_id": "7", "text": "cat", "word_spans": [[0, 3]], "word_boxes": [[1, 1, 5, 5]],
         "word_located": [True], "object_boxes": [], "object_names": [], "size": [10, 20]}  # fmt: skip
REGION = {"id": "r", "image_id": "7", "region_id": ["a"], "region_text": ["cat"], "boxes": [[1, 1, 5, 5]]}


def coco(**annotation: Any) -> dict[str, Any]:
    one = {"id": 1, "image_id": 7, "bbox": [1, 1, 4, 4], **annotation}
    return {"images": [PICTURE], "annotations": [one], "categories": [{"id": 3, "name": "cat"}]}


# format -> targets, a perfect prediction, a figure that is 1 then and 0 without any, the names of what it is for
FILES: dict[str, tuple[Any, dict[str, Any], str, tuple[str, ...]]] = {
    "pixel_llm": (coco(refexp="cat"), {"id": 1, "bbox": [1, 1, 4, 4]}, "P@0.95", ("id",)),
    "coco_captions": (coco(caption="a cat"), {"image_id": 7, "caption": "a cat"}, "ROUGE-L", ("image_id",)),
    "region_captions": (coco(caption="a cat"), {"id": 1, "caption": "a cat"}, "ROUGE-L", ("id",)),
    "coco_detection": (
        coco(category_id=3), {"image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 1}, "AP", ("image_id",)
    ),
    "grit": (
        coco(caption="a cat"), {"image_id": 7, "bbox": [1, 1, 4, 4], "score": 1, "caption": "a cat"}, "mAP",
        ("image_id",),
    ),
    "glamm": (
        coco(segmentation=RLE), {"image_id": 7, "caption": "a cat", "phrases": ["cat"], "pred_masks": [RLE]}, "mIoU",
        ("image_id",),
    ),
    "localized_narratives": ([STROKE], STROKE, "LBM_matched_share", ("image_id",)),
    "ours": ([TRACE], {"id": "t", "text": "cat", "words": [WORD], "read": [WORD]}, "inside_box", ("id",)),
    "our_regions": (
        [REGION], {"id": "r", "region_id": ["a"], "regions": [{"text": "cat", "box": [1, 1, 5, 5]}]}, "P@0.95",
        ("region_id",),
    ),
    "our_descriptions": (
        [REGION], {"id": "r", "region_id": ["a"], "regions": [{"text": "cat", "box": [1, 1, 5, 5]}]}, "ROUGE-L",
        ("region_id",),
    ),
    "our_answers": (
        [REGION], {"id": "r", "region_id": ["a"], "regions": [{"text": "Cat.", "box": [0, 0, 9, 9]}]}, "exact",
        ("region_id",),
    ),
    "vqa": (
        {"annotations": [{"question_id": 3, "image_id": 7, "answers": [{"answer": "2"}] * 4 + [{"answer": "two"}]}]},
        {"question_id": 3, "answer": "Two"}, "VQA_style", ("question_id",),
    ),
}  # fmt: skip


def scored(name: str, folder: Path, targets: Any, said: list[Any], **settings: Any) -> scoring.Score:
    for what, content in (("targets", targets), ("said", said)):
        lines = name.startswith(("our", "localized"))
        text = "".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content)
        (folder / what).write_text(text)
    reader = formats.reader(name)
    return scoring.score(reader.read(folder / "said", folder / "targets"), reader.metrics, resamples=20, **settings)


@pytest.mark.parametrize("name", list(formats.READERS))
def test_a_file_of_any_format_may_hold_nothing_that_fits(name: str, tmp_path: Path) -> None:
    targets, right, figure, keys = FILES[name]
    assert scored(name, tmp_path, targets, [right]).figures[figure] == pytest.approx(1)
    for said in ([], [right | {key: ["99"] if key == "region_id" else 99 for key in keys}]):
        found = scored(name, tmp_path, targets, said)
        assert found.figures[figure] == 0.0, said
        assert found.intervals[figure] == (0.0, 0.0) and len(found.cases.missing) == 1
        assert len(found.cases.unknown) == len(said)
        assert report.remarks(found) and json.dumps(report.document(found), allow_nan=False)


def test_a_system_without_masks_gets_no_figures_of_masks(tmp_path: Path) -> None:
    targets, right, *_ = FILES["pixel_llm"]
    targets = coco(refexp="cat", segmentation=RLE)
    found = scored("pixel_llm", tmp_path, targets, [right])
    assert found.figures["P@0.5"] == 1.0 and not {"cIoU", "gIoU", "mask_P@0.5", "Pr@0.7"} & {*found.figures}
    assert not {"cIoU", "gIoU"} & {*found.intervals}
    assert report.remarks(found) == ["figures of masks left out: no prediction has a mask"]
    assert report.document(found)["left_out"] == report.remarks(found)
    masked = scored("pixel_llm", tmp_path, targets, [{"id": 1, "segmentation": RLE}])
    assert masked.figures["cIoU"] == 1.0 and "P@0.5" not in masked.figures and "boxes" in masked.left_out[0]
    both = scored("pixel_llm", tmp_path, targets, [{**right, "segmentation": RLE}])
    assert both.figures["cIoU"] == both.figures["P@0.5"] == 1.0 and not both.left_out
    # Nothing at all is wrong in both.
    nothing = scored("pixel_llm", tmp_path, targets, [])
    assert nothing.figures["cIoU"] == nothing.figures["P@0.5"] == 0.0
    phrases = scored("glamm", tmp_path, FILES["glamm"][0], [FILES["glamm"][1]])
    assert phrases.left_out == ["mask_recall left out: no prediction has similarity, the likeness of phrases"]


def test_expressions_that_name_nothing_come_from_files(tmp_path: Path) -> None:
    """Two of each kind; of each kind one is taken for what it is."""
    targets = coco(refexp_id=[1, 2], refexp=["a cat", "the cat"])
    targets["annotations"].append({"image_id": 7, "refexp_id": [3, 4], "refexp": ["a", "b"], "no_target": True})
    there, away = [1, 1, 4, 4], [0, 0, 1, 1]
    said = [{"id": 1, "bbox": there}, {"id": 2, "bbox": None}, {"id": 3, "bbox": away, "no_target": True}]
    said.append({"id": 4, "bbox": away})
    found = scored("pixel_llm", tmp_path, targets, said)
    assert (found.figures["N-acc"], found.figures["T-acc"], found.figures["P@0.5"]) == (0.5, 0.5, 0.5)
    assert {"N-acc", "T-acc"} <= found.intervals.keys()
    ours = {**REGION, "region_id": ["a", "b", "c", "d"], "region_text": ["x"] * 4}
    told = {"id": "r", "region_id": ["a", "b", "c", "d"], "regions": [
        {"text": "x", "box": [1, 1, 5, 5]}, {"text": "x", "box": None}, {"text": "x", "box": None},
        {"text": "x", "box": [0, 0, 1, 1], "no_target": False}]}  # fmt: skip
    found = scored("our_regions", tmp_path, [{**ours, "boxes": [[1, 1, 5, 5]] * 2 + [None] * 2}], [told])
    assert (found.figures["N-acc"], found.figures["T-acc"], found.figures["P@0.5"]) == (0.5, 0.5, 0.5)


def test_parts_of_a_set_are_told_with_their_numbers(tmp_path: Path) -> None:
    targets = coco(refexp_id=[1, 2], refexp=["a cat", "the very large cat"], split="testA")
    targets["annotations"].append({"image_id": 7, "bbox": [1, 1, 4, 4], "refexp_id": 3, "refexp": "it", "split": "val"})
    found = scored("pixel_llm", tmp_path, targets, [{"id": 1, "bbox": [1, 1, 4, 4]}, {"id": 3, "bbox": [9, 1, 4, 4]}])
    told = report.document(found)
    assert {name: (part["cases"], part["P@0.5"]) for name, part in told["by_split"].items()} == {
        "testA": (2, 0.5), "val": (1, 0.0),
    }  # fmt: skip
    assert {name: (part["cases"], part["P@0.5"]) for name, part in told["by_length"].items()} == {
        "1-2": (2, 0.5), "3-5": (1, 0.0),
    }  # fmt: skip
    tables = report.part_tables(found)
    assert [table.row_count for table in tables] == [2, 2] and len(tables[0].columns) == 4
    alone = scored("pixel_llm", tmp_path, coco(refexp="cat"), [])
    assert list(alone.parts) == ["by_length"]


def test_conventions_have_names(tmp_path: Path) -> None:
    """Two boxes of 10 x 10 and 10 x 14.6 are merged with one pixel more along each side."""
    targets = coco(caption="a cat", bbox=[0, 0, 10, 10])
    targets["annotations"].append({**targets["annotations"][0], "bbox": [0, 0, 10, 14.6]})
    said = [{"image_id": 7, "bbox": [0, 0, 10, 11], "score": 1, "caption": "a cat"}]
    by = {
        name: scored("grit", tmp_path, targets, said, convention=name) for name in ("", "pixel_llm", "plus_one", "lua")
    }
    assert by[""].figures == by["pixel_llm"].figures and by[""].convention == "pixel_llm"
    assert by["lua"].figures["mAP_detection"] == by["plus_one"].figures["mAP_detection"] == 1.0
    assert by["pixel_llm"].figures["mAP_detection"] < 0.6 and report.document(by["lua"])["convention"] == "lua"
    for name, asked in (("grit", "Lua"), ("pixel_llm", "lua")):
        with pytest.raises(ValueError, match=f"convention is '{asked}', expected "):
            scored(name, tmp_path, FILES[name][0], [], convention=asked)


def test_our_traces_have_the_published_figures_too(tmp_path: Path) -> None:
    """A word of a box of 4 x 4 whose points are 2 pixels too far to the right, of 20 x 10."""
    right = FILES["ours"][1]
    perfect = scored("ours", tmp_path, [TRACE], [right]).figures
    assert perfect["point_l1"] == perfect["point_l1_matched"] == perfect["LBM_k0"] == 0.0
    moved = {**right, "read": [{"word": "cat", "points": [[3, 1], [7, 5]]}]}
    figures = scored("ours", tmp_path, [TRACE], [moved]).figures
    assert figures["point_l1_unpadded"] == pytest.approx(2 / 20 / 2) and figures["point_l1_matched"] == 0.0
    assert figures["LBM_k0"] == figures["LBM_index"] == pytest.approx(2 / 20 / 2)
    assert figures["point_l1_matched_share"] == figures["LBM_matched_share"] == 1.0
    nowhere = {**TRACE, "word_located": [False], "object_boxes": [[1, 1, 5, 5]], "object_names": ["cat"]}
    assert not {"point_l1", "LBM_k0"} & {*scored("ours", tmp_path, [nowhere], [right]).figures}


def test_published_precisions_of_masks_include_their_threshold_in_intervals_too() -> None:
    mask = np.arange(10)[None] < 7
    found = scoring.score(Cases([Case("1", "1", {"text": "a", "mask": mask | True}, {"mask": mask})]), "referring")
    assert (found.figures["Pr@0.7"], found.intervals["Pr@0.7"]) == (1.0, (1.0, 1.0))
    assert (found.figures["mask_P@0.7"], found.intervals["mask_P@0.7"]) == (0.0, (0.0, 0.0))


def test_a_case_that_the_metric_refuses_is_named() -> None:
    bad: dict[str, Any] = {"box": [9, 9, 1, 1]}
    with pytest.raises(ValueError, match=r"case 'x7' of image '3': predicted box is \[9.0, 9.0, 1.0, 1.0\]"):
        scoring.score(Cases([Case("x7", "3", {"text": "a", "box": [0, 0, 1, 1]}, bad)]), "referring")
    with pytest.raises(ValueError, match="number of cases is 0"):
        scoring.score(Cases([]), "referring")
