"""Files of other systems become cases; what does not fit is counted, what is broken is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import formats, json_files

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return written


def referring(write: Write) -> tuple[Path, Path]:
    targets = {
        "images": [{"id": 7, "width": 40, "height": 30, "file_name": "COCO_train2014_000000000007.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4], "refexp_id": [10, 11], "refexp": ["a cat", "the cat"]},
            {"id": 2, "image_id": 7, "bbox": [0, 0, 9, 9], "refexp_id": 12, "raw": "a dog", "split": "testA"},
        ],
    }
    rle = {"size": [30, 40], "counts": [1200]}
    predictions = [
        {"id": 11, "image_id": 7, "bbox": [1, 2, 3, 4], "segmentation": rle},
        {"id": 12, "image_id": 7, "bbox": [0, 0, 1, 1]},
        {"id": 11, "image_id": 7, "bbox": [9, 9, 9, 9]},
        {"id": 99, "image_id": 7, "bbox": [9, 9, 9, 9]},
    ]
    return write("predictions.json", predictions), write("targets.json", targets)


def test_nothing_is_dropped_silently(write: Write) -> None:
    found = formats.pixel_llm(*referring(write))
    assert [case.id for case in found.cases] == ["10", "11", "12"]
    assert (found.missing, found.duplicate, found.unknown) == (("10",), ("11",), ("99",))
    missing, first, last = found.cases
    assert missing.prediction == {}
    assert (first.target["text"], last.target["text"], last.target["split"]) == ("the cat", "a dog", "testA")
    np.testing.assert_array_equal(first.prediction["box"], [1, 2, 4, 6])  # the first of the two
    assert first.prediction["mask"]["size"] == [30, 40] and first.file.endswith("7.jpg")
    assert [case.id for case in found.only_predicted().cases] == ["11", "12"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "is no JSON \\(NaN is no JSON number\\)"),
        (
            {"bbox": [1, 2, -3, 4]},
            r"bbox in record 0 of 'predictions.json' is \[1, 2, -3, 4\], expected x, y, width, h",
        ),
        ({"bbox": [1, 2, 3]}, "expected x, y, width, height"),
        ({"bbox": [1, 2, 3, "4"]}, "expected x, y, width, height"),
        ({"bbox": [1, 2, 3, 10**400]}, "expected x, y, width, height"),
        ({"bbox": [1, 2, 3, True]}, "expected x, y, width, height"),
        ({"id": None}, "id in record 0 of 'predictions.json' is None, expected a number or a name"),
        ({"id": [1]}, "expected a number or a name"),
        ({"segmentation": {"size": [30, 40], "counts": "0"}}, "segmentation in record 0"),
        ({"segmentation": {"size": [30, 40], "counts": [5]}}, "segmentation in record 0"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": ""}}, "segmentation in record 0"),
        ({"segmentation": "mask"}, "segmentation in record 0"),
    ],
)
def test_a_broken_prediction_is_one_clear_line(write: Write, change: dict[str, Any], said: str) -> None:
    _, targets = referring(write)
    path = write("predictions.json", [{"id": 11, "image_id": 7, "bbox": [1, 2, 3, 4], **change}])
    with pytest.raises(ValueError, match=said) as caught:
        formats.pixel_llm(path, targets)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content", ["", "{", '[{"id": 1}', "[" * 100_000, "nul", '[1e999, {"id": 3}]', "[[]]", "7", '"x"', "{}", "\ud800"]
)
@pytest.mark.parametrize("name", list(formats.READERS))
def test_hostile_files_are_one_clear_line(write: Write, tmp_path: Path, name: str, content: str) -> None:
    good = tmp_path / "bad.json"
    good.write_bytes(content.encode("utf-8", "surrogatepass"))
    targets = {"images": [{"id": 1, "width": 9, "height": 9}], "annotations": []}
    with pytest.raises(ValueError, match=".") as caught:
        formats.READERS[name].read(good, good)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises((ValueError, FileNotFoundError), match="expected"):
        formats.READERS[name].read(tmp_path / "none.json", write("targets.json", targets))


def test_targets_that_contradict_themselves_are_refused(write: Write) -> None:
    predictions, _ = referring(write)
    picture = {"id": 7, "width": 40, "height": 30}
    one = {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4], "refexp_id": 10}
    for listed, said in (
        ([one, one], "expected ids that no other annotation has; 10 came before"),
        ([{**one, "image_id": 8}], "expected one of the 1 images"),
        ([{**one, "refexp_id": [1, 2], "refexp": ["a"]}], "expected as many texts as ids, 2"),
        ([], "number of targets is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            formats.pixel_llm(predictions, write("targets.json", {"images": [picture], "annotations": listed}))


def test_a_prediction_of_another_picture_is_refused(write: Write) -> None:
    _, targets = referring(write)
    path = write("predictions.json", [{"id": 11, "image_id": 8, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(
        ValueError, match="image_id in record 0 of 'predictions.json' is 8, expected 7, the picture of e"
    ):
        formats.pixel_llm(path, targets)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"no_target": True}, r"bbox in record 0 .* is \[1, 2, 3, 4\], expected none with no_target"),
        ({"no_target": "yes", "bbox": None}, "no_target in record 0 .* is 'yes', expected true or false"),
        ({"bbox": None}, "bbox in record 0 .* is None, expected x, y, width, height"),
    ],
)
def test_what_names_nothing_has_no_place(write: Write, change: dict[str, Any], said: str) -> None:
    predictions, _ = referring(write)
    one = {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4], "refexp_id": 10}
    for good in ({"no_target": True, "bbox": None}, {"no_target": 1, "segmentation": [], "bbox": []}, {"no_target": 0}):
        content = {"images": [{"id": 7, "width": 40, "height": 30}], "annotations": [{**one, **good}]}
        (case,) = formats.pixel_llm(predictions, write("targets.json", content)).cases
        assert ("no_target" in case.target) != ("box" in case.target)
    content = {"images": [{"id": 7, "width": 40, "height": 30}], "annotations": [{**one, **change}]}
    with pytest.raises(ValueError, match=said):
        formats.pixel_llm(predictions, write("targets.json", content))


def test_several_things_named_at_once_have_one_mask_and_no_box(write: Write) -> None:
    one = {"id": 1, "image_id": 7, "segmentation": {"size": [30, 40], "counts": [5, 1195]}}
    content = {"images": [{"id": 7, "width": 40, "height": 30}], "annotations": [one]}
    (case,) = formats.pixel_llm(write("p", []), write("t", content)).cases
    assert "box" not in case.target and case.target["mask"]["size"] == [30, 40]


@pytest.mark.parametrize("read", [formats.our_regions, formats.our_descriptions])
def test_our_regions_are_named_once_and_have_boxes(write: Write, read: Any) -> None:
    one = {"id": "r", "image_id": 7, "region_id": ["a", "b"], "region_text": ["x", "y"], "boxes": [[0, 0, 1, 1]] * 2}
    assert len(read(write("p", ""), write("t", json.dumps(one))).cases) == 2
    twice = json.dumps(one) + "\n" + json.dumps({**one, "region_id": ["c", "b"]})
    with pytest.raises(ValueError, match="region_id in line 2 of targets 't' is .* no other region has; b came before"):
        read(write("p", ""), write("t", twice))
    for change in ({"boxes": None}, {"boxes": [[0, 0, 1, 1]]}, {"boxes": [[0, 0, 1]] * 2}, {"masks": [None]}):
        with pytest.raises(ValueError, match="expected"):
            read(write("p", ""), write("t", json.dumps({**one, **change})))


def test_captions_of_coco(samples: Path) -> None:
    results = samples / "eval" / "captions_val2014_fakecap_results.json"
    found = formats.coco_captions(results, samples / "coco" / "annotations" / "captions_val2017.json")
    known = {case.image_id: case for case in found.cases}
    assert len(known) == len(found.cases) and all(len(case.target["captions"]) >= 5 for case in found.cases)
    listed = json.loads(results.read_text())
    assert len(listed) == len(found.unknown) + len(found.duplicate) + len(found.only_predicted().cases)
    for one in listed:
        if (case := known.get(str(one["image_id"]))) is not None:
            assert case.prediction["text"] == one["caption"] and case.file


def test_real_regions_of_visual_genome_in_both_spellings(samples: Path, write: Write) -> None:
    path = samples / "visual_genome" / "region_descriptions.json"
    pictures = json.loads(path.read_text())
    few = [{**picture, "regions": picture["regions"][:20]} for picture in pictures[:3]]
    regions = [{"image_id": p["id"], **region} for p in few for region in p["regions"]]
    corners = [{**r, "bbox": [r["x"], r["y"], max(r["width"], 0), max(r["height"], 0)]} for r in regions]
    coco = {
        "images": [{"id": r["image_id"], "width": 9, "height": 9} for r in corners],
        "annotations": [
            {"id": k, "image_id": r["image_id"], "bbox": r["bbox"], "caption": r["phrase"].strip()}
            for k, r in enumerate(corners)
        ],
    }
    said = [{"image_id": r["image_id"], "bbox": r["bbox"], "score": 0.5, "caption": r["phrase"]} for r in corners[:25]]
    said.append({**said[0], "image_id": -1})
    predictions = write("predictions.json", said)
    ours, theirs = (
        formats.dense_captions(predictions, write(name, content)) for name, content in (("a", few), ("b", coco))
    )
    assert [case.image_id for case in ours.cases] == [str(p["id"]) for p in few]
    for a, b in zip(ours.cases, theirs.cases, strict=True):
        np.testing.assert_array_equal(a.target["boxes"], b.target["boxes"])
        assert a.target["captions"] == b.target["captions"]
        assert len(a.prediction["boxes"]) == len(a.prediction["scores"]) == len(a.prediction["captions"])
    assert ours.unknown == ("-1",) and ours.missing == (ours.cases[2].id,)
    whole = formats.region_captions(write("c", [{"id": 1, "caption": "x"}]), path)
    assert len(whole.cases) == sum(len(p["regions"]) for p in pictures)


def test_narratives_and_the_boxes_of_their_utterances(write: Write) -> None:
    record = {
        "dataset_id": "mscoco_val2017", "image_id": "7", "annotator_id": 3, "caption": "a cat here",
        "timed_caption": [
            {"utterance": "a cat", "start_time": 0.0, "end_time": 1.0},
            {"utterance": "here", "start_time": 5.0, "end_time": 6.0},
        ],
        "traces": [[{"x": 0.1, "y": 0.2, "t": 0.0}, {"x": 0.3, "y": 0.1, "t": 1.0}, {"x": 0.9, "y": 0.9, "t": 2.0}]],
    }  # fmt: skip
    lines = "".join(json.dumps({**record, "annotator_id": k}) + "\n" for k in (3, 4, 3))
    found = formats.narratives(write("p", lines.splitlines()[0]), write("t", lines))
    assert [case.id for case in found.cases] == ["7/3#1", "7/4#1", "7/3#2"] and len(found.missing) == 2
    np.testing.assert_array_equal(found.cases[0].target["boxes"], [[0.1, 0.1, 0.3, 0.2], [0, 0, 1, 1]])
    assert found.cases[0].prediction["captions"] == ["a cat", "here"]
    with pytest.raises(ValueError, match="t in record 0 of a stroke of line 1 of predictions 'p' is missing"):
        formats.narratives(write("p", json.dumps({**record, "traces": [[{"x": 1, "y": 1}]]})), write("t", lines))


def test_what_evaluation_writes_is_read_back(write: Write) -> None:
    target = {
        "id": "7#0", "image_id": "7", "text": "a cat, a cat", "word_spans": [[0, 1], [2, 5], [7, 8], [9, 12]],
        "word_boxes": [[0, 0, 4, 4]] * 4, "word_located": [False, True, False, True],
        "object_boxes": [], "object_names": [], "size": [30, 40],
    }  # fmt: skip
    words = [{"word": word, "score": 1.0, "points": [[1, 2], [3, 4]], "box": [1, 2, 3, 4]} for word in ("a", "cat")]
    said = {"id": "7#0", "read": words * 2, "text": "a cat", "words": words, "width": 40, "height": 30}
    (case,) = formats.traces(write("p", json.dumps(said)), write("t", json.dumps(target))).cases
    assert case.prediction["word_spans"].tolist() == [[0, 1], [2, 5]]
    assert case.prediction["points"].shape == (4, 2, 2) and case.target["word_boxes"].shape == (4, 4)
    for change, message in (
        ({"read": words}, "one entry for each of the 4 words"),
        ({"words": [*words, words[0]]}, "a word of 'a cat', in order"),
        ({"words": [words[0], {**words[1], "points": [[1, 2]]}]}, "equally many for each word"),
        ({"words": [{**words[0], "points": [[1, None]]}]}, "of finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            formats.traces(write("p", json.dumps({**said, **change})), write("t", json.dumps(target)))


def test_conversations_in_a_folder(write: Write, tmp_path: Path) -> None:
    mask = {"size": [4, 4], "counts": [4, 4, 8]}
    (tmp_path / "said").mkdir()
    said = {"image_id": "7.jpg", "caption": "a cat", "phrases": ["cat"], "pred_masks": [mask]}
    write("said/7.json", said)
    images = [{"id": 7, "width": 4, "height": 4}]
    truth = [{"image_id": 7, "segmentation": mask}, {"image_id": 7, "caption": "one cat", "labels": ["cat"]}]
    (case,) = formats.glamm(tmp_path / "said", write("t", {"images": images, "annotations": truth})).cases
    assert case.prediction["phrases"] == ["cat"] and len(case.prediction["masks"]) == 1
    assert (case.target["captions"], case.target["phrases"], len(case.target["masks"])) == (["one cat"], ["cat"], 1)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.json file"):
        formats.glamm(tmp_path / "said", tmp_path / "none")


def test_limits_are_said(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = referring(write)
    monkeypatch.setattr(json_files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="bytes, expected at most 100"):
        formats.pixel_llm(predictions, targets)
    monkeypatch.undo()
    long = write("p", [{"image_id": 1, "caption": "a" * (json_files.MAX_TEXT + 1)}])
    captions = write("t", {"images": [], "annotations": [{"image_id": 1, "caption": "a"}]})
    with pytest.raises(ValueError, match="expected a text of at most 20,000 characters"):
        formats.coco_captions(long, captions)


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"format is 'coco_caption', expected one of pixel_llm.*mean 'coco_captions'"):
        formats.reader("coco_caption")
