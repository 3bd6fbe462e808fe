"""Round trips: what a model says, written as the publishers do, read by the builders: the same text and places."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data_pipelines import coco, visual_genome
from data_pipelines.__main__ import main
from pixel_align import predict_folder, raw_formats
from pixel_align.evaluation import masks
from pixel_align.geometry import points_to_boxes
from pixel_align.image import read_mask
from pixel_align.prediction import Prediction, Region
from pixel_align.text_alignment import split_words
from tests.data_pipelines.drawn import examples, save_gray

# Files as COCO, Flickr30k and a user name them, with (width, height): no two of one size.
PICTURES = {
    "000000000025.jpg": (64, 48),
    "COCO_val2014_000000000031.jpg": (50, 70),
    "1000092795.jpg": (41, 40),
    "my holiday.png": (33, 90),
}
IDS = ("25", "31", "1000092795", "my holiday")
POINTS = dict(zip(PICTURES.values(), (2, 1, 9, 8), strict=True))  # of a word, for each picture: four kinds of heads
TEXT = "a red Café, the dog’s “ball” ½ a ball: the 2 dogs"
HUNDREDTH = 0.005 + 1e-4  # pixels: half of what predictions are rounded to, and single precision


@dataclasses.dataclass
class Teller:
    """Stands in for a predictor: says something different of every picture, and keeps it."""

    told: dict[tuple[int, int], Prediction] = dataclasses.field(default_factory=dict)

    def set_image(self, pixels: np.ndarray) -> None:
        self.size = pixels.shape[1], pixels.shape[0]

    def predict(self, mode: str, **said: Any) -> Prediction:
        width, height = self.size
        rng = np.random.default_rng(width)
        text = said.get("text") or f"{TEXT} {width}"
        prediction = Prediction(text, (height, width))
        if mode == "trace":
            spans = np.asarray(split_words(text))
            # Some lie outside the picture, some words have no place.
            points = rng.uniform(-0.2, 1.2, (len(spans), POINTS[self.size], 2)) * self.size
            prediction = dataclasses.replace(
                prediction,
                words=[text[a:b] for a, b in spans],
                word_spans=spans,
                points=points.astype(np.float32),
                boxes=points_to_boxes(points),
                placed=rng.uniform(size=len(spans)) < 0.7,
                scores=np.ones(len(spans)),
            )
        elif mode != "caption":
            low, high = rng.uniform(0, 0.4, 2) * self.size, rng.uniform(0.5, 1, 2) * self.size
            mask = rng.uniform(size=(height, width)) < 0.5 * (self.size != PICTURES["1000092795.jpg"])
            mask[: height // 3], mask[:, : width // 4] = False, False
            box = np.asarray(said.get("box", [*low, *high]), np.float32)
            region = Region(text, box, mask if mode == "segment" else None, 0.75)
            prediction = dataclasses.replace(prediction, regions=[region])
        self.told[self.size] = prediction
        return prediction


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in PICTURES.items():
        save_gray(tmp_path / "pictures" / name, size)
    return tmp_path / "pictures"


def write(folder: Path, out: Path, name: str, mode: str, **said: Any) -> tuple[Path, dict[str, Prediction]]:
    """The file, and what was said of each picture, by the id that a narrative of it has."""
    teller, form = Teller(), raw_formats.raw_format(name, mode, said)
    asked = predict_folder.predict_folder(
        teller,  # type: ignore[arg-type]
        predict_folder.pictures_of(folder),
        out,
        mode,
        said,
        most_failures=0,
    )
    assert len(list(asked)) == len(PICTURES)
    assert predict_folder.write_raw(out, form, said) == {}
    return out / form.file, {id_: teller.told[size] for id_, size in zip(IDS, PICTURES.values(), strict=True)}


def build(folder: Path, data: Path, what: str, file: Path) -> None:
    """Nothing may be left out."""
    files = ["--annotations", str(file), "--images", str(folder), "--out", str(data)]
    assert main(["build", what, *files, "--max-skipped", "0"]) == 0


def test_a_narrative_gives_each_word_the_place_that_the_model_gave_it(folder: Path, tmp_path: Path) -> None:
    file, told = write(folder, tmp_path / "out", "localized_narratives", "trace")
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == [
        *("dataset_id", "image_id", "annotator_id", "caption", "timed_caption", "traces", "voice_recording")
    ]
    clock = [(item["start_time"], item["end_time"]) for item in first["timed_caption"]]
    assert clock == [(k, k + 1) for k in range(len(split_words(first["caption"])))]
    placed = np.flatnonzero(told[first["image_id"]].placed)
    assert [(stroke[0]["t"], stroke[-1]["t"]) for stroke in first["traces"]] == [clock[k] for k in placed]
    build(folder, tmp_path / "data", "localized_narratives", file)
    found = {
        key.removesuffix("#0"): one for key, one in examples(tmp_path / "data", "localized_narratives_coco").items()
    }
    assert found.keys() == set(IDS)
    for key, example in found.items():
        prediction = told[key]
        size = np.asarray(prediction.size[::-1])
        assert example["text"].decode() == prediction.text
        np.testing.assert_array_equal(example["word_spans"], prediction.word_spans)
        np.testing.assert_array_equal(example["word_located"], prediction.placed)
        assert 0 < prediction.placed.sum() < len(prediction.words)
        inside = np.clip(prediction.points, 0, size)
        expected = np.where(prediction.placed[:, None], points_to_boxes(inside), 0)
        np.testing.assert_allclose(example["word_boxes"] * np.tile(size, 2), expected, atol=HUNDREDTH)
        at = np.where(prediction.placed[:, None, None], inside, 0)
        # Through the points in their order: the first at the second's beginning, the last at its end.
        samples = example["word_points"] * size
        np.testing.assert_allclose(samples[:, [0, -1]], at[:, [0, -1]], atol=HUNDREDTH)
        if inside.shape[1] == 2:
            np.testing.assert_allclose(example["word_centers"] * size, at.mean(axis=1), atol=HUNDREDTH)


def test_captions_come_back_with_their_pictures(folder: Path, tmp_path: Path) -> None:
    """Also of pictures that COCO has no number for."""
    file, told = write(folder, tmp_path / "out", "coco", "caption")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert {image["file_name"]: (image["width"], image["height"]) for image in content["images"]} == PICTURES
    assert {"id", "image_id", "caption"} == set(content["annotations"][0])
    build(folder, tmp_path / "data", "coco_captions", file)
    found = examples(tmp_path / "data", "coco_captions").values()
    assert {one["image_id"].decode(): one["text"].decode() for one in found} == {k: p.text for k, p in told.items()}


def test_masks_come_back_with_their_texts(folder: Path, tmp_path: Path) -> None:
    """One is empty: its region is its box."""
    file, told = write(folder, tmp_path / "out", "coco", "segment", text="the dog’s ball")
    build(folder, tmp_path / "data", "visual_genome", file)
    found = examples(tmp_path / "data", "visual_genome_regions")
    numbers = {str(raw_formats.image_number(name)): key for name, key in zip(PICTURES, IDS, strict=True)}
    assert found.keys() == numbers.keys()
    for number, example in found.items():
        (region,) = told[numbers[number]].regions
        (text,), (box,), (mask,) = example["region_text"], example["region_box"], example["region_mask"]
        height, width = told[numbers[number]].size
        box = box * [width, height, width, height]
        assert text.decode() == region.text and region.mask is not None
        if not region.mask.any():
            assert not mask
            np.testing.assert_allclose(box, region.box, atol=2 * HUNDREDTH)
            continue
        np.testing.assert_array_equal(read_mask(mask), region.mask)
        rows, columns = np.nonzero(region.mask)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, extent, atol=1e-4)
    for one in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
        assert one["score"] == 0.75
        assert "segmentation" not in one or one["area"] == masks.area(one["segmentation"], "mask")


def test_regions_of_one_picture_are_annotations_of_their_own(tmp_path: Path) -> None:
    """Best first, as dense captions come; two have one text."""
    said = [("a dog", [1.0, 1, 3, 3], 0.9), ("a cat", [2.0, 0, 5, 4], 0.5), ("a dog", [0.0, 2, 6, 4], 0.25)]
    line = {"file": "7.png", "text": "a dog; a cat; a dog", "width": 6, "height": 4}
    line["regions"] = [{"text": text, "box": box, "score": score} for text, box, score in said]
    form = raw_formats.raw_format("coco", "densecap", {})
    assert form.write([line, {**line, "file": "8.png", "regions": []}], {}, tmp_path) == {}
    (picture,) = visual_genome.read_grit(tmp_path / form.file, None)
    content = json.loads((tmp_path / form.file).read_text())
    assert [(region.text, list(region.box or ())) for region in picture.regions] == [item[:2] for item in said]
    assert [item["score"] for item in content["annotations"]] == [0.9, 0.5, 0.25]
    assert [item["name"] for item in content["categories"]] == ["a cat", "a dog"] and len(content["images"]) == 2


@pytest.mark.parametrize(
    ("mode", "said"), [("refer", {"text": "the dog"}), ("describe", {"box": (4.5, 3.25, 30.0, 39.125)})]
)
def test_boxes_come_back_from_both_readers_of_instances(
    folder: Path, tmp_path: Path, mode: str, said: dict[str, Any]
) -> None:
    file, told = write(folder, tmp_path / "out", "coco", mode, **said)
    instances = coco.Instances(file)
    for picture in visual_genome.read_grit(file, None):
        key = dict(zip(PICTURES, IDS, strict=True))[picture.file_name]
        (region,) = picture.regions
        (expected,) = told[key].regions
        assert region.text == expected.text and picture.size == told[key].size and region.box is not None
        # Two roundings: of the corner and of the extent.
        np.testing.assert_allclose(region.box, expected.box, atol=2 * HUNDREDTH)
        objects = instances.find(Path(picture.file_name).stem, told[key].size)
        assert objects.names == [expected.text]
        height, width = told[key].size
        np.testing.assert_allclose(objects.boxes[0] * [width, height, width, height], region.box, atol=1e-4)
    assert len(instances.names) == (1 if mode == "refer" else len(PICTURES))


def test_a_region_that_is_described_by_its_mask_is_that_mask(folder: Path, tmp_path: Path) -> None:
    line = {"file": "7.png", "text": "a dog", "width": 6, "height": 4}
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5], mask[1, 4] = True, False
    form = raw_formats.raw_format("coco", "describe", {"mask": mask, "box": None})
    assert form.write([line], {"mask": mask}, tmp_path) == {}
    (one,) = json.loads((tmp_path / form.file).read_text())["annotations"]
    assert (one["image_id"], one["bbox"], one["area"], one["caption"]) == (7, [2, 1, 3, 2], 5, "a dog")
    np.testing.assert_array_equal(masks.decode(one["segmentation"], "mask"), mask)
    assert "score" not in one  # the model did not make it


def test_what_has_no_text_or_no_extent_is_named_and_left_out(tmp_path: Path) -> None:
    lines = [
        {"file": "a.png", "text": " ", "words": [], "width": 6, "height": 4},
        {"file": "b.png", "text": "two", "words": [{"word": "two"}], "width": 6, "height": 4},
    ]
    form = raw_formats.raw_format("localized_narratives", "trace", {})
    assert form.write(lines, {}, tmp_path) == {"a.png": "it has no text"}
    assert [json.loads(line)["image_id"] for line in (tmp_path / form.file).read_text().splitlines()] == ["b"]
    form = raw_formats.raw_format("coco", "caption", {})
    assert form.write(lines, {}, tmp_path) == {"a.png": "it has no text"}
    assert len(json.loads((tmp_path / form.file).read_text())["images"]) == 2
    regions = [{"text": "a", "box": [6.0, 0, 9, 4]}, {"text": " ", "box": [0, 0, 9, 4]}]
    lines = [{**line, "regions": [region]} for line, region in zip(lines, regions, strict=True)]
    form = raw_formats.raw_format("coco", "refer", {})
    assert form.write(lines, {}, tmp_path) == {"a.png": "a region has no extent", "b.png": "a region has no text"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "mode", "said", "message"),
    [
        ("voc", "trace", {}, "--format is 'voc', expected one of localized_narratives, coco"),
        ("coco", "trace", {}, "--mode is 'trace', expected one that --format coco can hold: caption, refer, segment, "),
        (
            "localized_narratives",
            "refer",
            {},
            "--format localized_narratives can hold: trace. Choose another of either",
        ),
        ("coco", "caption", {"points": [(1, 2)]}, "--point is given, expected none: a caption .* whole picture"),
        ("coco", "describe", {"points": [(1, 2)], "box": None}, "--box and --mask are missing, expected one of them"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(name: str, mode: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        raw_formats.raw_format(name, mode, said)
    assert "\n" not in str(caught.value)


def test_numbers_are_the_publishers_or_the_same_everywhere() -> None:
    numbers = {name: raw_formats.image_number(name) for name in (*PICTURES, "0025.jpg", "25.png", "000000000000.jpg")}
    assert list(numbers.values())[:3] == [25, 31, 1000092795] and numbers["25.png"] == 25
    assert numbers["000000000000.jpg"] == 0
    # A name that no reader finds by its number has one of ours; these two may never change.
    assert (numbers["my holiday.png"], numbers["0025.jpg"]) == (220159386066597, 46109037431904)
    for form in (raw_formats.raw_format("coco", "caption", {}), raw_formats.raw_format("coco", "refer", {})):
        form.check(["1.jpg", "2.jpg", "a.jpg"])
        with pytest.raises(
            ValueError, match=r"image id of '25.png' is 25, expected another than that of '0{10}25.jpg'"
        ):
            form.check(["000000000025.jpg", "25.png"])
    with pytest.raises(ValueError, match=r"image id of 'a.png' is 'a', expected another than that of 'a.jpg'. Rename"):
        raw_formats.raw_format("localized_narratives", "trace", {}).check(["a.jpg", "b.jpg", "a.png"])


def test_an_old_file_stays_where_writing_fails(folder: Path, tmp_path: Path) -> None:
    file, _ = write(folder, tmp_path / "out", "coco", "caption")
    before = file.read_bytes()
    form = raw_formats.raw_format("coco", "caption", {})
    with pytest.raises(KeyError):
        form.write([{"file": "1.png", "text": "no size"}], {}, tmp_path / "out")
    assert file.read_bytes() == before
    with PIL.Image.open(tmp_path / "out" / "pictures" / "my holiday.png.png"):
        pass
