"""Visual Genome: the publisher's form and GRiT's, the splits of dense captioning, and what real files hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines import DataError, json_input, visual_genome
from data_pipelines.__main__ import main
from pixel_align.evaluation import seen
from tests.data_pipelines.drawn import examples, save_gray, texts

IMAGES = [
    {"image_id": 1, "width": 64, "height": 48, "coco_id": None},
    {"image_id": 2, "width": 64, "height": 48, "coco_id": 391895},
    {"image_id": 3, "width": 64, "height": 48, "coco_id": None},
]


def region(number: int, image: int, phrase: str, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {
        "region_id": number,
        "image_id": image,
        "phrase": phrase,
        **{"x": x, "y": y, "width": width, "height": height},
    }


REGIONS = [
    {
        "id": 1,
        "regions": [
            region(10, 1, "a tree", -4, -3, 20, 20),
            region(11, 1, " the sky\n", 0, 0, 64, 20),
            region(12, 1, "the sky", 0, 0, 64, 20),
            region(13, 1, "the sky", 0, 0, 60, 20),
        ],
    },
    {"id": 2, "regions": [region(20, 2, "a dog", 10, 10, 20, 20)]},
    {"id": 3, "regions": [region(30, 3, "grass", 0, 30, 64, 18)]},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for image in IMAGES:
        save_gray(tmp_path / "images" / f"{image['image_id']}.jpg")
    contents = {"regions": REGIONS, "image_data": IMAGES, "splits": {"train": [1, 2], "val": [3], "test": [7]}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: str(tmp_path / f"{name}.json") for name in contents} | {
        "images": str(tmp_path / "images"),
        "out": str(tmp_path / "out"),
    }


def build(files: dict[str, str], *more: str) -> int:
    paths = ["--annotations", files["regions"], "--images", files["images"], "--out", files["out"]]
    return main(["build", "visual_genome", *paths, *more])


def test_real_warts_are_mended_and_counted(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert build(files, "--image-data", files["image_data"]) == 0
    said = capsys.readouterr().out
    assert "box cut at the edge of the picture: 1" in said and "exact duplicate dropped: 1" in said
    assert "spaces around the text taken off: 1" in said
    found = examples(Path(files["out"]), visual_genome.NAME)
    assert texts(found["1"]["region_id"]) == ["10", "11", "13"]
    assert texts(found["1"]["region_text"]) == ["a tree", "the sky", "the sky"]
    np.testing.assert_allclose(found["1"]["region_box"][0], [0, 0, 16 / 64, 17 / 48], rtol=1e-6)
    assert found["1"]["asks"] == b"describe" and list(found["1"]["region_mask"]) == [b""] * 3
    names = seen.read(Path(files["out"]) / visual_genome.NAME / "1.0.0", "train")
    assert names == {"1": "visual_genome:1", "2": "coco:391895", "3": "visual_genome:3"}


def test_the_splits_of_dense_captioning(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-data", files["image_data"], "--densecap", files["splits"]]
    assert build(files, *options, "--splits", "train", "validation") == 0
    out = Path(files["out"])
    assert set(examples(out, visual_genome.NAME)) == {"1", "2"}
    assert set(examples(out, visual_genome.NAME, "validation")) == {"3"}
    capsys.readouterr()
    assert build(files, *options, "--splits", "test") == 2  # no picture of it is there
    assert "no pictures left" in capsys.readouterr().err
    Path(files["splits"]).write_text(json.dumps({"train": [1, 2], "val": [2], "test": []}))
    with pytest.raises(DataError, match="has 1 pictures in train and in validation, expected none"):
        visual_genome.densecap_splits(files["splits"])


def test_the_form_of_grit_says_the_same(files: dict[str, str], tmp_path: Path) -> None:
    annotations = [
        {
            "id": item["region_id"],
            "image_id": item["image_id"],
            "bbox": [item[key] for key in ("x", "y", "width", "height")],
            "caption": item["phrase"],
        }
        for picture in REGIONS
        for item in picture["regions"]  # type: ignore[attr-defined]
    ]
    images = [{"id": i["image_id"], "file_name": f"{i['image_id']}.jpg", "width": 64, "height": 48} for i in IMAGES]
    grit = tmp_path / "grit.json"
    grit.write_text(json.dumps({"images": images, "annotations": annotations}))
    ours = list(visual_genome.read(files["regions"], files["image_data"]))
    theirs = list(visual_genome.read_grit(grit, files["image_data"]))
    assert [p.regions for p in ours] == [p.regions for p in theirs] and [p.name for p in ours] == [
        p.name for p in theirs
    ]
    assert [p.image_id for p in visual_genome.read_grit(grit, None, only=[3])] == ["3"]
    assert build({**files, "regions": str(grit)}) == 0


def test_a_region_of_a_missing_picture_is_named(files: dict[str, str]) -> None:
    Path(files["image_data"]).write_text(json.dumps(IMAGES[:2]))
    *_, last = visual_genome.read(files["regions"], files["image_data"])
    assert last.regions[0].problem == "image 3 is missing, expected it in the image data"


def test_files_that_cannot_be_used_are_one_line(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    image_data = ["--image-data", files["image_data"]]
    whole = Path(files["regions"]).read_text()
    for content, options, message in (
        (whole, [], "--image-data is missing, expected image_data.json"),
        (whole[:-30], image_data, "is broken"),
        (whole[:-1], image_data, "is broken (ValueError: it ends or goes astray at character"),
        (whole[:-1] + ",]", image_data, "is broken"),
        (whole + "x", image_data, "more follows behind its end"),
        ("[1]", image_data, "is broken (TypeError"),
        ('[{"id": 1}]', image_data, "is broken (KeyError: 'regions')"),
        ('{"images": []}', image_data, "is broken (KeyError: 'annotations')"),
        (whole, [*image_data, "--splits", "train", "test"], "--splits has 'test', expected some of train"),
        (whole, ["--image-data", files["regions"]], "region"),
    ):
        Path(files["regions"]).write_text(content)
        assert build(files, *options) == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0], error
        assert not list(Path(files["out"]).glob("*/[!.]*"))


def test_large_lists_are_read_element_by_element(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for content in (b"[]", b' [ 1 ,\n {"a": [2, "]"]} ]\n', b"\xef\xbb\xbf[1.5]"):
        path.write_bytes(content)
        assert list(json_input.elements(path, "list")) == json.loads(content.decode("utf-8-sig"))
    for content in (b"", b"[", b"[1 2]", b"[1,]", b"[,1]", b"{}", b"[1]]", b"\xff[1]", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="list .*list.json' is broken"):
            list(json_input.elements(path, "list"))


def test_real_files(samples: Path) -> None:
    folder = samples / "visual_genome"
    found = list(visual_genome.read(folder / "region_descriptions.json", folder / "image_data.json"))
    assert (len(found), sum(len(picture.regions) for picture in found)) == (27, 4161)
    assert sum(bool(region.problem) for picture in found for region in picture.regions) == 96  # of picture 27
    splits = visual_genome.densecap_splits(folder / "densecap_splits.json")
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 77_398, "validation": 5_000, "test": 5_000}
    derived = folder / "region_descriptions_484_DERIVED.json", folder / "image_data_484_DERIVED.json"
    assert len(list(visual_genome.read(*derived, only=splits["test"]))) == 22
