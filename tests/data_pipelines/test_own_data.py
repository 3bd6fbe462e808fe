"""Own data: the lines of the docs become sets, and a line that is wrong is named before anything is built."""

import io
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_pipelines import own_data
from data_pipelines.__main__ import main
from pixel_align.evaluation import seen
from tests.data_pipelines.drawn import examples, save_gray, texts

DOCS = Path(__file__).resolve().parents[2] / "docs" / "own_data.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def build(folder: Path, *more: str) -> int:
    paths = ["--annotations", folder / "my.jsonl", "--images", folder / "pictures", "--out", folder / "data"]
    return main(["build", "own", *map(str, paths), *more])


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures and the ten lines of the docs, built."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "draw.py").write_text(block("python"))
    (folder / "my.jsonl").write_text(block("json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("draw.py")
    assert build(folder) == 0
    return folder


def test_the_docs_have_ten_lines_on_ten_pictures_with_every_field() -> None:
    lines = [json.loads(line) for line in block("json").splitlines()]
    assert len(lines) == 10 == len({line["file"] for line in lines})
    assert {key for line in lines for key in line} == set(own_data._FIELDS)


def test_expressions_and_regions_of_the_docs_lie_on_what_they_name(documented: Path) -> None:
    """The picture is coloured in the middle of each box and white beside it."""
    for task in ("own_expressions", "own_regions"):
        for example in examples(documented / "data", task).values():
            image = np.asarray(PIL.Image.open(io.BytesIO(example["image"])))
            for box in example["region_box"] * [120, 90, 120, 90]:
                x, y = box.reshape(2, 2).mean(0).astype(int).tolist()
                assert image[y, x].min() < 100  # a colour
                assert image[y, int(box[0]) - 4].min() > 200 < image[int(box[3]) + 3, x].min()  # white
    found = examples(documented / "data", "own_expressions")
    assert texts(found["3"]["object_id"]) == ["3:square"] * 2 and all(found["3"]["region_mask"])
    assert texts(found["2"]["region_text"]) == ["the blue square", "the circle"]


def test_words_of_a_narrative_of_the_docs_have_their_places(documented: Path) -> None:
    found = examples(documented / "data", "own_narratives")["6#0"]
    assert found["text"] == b"Here is a green square." and list(found["word_located"]) == [False] * 2 + [True] * 3
    np.testing.assert_allclose(found["word_boxes"][4], [0.15, 0.3, 0.35, 0.6], atol=0.02)


def test_captions_and_questions_of_the_docs(documented: Path) -> None:
    captions = examples(documented / "data", "own_captions")
    assert captions["0#1"]["text"] == b"Two shapes on white." and not captions["0#1"]["word_located"].any()
    asked = examples(documented / "data", "own_questions")["1"]
    assert (asked["asks"], texts(asked["region_id"])) == (b"answer", ["1#0"])
    assert texts(asked["region_question"]) == ["What colour is the circle?"] and texts(asked["region_text"]) == [
        "Blue."
    ]
    names = seen.read(documented / "data" / "own_captions" / "1.0.0", "train")
    assert names is not None and names["0"] == "own:0"


def test_the_settings_of_the_docs_are_those_of_an_experiment() -> None:
    from pixel_align import config

    (experiment,) = re.findall(r"train (experiments/\S+)", block("sh"))
    loaded = config.load(DOCS.parent.parent / experiment, re.findall(r"--set (\S+)", block("sh")))
    assert loaded.data.modules == ("data_pipelines.own_data",) and loaded.evals == ()
    assert loaded.data.mixture in {f"own_{kind}" for kind in own_data.KINDS}


GOOD = {"file": "a.png", "captions": ["a"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"file": "a.png", '], "my.jsonl:2 is not JSON"),
        ([[1]], "my.jsonl:1 is a list, expected an object"),
        ([{"captions": ["a"]}], "my.jsonl:1: file is None, expected a path below --images"),
        ([{"file": "/etc/passwd"}], "file is '/etc/passwd', expected a path below"),
        ([{"file": "../a.png"}], "file is '../a.png', expected a path below"),
        ([{"file": "a.png", "caption": "a"}], "has the field 'caption', expected file, captions, narratives"),
        ([{"file": "a.png", "caption": "a"}], "Did you mean 'captions'?"),
        ([{"file": "a.png", "captions": "a"}], "captions is 'a', expected a list of texts"),
        ([{"file": "a.png", "regions": ["a"]}], "regions is ['a'], expected a list of objects"),
        ([{"file": "a.png", "regions": [{"text": "a"}]}], "my.jsonl:1, regions[0] has the field 'text'"),
        ([{"file": "a.png"}], "hold no annotation, expected some of captions, narratives"),
        ([GOOD, {"file": "a.jpg", "captions": ["a"]}], "file is 'a.jpg' beside 'a.png'"),
        (
            [{"file": "a.png", "captions": ["a"], "expressions": [{"text": "a", "box": [30, 20, 10, 10]}]}],
            "my.jsonl:1, expressions[0]: box is [30, 20, 10, 10], expected x0 < x1 and y0 < y1 (is it x, y, width, h",
        ),
        ([{"file": "a.png", "regions": [{"box": [1, 2, 3, 4]}]}], "my.jsonl:1, regions[0]: text is None"),
        (
            [{"file": "a.png", "regions": [{"phrase": "a", "object": [1], "box": [1, 2, 3, 4]}]}],
            "object is [1], expected a name or a number",
        ),
        ([{"file": "a.png", "questions": [{"question": "a?"}]}], "my.jsonl:1, questions[0]: answer is None"),
        ([{"file": "a.png", "narratives": [{"traces": []}]}], "my.jsonl:1, narratives[0]: caption is missing"),
        ([{"file": "b.png", "captions": ["a"]}], "none of the 1 annotated ones, expected files named by image id"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[Any], message: str
) -> None:
    save_gray(tmp_path / "pictures" / "a.png")
    told = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "my.jsonl").write_text("\n".join(told))
    assert build(tmp_path) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], errors
    assert not list(tmp_path.glob("data/*/[!.]*"))


def test_what_only_the_picture_tells_is_named_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gray(tmp_path / "pictures" / "a.png")
    rows = [{"text": "a", "box": [1, 2, 30, 40]}, {"text": "b", "box": [60, 40, 200, 300]}]
    mask = {"size": [24, 32], "counts": [768]}
    line = {"file": "a.png", "expressions": [*rows, {"text": "c", "mask": mask}]}
    (tmp_path / "my.jsonl").write_text(json.dumps(line))
    assert build(tmp_path) == 2
    assert "2 bad region" in capsys.readouterr().err and not list(tmp_path.glob("data/*/[!.]*"))
    assert build(tmp_path, "--max-skipped", "2", "--collection", "coco") == 0
    said = capsys.readouterr().out
    assert "expected to lie in its picture of 64 x 48 pixels" in said
    assert "size of mask is [24, 32], expected [48, 64]" in said
