"""Regions from pictures to records to examples: boxes, masks, and what is wrong with them."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_pipelines import DataError, building, parts, region_masks, regions
from data_pipelines.narratives import BadRecord
from data_pipelines.regions import Picture, Region
from pixel_align.evaluation import seen
from tests.data_pipelines.drawn import examples, save_gray, texts

SIZE = (48, 64)  # (height, width)
BOX = (8.0, 12.0, 24.0, 36.0)
regions.register("drawn_regions", "refer")
regions.register("drawn_regions_described", "describe", "drawn_regions")


def corners(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def mask_of(box: Sequence[float], size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (columns > box[0]) & (columns < box[2]) & (rows > box[1]) & (rows < box[3])


def read_png(content: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert image.mode == "1"
        return np.asarray(image)


def picture(*found: Region, image_id: str = "7", size: tuple[int, int] | None = SIZE, **changes: Any) -> Picture:
    return Picture(image_id, changes.pop("file_name", ""), size, found, changes.pop("dataset_id", "mscoco"), **changes)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., building.Built]:
    save_gray(tmp_path / "images" / "000000000007.jpg")

    def run(*found: Picture, split: str = "train", **changes: Any) -> building.Built:
        return regions.build(tmp_path / "out", "drawn_regions", split, found, [tmp_path / "images"], **changes)

    return run


def test_a_record_is_what_was_said(build: Callable[..., building.Built], tmp_path: Path) -> None:
    mask = mask_of(BOX)
    run_lengths = region_masks.as_json(mask)
    built = build(
        picture(Region("1", " the red ball\n", BOX, None), Region("2", "drawn", BOX, corners(*BOX), "a")),
        picture(Region("3", "array", None, mask, "a"), Region("4", "run lengths", BOX, run_lengths, "b")),
        split="testA",
    )
    assert {key: built.report[key] for key in ("pictures", "regions", "objects", "masks")} == {
        "pictures": 1,
        "regions": 4,
        "objects": 2,
        "masks": 3,
    }
    assert built.report["mended"] == {"spaces around the text taken off": 1}
    assert "spaces around" in regions.describe(built)
    assert seen.read(built.folder, "testA") == {"7": "coco:7"}
    (example,) = examples(tmp_path / "out", "drawn_regions", "testA").values()
    assert texts(example["region_text"]) == ["the red ball", "drawn", "array", "run lengths"]
    assert texts(example["region_id"]) == ["1", "2", "3", "4"] and texts(example["object_id"]) == ["", "a", "a", "b"]
    np.testing.assert_allclose(example["region_box"], [np.array(BOX) / [64, 48, 64, 48]] * 4, rtol=1e-6)
    assert example["region_mask"][0] == b""
    for content in example["region_mask"][1:]:
        np.testing.assert_array_equal(read_png(content), mask)
    assert (example["asks"], example["image_id"], example["example_id"]) == (b"refer", b"7", b"7")
    described = examples(tmp_path / "out", "drawn_regions_described", "testA")["7"]
    assert described["asks"] == b"describe" and described["instruction"] != example["instruction"]


def test_boxes_and_masks_follow_a_picture_that_is_stored_smaller(
    build: Callable[..., building.Built], tmp_path: Path
) -> None:
    """Also where the file is another size than annotated, and where the size is only known from the file."""
    save_gray(tmp_path / "images" / "8.png", (640, 480))
    large = tuple(10 * x for x in BOX)
    build(
        picture(Region("1", "annotated", BOX, corners(*BOX)), image_id="8"),
        picture(Region("2", "as the file", large, corners(*large)), image_id="8", size=None),
        max_side=32,
    )
    example = examples(tmp_path / "out", "drawn_regions")["8"]
    np.testing.assert_allclose(example["region_box"], [np.array(BOX) / [64, 48, 64, 48]] * 2, rtol=1e-6)
    for content in example["region_mask"]:
        np.testing.assert_array_equal(read_png(content), mask_of(np.array(BOX) / 2, (24, 32)))


def test_pictures_are_found_by_file_name_or_id_and_stand_upright(
    build: Callable[..., building.Built], tmp_path: Path
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    save_gray(tmp_path / "images" / "deep" / "turned.jpg", (48, 64), exif=exif)
    built = build(
        picture(Region("1", "a", BOX), image_id="x/1", file_name="deep/turned.jpg", size=None),
        picture(Region("2", "b", BOX), file_name="COCO_train2014_000000000007.jpg", name="coco:77"),
    )
    found = examples(tmp_path / "out", "drawn_regions")
    assert set(found) == {"x/1", "7"}
    np.testing.assert_allclose(found["x/1"]["region_box"][0], np.array(BOX) / [64, 48, 64, 48], rtol=1e-6)
    assert seen.read(built.folder, "train") == {"7": "coco:77", "x/1": "coco:1"}


HALF = region_masks.as_json(mask_of((4, 6, 12, 18), (24, 32)))
WRONG: list[tuple[Region, str]] = [
    (Region("1", "a", (30.0, 20.0, 10.0, 10.0)), "expected x0 < x1 and y0 < y1 (is it x, y, width, height?)"),
    (Region("1", "a", (60.0, 40.0, 90.0, 80.0)), "expected to lie in its picture of 64 x 48 pixels"),
    (Region("1", "a", (-90.0, 4.0, -60.0, 8.0)), "expected to lie in its picture"),
    (Region("1", "a", (1.0, 2.0, 3.0)), "expected four numbers x0, y0, x1, y1"),
    (Region("1", "a", (1.0, 2.0, 3.0, float("nan"))), "expected four numbers"),
    (Region("1", "a", (1, 2, 3, "4")), "expected four numbers"),  # type: ignore[arg-type]
    (Region("1", " ", BOX), "text is ' ', expected 1 to 20,000 characters"),
    (Region("1", 5, BOX), "text is 5"),  # type: ignore[arg-type]
    (Region("1", "a\ud800", BOX), "surrogate"),
    (Region("1", "a", None), "neither box nor mask"),
    (Region("1", "a", BOX, HALF), "size of mask is [24, 32], expected [48, 64]"),
    (Region("1", "a", BOX, {"size": [48, 64], "counts": [5]}), "pixels long, expected 48 x 64"),
    (Region("1", "a", BOX, {"size": [48, 64], "counts": "54"}), "expected 48 x 64 pixels"),
    (Region("1", "a", BOX, {"size": [48, 64]}), "counts"),
    (Region("1", "a", BOX, corners(80, 120, 240, 360)), "mask reaches over [80.0, 120.0, 240.0, 360.0]"),
    (Region("1", "a", BOX, corners(40, 2, 60, 10)), "expected to hold its mask, which lies in [40.0, 2.0, 60.0, 10.0]"),
    (Region("1", "a", BOX, "a mask"), "mask is a str, expected run lengths, polygons or an array"),
    (Region("1", "a", BOX, [["a"] * 6]), "no list of three or more finite x, y"),
    (Region("1", "a", None, [[1.0, 2.0]]), "mask has no pixel and there is no box"),
    (Region("1", "a", BOX, problem="annotation 5 is missing"), "annotation 5 is missing"),
    (Region.of_coco("1", "a", {"bbox": [1, 2, 3]}), "bbox is [1, 2, 3], expected x, y, width, height"),
]


@pytest.mark.parametrize(("region", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_what_is_wrong_with_a_region_is_said(region: Region, message: str) -> None:
    """Without a build: a line, then a place, as the builder takes them."""

    def placed() -> None:
        for _, line in regions.lines([picture(region)]):
            regions._place(regions.RegionSet.parse(line).region, SIZE, SIZE, {})

    with pytest.raises(BadRecord) as caught:
        placed()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_regions_are_left_out_counted_and_named(build: Callable[..., building.Built], tmp_path: Path) -> None:
    save_gray(tmp_path / "images" / "9.png", (48, 64))
    found = [
        picture(Region("1", "good", BOX), Region("1", "the same id", BOX), Region("2", "mask", BOX, HALF)),
        picture(Region("3", "on its side", BOX), image_id="9"),
        picture(Region("4", "nowhere", BOX), image_id="10"),
        picture(Region("5", "xywh", (30.0, 20.0, 10.0, 10.0)), image_id="7"),
    ]
    with pytest.raises(DataError, match=r"regions to leave out is 2 of 6 \(1 bad record, 1 missing picture\)"):
        build(*found)
    assert not list(tmp_path.glob("out/*/[!.]*"))  # nothing half-built
    built = build(*found, max_skipped="90%")
    assert built.report["skipped"]["counts"] == {"bad record": 1, "bad region": 3, "missing picture": 1}
    named = built.report["skipped"]["named"]
    assert any("image 7, region 1: region id stands there already" in name for name in named)
    assert any("image 9, region 3: picture file is 48 x 64 pixels, expected 64 x 48" in name for name in named)
    assert texts(examples(tmp_path / "out", "drawn_regions")["7"]["region_text"]) == ["good"]


def test_edges_duplicates_and_empty_masks_are_mended_and_counted(
    build: Callable[..., building.Built], tmp_path: Path
) -> None:
    class Distinct(regions.RegionSet):
        DISTINCT = True

    rows = [
        Region("1", "over the edge", (-4.0, 12.0, 24.0, 50.0)),
        Region("2", "by less than a pixel", (0.0, 0.0, 64.5, 48.5)),
        Region("3", "over the edge ", (-4.0, 12.0, 24.0, 50.0)),
        Region("4", "a line", BOX, [[8.0, 12.0, 24.0, 36.0]]),
    ]
    built = build(picture(*rows), kind=Distinct)
    assert built.report["mended"] == {
        "box cut at the edge of the picture": 1,
        "exact duplicate dropped": 1,
        "mask without a pixel dropped": 1,
    }
    example = examples(tmp_path / "out", "drawn_regions")["7"]
    assert texts(example["region_id"]) == ["1", "2", "4"]
    np.testing.assert_allclose(example["region_box"][0], [0, 0.25, 0.375, 1], rtol=1e-6)
    np.testing.assert_allclose(example["region_box"][1], [0, 0, 1, 1])


def test_many_boxes_over_the_edge_stop_the_build(build: Callable[..., building.Built], tmp_path: Path) -> None:
    """What corners look like that are read as x, y, width, height."""
    xyxy = [(20.0, 12.0, 58.0, 40.0), (20.0, 10.0, 60.0, 40.0), (16.0, 16.0, 60.0, 40.0)]
    found = [Region.of_coco(str(k), "a", {"bbox": box}) for k, box in enumerate(xyxy)]
    with pytest.raises(DataError, match="pass the edge of their picture is 3 of 3, expected hardly any. Check whether"):
        build(picture(*found), max_skipped="50%")
    assert not list(tmp_path.glob("out/drawn_regions/1.0.0"))


def test_a_build_is_known_by_what_it_is_built_from(build: Callable[..., building.Built], tmp_path: Path) -> None:
    one, other = picture(Region("1", "a", BOX)), picture(Region("1", "b", BOX))
    assert build(one).fresh and not build(one).fresh
    with pytest.raises(DataError, match="is from other inputs"):
        build(other)
    assert build(other, overwrite=True).fresh
    source = tmp_path / "source.json"
    source.write_text("1")
    reads = []

    def read() -> list[Picture]:
        reads.append(1)
        return [one]

    for _ in range(2):  # told by its files: the second time they need not be read
        regions.build(tmp_path / "out", "drawn_regions", "val", read, [tmp_path / "images"], files=[source])
    assert len(reads) == 1


def test_a_build_that_ended_goes_on_where_it_was(
    build: Callable[..., building.Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [picture(Region(str(k), "a", BOX), image_id=str(k)) for k in range(8)]
    for k in range(8):
        save_gray(tmp_path / "images" / f"{k}.png")
    written: list[str] = []
    write = parts.write_records

    def ended(path: Path, *rest: Any) -> Any:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.stem)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_records", ended)
        with pytest.raises(KeyboardInterrupt):
            build(*found, shards=2)
    monkeypatch.setattr(parts, "write_records", lambda path, *rest: (written.append(path.stem), write(path, *rest))[1])
    assert build(*found, shards=2).report["pictures"] == 8
    assert written == ["00000", "00001"]


def test_scores_of_places() -> None:
    true = {"region_text": ["a", "b"], "boxes": [[0, 0, 10, 10], [0, 0, 4, 4]], "masks": [mask_of(BOX), None]}
    right = {"boxes": [[0, 0, 10, 10], [0, 0, 10, 10]], "masks": None}
    assert regions.referring_scores([true], [right]) == {"P@0.5": 0.5, "P@0.5:0.95": 0.5}
    half = mask_of((BOX[0], BOX[1], 16.0, BOX[3]))
    found = regions.referring_scores([true], [{**right, "masks": [half, half]}])
    assert found == {"P@0.5": 0.5, "P@0.5:0.95": 0.5, "cIoU": 0.5, "gIoU": 0.5}


def test_scores_of_words() -> None:
    true = [{"region_text": ["a red ball", "two dogs"]}, {"region_text": []}]
    told = [{"texts": ["A red  ball.", "two cats"]}, {"texts": []}]
    assert regions.describe_scores(true, told) == {"exact": 0.5}
    with pytest.raises(ValueError, match="shorter"):
        regions.describe_scores(true, told[:1])


def test_scores_of_captions_go_without_tables_of_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    from pixel_align.evaluation import meteor_tables

    def missing() -> None:
        raise ModuleNotFoundError("pycocoevalcap")

    monkeypatch.setattr(meteor_tables, "installed", missing)
    true = [{"region_text": [f"a ball number {k} that is red", f"the {k} dogs"]} for k in range(3)]
    told = [{"texts": case["region_text"]} for case in true]
    with pytest.warns(UserWarning, match="not scored by METEOR: pycocoevalcap"):
        found = regions.caption_scores(true, told)
    assert found["exact"] == 1 and found["CIDEr"] > 5 and "METEOR" not in found
    boxes = [{"boxes": np.asarray([BOX, BOX]), "captions": case["region_text"]} for case in true]
    said = [case | {"scores": [0.9, 0.8]} for case in boxes]
    with pytest.warns(UserWarning, match="dense captions are scored without mAP: pycocoevalcap"):
        assert set(regions.densecap_scores(boxes, said)) == {"mAP_detection"}


def test_lines_say_the_same_as_what_they_are_of() -> None:
    region = Region("9", "two words", BOX, corners(*BOX), "object")
    ((where, line),) = regions.lines([picture(region, file_name="a.jpg", name="coco:1")])
    placed = regions.RegionSet.parse(line)
    assert placed.region == region and (placed.size, placed.name, placed.file_name) == (SIZE, "coco:1", "a.jpg")
    assert where == "image 7, region 9" and json.loads(line)["region_id"] == "9"
