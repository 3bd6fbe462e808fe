"""A sheet shows the right cases on their pictures, and `score` leaves whole files that say what was scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pixel_align import cli
from pixel_align.evaluation import bootstrap, formats, report, scoring
from pixel_align.evaluation.formats import Case, Cases


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 6):
        name = f"COCO_val2014_{number:012d}.jpg" if number == 1 else f"{number:012d}.jpg"
        PIL.Image.fromarray(np.full((60, 80, 3), 40 * number, np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def files(folder: Path) -> tuple[Path, Path]:
    """Five expressions, one of a picture each; the prediction moves away from the truth with the number."""
    images = [{"id": k, "width": 80, "height": 60} for k in range(1, 6)]
    annotations = [
        {"id": k, "image_id": k, "bbox": [10, 10, 20, 20], "refexp_id": k, "refexp": f"thing {k}"} for k in range(1, 6)
    ]
    said: list[dict[str, Any]] = [
        {"id": k, "image_id": k, "bbox": [10 + 2 * k, 10, 20, 20], "refexp": ""} for k in range(1, 5)
    ]
    said += [said[0], {**said[0], "id": 77}]
    targets, predictions = folder / "targets.json", folder / "predictions.json"
    targets.write_text(json.dumps({"images": images, "annotations": annotations}))
    predictions.write_text(json.dumps(said))
    return predictions, targets


def test_worst_and_median_are_those_and_missing_ones_are_not_drawn(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = scoring.score(formats.pixel_llm(*files(tmp_path)), "referring", resamples=0)
    assert score.quality[:4].tolist() == sorted(score.quality[:4], reverse=True) and score.quality[4] == 0
    drawn: list[tuple[str, str]] = []

    def page(case: Case, pixels: np.ndarray, head: str) -> PIL.Image.Image:
        assert pixels.shape == (60, 80, 3) and case.id in head
        drawn.append((head.partition(":")[0], case.id))
        return PIL.Image.new("RGB", (10, 10))

    monkeypatch.setattr(report, "page", page)
    assert report.sheet(score, [pictures], each=1) is not None
    assert drawn == [("worst", "4"), ("median", "2")]
    drawn.clear()
    report.sheet(score, [pictures], each=3)
    assert sorted(case for _, case in drawn) == ["1", "2", "3", "4"]  # each picture once
    assert report.sheet(score, [tmp_path / "elsewhere"]) is None


@pytest.mark.parametrize(
    "case",
    [
        Case("1", "1", {"text": "a cat", "box": [1, 2, 30, 40]}, {"box": [5, 5, 50, 50]}),
        Case("1", "1", {"text": "a cat", "box": None, "no_target": True}, {}),
        Case("1", "1", {"text": "x " * 500, "mask": np.ones((60, 80), bool)}, {"mask": np.zeros((60, 80), bool)}),
        Case("1", "1", {"text": "", "mask": np.ones((6, 8), bool)}, {"mask": np.ones((6, 8), bool)}),
        Case("1", "1", {"captions": ["a cat"]}, {"text": ""}),
        Case("1", "1", {"captions": ["a cat"], "box": np.array([1.0, 2, 3, 4])}, {"text": "a dog"}),
        Case("1", "1", {"boxes": np.zeros((0, 4)), "captions": []}, {}),
        Case(
            "1", "1", {"boxes": np.array([[-9.0, -9, 500, 500]]), "captions": ["a"]},
            {"boxes": np.tile([1.0, 2, 9, 9], (40, 1)), "captions": ["b"] * 40, "scores": np.arange(40)},
        ),
        Case("1", "1", {"boxes": np.array([[0.0, 0, 1, 1]]), "captions": ["a"], "size": (1, 1)}, {"boxes": []}),
        Case("1", "1", {"masks": [np.ones((60, 80), bool)], "phrases": ["a"]}, {"masks": [np.ones((60, 80), bool)]}),
        Case(
            "1", "1",
            {"text": "a b", "word_spans": [(0, 1), (2, 3)], "word_located": [0, 1], "word_boxes": np.ones((2, 4))},
            {"points": np.ones((2, 1, 2))},
        ),
        Case("1", "1", {"text": "a", "word_spans": [(0, 1)], "word_located": [1], "word_boxes": np.ones((1, 4))}, {}),
    ],
)  # fmt: skip
def test_every_kind_of_case_has_a_page(case: Case) -> None:
    pixels = np.full((60, 80, 3), 90, np.uint8)
    before = pixels.copy()
    assert min(report.page(case, pixels, "worst: IoU 0.1").size) > 200
    np.testing.assert_array_equal(pixels, before)


def test_true_regions_are_outlined_and_their_inside_is_left() -> None:
    pixels = np.full((40, 40, 3), 90, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:30, 5:35] = True
    seen = report._outlined(pixels, [mask])
    assert (seen[10, 5:35] == 255).all() and (seen[10:30, 34] == 255).all()
    assert (seen[15:25, 10:30] == 90).all() and (seen[~mask] == 90).all()


def test_published_names_do_not_lead_out_of_the_folder(pictures: Path) -> None:
    (pictures.parent / "secret.jpg").write_bytes((pictures / "000000000002.jpg").read_bytes())
    for name in ("../secret.jpg", str(pictures.parent / "secret.jpg")):
        assert report.find_picture(Case("x", "x", {}, {}, name), [pictures]) is None
    found = report.find_picture(Case("1", "1", {}, {}, "val2014/COCO_val2014_000000000001.jpg"), [pictures])
    assert found is not None and found.name == "COCO_val2014_000000000001.jpg"
    assert report.find_picture(Case("2", "2", {}, {}), [pictures]) == (pictures / "000000000002.jpg").resolve()
    assert report._pixels(Case("b", "broken", {}, {}), [pictures]) is None


def test_the_document_is_json_whatever_the_figures(tmp_path: Path) -> None:
    case = Case("1", "9", {}, {})
    nan = float("nan")
    score = scoring.Score({"a": nan, "b": 0.5}, {"b": bootstrap.Interval(0.1, nan)}, np.zeros(1), "x", Cases([case]))
    report.write(report.document(score, format="ours"), None, tmp_path / "new")
    said = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert (said["a"], said["b"], said["intervals_95"]) == (None, 0.5, {"b": [0.1, None]})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


def test_the_verb(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, targets = files(tmp_path)
    out = tmp_path / "out"
    arguments = ["score", "pixel_llm", str(predictions), str(targets), "--resamples", "20"]
    run([*arguments, "--out", str(out), "--images", str(pictures)])
    said = json.loads((out / "metrics.json").read_text())
    assert (said["cases"], said["images"], said["P@0.5"], said["format"]) == (5, 5, 0.6, "pixel_llm")
    assert said["missing"] == {"count": 1, "first": ["5"]}
    assert (said["duplicate"]["count"], said["unknown"]["first"]) == (1, ["77"])
    low, high = said["intervals_95"]["P@0.5"]
    assert low <= 0.6 <= high
    with PIL.Image.open(out / "report.png") as sheet:
        assert sheet.width > 1_000
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "report.png"]
    shown = capsys.readouterr().out
    assert "1 targets without a prediction, which count as wrong: 5" in shown and "P@0.5 " in shown
    run([*arguments, "--predicted-only"])
    shown = capsys.readouterr().out
    assert "0.7500" in shown and "without a prediction" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pixellm", "a", "b"], "format is 'pixellm', expected one of pixel_llm, "),
        (["pixel_llm", "a", "b", "--images", "c"], "--images is given without --out"),
        (["pixel_llm", "nothing.json", "b"], "expected a file that exists"),
        (["grit", "a", "b", "--convention", "Lua"], "convention is 'Lua', expected one of pixel_llm, lua, plus_one, "),
        (["pixel_llm", "a", "b", "--convention", "lua"], "convention is 'lua', expected none: "),
        (["pixel_llm", "a", "b", "--out", "taken/new"], "--out is 'taken/new', expected a folder to write to: "),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    assert run(["score", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
