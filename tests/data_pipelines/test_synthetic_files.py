"""Scenes on disk, in the forms of RefCOCO, COCO, Visual Genome and LLaVA, read back by the readers of real files."""

import dataclasses
import io
import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from data_pipelines import synthetic
from data_pipelines.synthetic import ALSO, Files, World
from data_pipelines.synthetic_expressions import expressions, phrase
from data_pipelines.synthetic_questions import questions

WORLD = World(size=96, max_overlap=0.3)
SCENES = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return synthetic.write(WORLD, tmp_path_factory.mktemp("raw"), SCENES, 7, "validation", also=ALSO)


@pytest.fixture(scope="module")
def scenes() -> list[synthetic.Scene]:
    return [synthetic.scene(WORLD, 7, index, "validation") for index in range(SCENES)]


# Masks


def covers(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """How many of the polygons each pixel's middle lies in, by counting crossings."""
    height, width = size
    ys, xs = np.mgrid[:height, :width] + 0.5
    count = np.zeros(size, int)
    for polygon in polygons:
        ring = np.reshape(polygon, (-1, 2))
        inside = np.zeros(size, bool)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
            if y0 != y1:
                at = x0 + (ys - y0) * (x1 - x0) / (y1 - y0)
                inside ^= ((y0 > ys) != (y1 > ys)) & (xs < at)
        count += inside
    return count


def test_polygons_cover_exactly_the_pixels_of_a_mask() -> None:
    """Masks of noise, with holes, parts, single pixels, diagonals and edges: no pixel twice, none left out."""
    rng = np.random.default_rng(0)
    masks = [rng.random((h, w)) < share for h, w in ((1, 1), (7, 5), (12, 9)) for share in (0.1, 0.5, 0.9, 1.1, -1)]
    ring = np.ones((9, 9), bool)
    ring[3:6, 4] = False
    for mask in [*masks, ring]:
        polygons = synthetic.polygons_of(mask)
        np.testing.assert_array_equal(covers(polygons, mask.shape), mask.astype(int))
        for polygon in polygons:
            assert len(polygon) >= 8 and len({(x, y) for x, y in np.reshape(polygon, (-1, 2)).tolist()}) >= 4
    assert len(synthetic.polygons_of(np.ones((4, 6), bool))[0]) == 8, "a rectangle has four corners"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with NumPy 2
def test_pycocotools_draws_the_same_pixels() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(1).random((20, 30)) < 0.6
    runs = coco.merge(coco.frPyObjects(synthetic.polygons_of(mask), 20, 30))
    np.testing.assert_array_equal(coco.decode(runs).astype(bool), mask)


def painted(told: synthetic.Scene, fine: int = 8) -> np.ndarray:
    """float[K, H, W]: share of each pixel that shows each object; painted one over the other, much too large."""
    side = told.world.size
    canvas = PIL.Image.new("L", (side * fine, side * fine), 0)
    for k, thing in enumerate(told.things):
        PIL.ImageDraw.Draw(canvas).polygon((thing.outline * side * fine).reshape(-1).tolist(), fill=k + 1)
    blocks = np.asarray(canvas).reshape(side, fine, side, fine)
    return np.stack([(blocks == k + 1).mean((1, 3)) for k in range(len(told.things))])


def agree(mask: np.ndarray, shares: np.ndarray) -> bool:
    """Whether a mask has what mostly shows the object and no other pixel; on the edge PIL may be a third of one off."""
    return bool(mask[shares > 0.85].all() and not mask[shares < 0.15].any())


def test_masks_are_of_what_can_be_seen(files: Files, scenes: list[synthetic.Scene]) -> None:
    annotations = json.loads(files.instances.read_text())["annotations"]
    partly = 0
    for told in scenes:
        picture = painted(told)
        own = [a for a in annotations if a["image_id"] == told.image_id]
        masks = [covers(a["segmentation"], picture.shape[1:]) > 0 for a in own]
        for k, (annotation, mask) in enumerate(zip(own, masks, strict=True)):
            hidden = synthetic.visible(told, k) is not None
            partly += hidden
            assert agree(mask, picture[k])
            if hidden:
                assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            seen = picture[k] > 0.1
            rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(np.asarray(extent) - [x, y, x + width, y + height]).max() < 2.5
        for first in range(len(masks)):
            for second in range(first):
                both = (masks[first] & masks[second]).sum()
                assert both <= 0.03 * min(masks[first].sum(), masks[second].sum()) + 4
    assert partly > 8


def test_a_hidden_object_loses_what_hides_it() -> None:
    """Two squares, the later one over the right half of the first."""
    told = synthetic.scene(World(size=40, objects=(2, 2), shapes=("square", "circle"), distractors="free"), 0, 0)

    def square(x0: float, y0: float, x1: float, y1: float) -> synthetic.Thing:
        outline = np.asarray([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return dataclasses.replace(told.things[0], outline=outline, box=(x0, y0, x1, y1))

    scene = dataclasses.replace(told, things=(square(0.25, 0.25, 0.75, 0.75), square(0.5, 0.2, 0.9, 0.8)))
    shown = synthetic.visible(scene, 0)
    assert shown is not None and synthetic.visible(scene, 1) is None
    expected = np.zeros((40, 40), bool)
    expected[10:30, 10:20] = True
    # PIL paints an edge pixel more or less.
    assert ((shown >= 0.5) ^ expected).sum() <= 60
    assert not (shown >= 0.5)[:, 21:].any() and (shown >= 0.5)[11:29, 11:19].all()


# The files


def test_refs_are_plain_and_in_refcocos_form(files: Files, scenes: list[synthetic.Scene]) -> None:
    assert files.refs and files.refs.name == "refs(unc).p"
    refs = pickle.loads(files.refs.read_bytes())
    annotations = {a["id"]: a for a in json.loads(files.instances.read_text())["annotations"]}
    fields = {"ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids", "sentences"}
    found = []
    for ref in refs:
        assert set(ref) == fields and ref["split"] == "val"
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        annotation = annotations[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        for sentence in ref["sentences"]:
            assert set(sentence) == {"sent_id", "sent", "raw", "tokens"}
            kind = synthetic.kind_of(sentence["sent_id"])
            found.append((ref["image_id"], ref["ann_id"] % 100, sentence["sent"], kind))
    expected = [(told.image_id, e.thing, e.text, e.meaning.kind) for told in scenes for e in expressions(told)]
    assert sorted(found) == sorted(expected)
    ids = [number for ref in refs for number in ref["sent_ids"]]
    assert len(set(ids)) == len(ids) and len({ref["ref_id"] for ref in refs}) == len(refs)


def test_regions_are_in_visual_genomes_form(files: Files, scenes: list[synthetic.Scene]) -> None:
    assert files.region_descriptions and files.image_data
    told = json.loads(files.region_descriptions.read_text())
    data = json.loads(files.image_data.read_text())
    assert [picture["image_id"] for picture in data] == [scene.image_id for scene in scenes]
    assert all(set(p) == {"image_id", "width", "height", "url", "coco_id", "flickr_id"} for p in data)
    for entry, scene in zip(told, scenes, strict=True):
        assert entry["id"] == scene.image_id
        assert [region["phrase"] for region in entry["regions"]] == [phrase(thing) for thing in scene.things]
        for k, (region, thing) in enumerate(zip(entry["regions"], scene.things, strict=True)):
            assert set(region) == {"region_id", "width", "height", "image_id", "phrase", "y", "x"}
            box = [region["x"], region["y"], region["x"] + region["width"], region["y"] + region["height"]]
            assert all(type(value) is int for value in box)
            if synthetic.visible(scene, k) is None:
                assert np.abs(np.asarray(thing.box) * 96 - box).max() <= 0.51


def test_questions_are_in_llavas_form(files: Files, scenes: list[synthetic.Scene]) -> None:
    assert files.questions
    for entry, scene in zip(json.loads(files.questions.read_text()), scenes, strict=True):
        assert set(entry) == {"id", "image", "conversations"} and (files.images / entry["image"]).is_file()
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        asked = [turn["value"] for turn in turns[::2]]
        assert asked[0].startswith("<image>\n") and not any("<image>" in text for text in asked[1:])
        pairs = zip((text.removeprefix("<image>\n") for text in asked), (t["value"] for t in turns[1::2]), strict=True)
        assert tuple(pairs) == tuple(map(tuple, questions(scene)))


def test_a_vocabulary_is_trained_on_what_is_said_and_what_asks(files: Files, scenes: list[synthetic.Scene]) -> None:
    found = set(synthetic.texts(files))
    for told in scenes:
        assert {f"where is {one.text}" for one in expressions(told)} <= found
        assert {phrase(thing) for thing in told.things} <= found
        assert {f"Question: {one.text} Answer:" for one in questions(told)} | {
            one.answer for one in questions(told)
        } <= found
    assert "an object of" in found
    few = synthetic.texts(
        files, most=2
    )  # narratives, expressions; phrases and what asks for them; questions and answers
    assert len(few) == 2 + 2 + 4 + 4
    alone = dataclasses.replace(files, refs=None, region_descriptions=None, questions=None)
    assert len(synthetic.texts(alone)) == SCENES


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    plain = synthetic.write(WORLD, tmp_path / "plain", 2, 0)
    assert {path.name for path in plain.narratives.parent.iterdir()} == {
        "narratives.jsonl", "instances.json", "images", "world.json",
    }  # fmt: skip
    assert plain.refs is plain.region_descriptions is plain.image_data is plain.questions is None
    one = synthetic.write(WORLD, tmp_path / "one", 2, 0, also=("regions",))
    assert one.region_descriptions and one.region_descriptions.is_file() and one.refs is None
    assert plain.narratives.read_bytes() == one.narratives.read_bytes()
    with pytest.raises(FileExistsError, match="holds something else"):
        synthetic.write(WORLD, tmp_path / "plain", 2, 0, also=ALSO)
    # In any order it is the same.
    both = synthetic.write(WORLD, tmp_path / "both", 2, 0, also=("questions", "expressions"))
    assert synthetic.write(WORLD, tmp_path / "both", 2, 0, also=("expressions", "questions")) == both
    with pytest.raises(ValueError, match=r"also is \('boxes',\), expected some of"):
        synthetic.write(WORLD, tmp_path, 2, 0, also=("boxes",))


def test_command_line_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.main(["--out", str(tmp_path), "--scenes", "2", "--size", "64", "--also", *ALSO])
    said = capsys.readouterr().out.replace("\n", "")
    for name in ("refs(unc).p", "region_descriptions.json", "image_data.json", "questions.json"):
        assert name in said and (tmp_path / "train" / name).is_file()


# Through the builders of real sets


@pytest.fixture(scope="module")
def built(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_pipelines import synthetic_regions

    data = tmp_path_factory.mktemp("data")
    reports = synthetic_regions.build(data, files, "validation")
    assert list(reports) == ["synthetic_expressions", "synthetic_regions", "synthetic_questions"]
    return data


def records(data: Path, name: str) -> dict[str, dict]:
    import tensorflow_datasets as tfds

    folder = next((data / name).iterdir())
    return {
        r["image_id"].decode(): r
        for r in tfds.builder_from_directory(folder).as_dataset("validation").as_numpy_iterator()
    }


def test_what_is_built_is_what_was_drawn(built: Path, scenes: list[synthetic.Scene]) -> None:
    from pixel_align.evaluation import seen

    pytest.importorskip("pycocotools")
    found, regions = records(built, "synthetic_expressions"), records(built, "synthetic_regions")
    assert len(regions) == SCENES
    for told in scenes:
        rows = regions[str(told.image_id)]["regions"]
        assert [text.decode() for text in rows["text"]] == [phrase(thing) for thing in told.things]
        spoken = expressions(told)
        if not spoken:
            assert str(told.image_id) not in found
            continue
        rows = found[str(told.image_id)]["regions"]
        assert [text.decode() for text in rows["text"]] == [e.text for e in spoken]
        for k, expression in enumerate(spoken):
            assert rows["region_id"][k].decode().endswith(f":{expression.meaning.kind}")
            thing = told.things[expression.thing]
            if synthetic.visible(told, expression.thing) is None:
                np.testing.assert_allclose(rows["box"][k], thing.box, atol=1e-3)
            with PIL.Image.open(io.BytesIO(rows["mask"][k])) as mask:
                assert agree(np.asarray(mask), painted(told)[expression.thing])
    for name in ("synthetic_expressions", "synthetic_regions"):
        names = seen.read(next((built / name).iterdir()), "validation")
        assert names and all(value.startswith("synthetic:") for value in names.values()), "none of COCO's pictures"


def test_scores_are_also_given_for_each_kind() -> None:
    from data_pipelines import synthetic_regions

    box, other = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    target = {
        "region_id": ["11:attribute", "22:relation", "32:relation"],
        "region_text": ["red circle", "circle left of the star", "star above the cross"],
        "boxes": [box, box, box],
        "masks": [None] * 3,
    }
    none = {key: [] for key in target}
    figures = synthetic_regions.scores(
        [target, none], [{"boxes": [box, box, other], "masks": None}, {"boxes": [], "masks": None}]
    )
    assert figures["P@0.5"] == pytest.approx(2 / 3)
    assert (figures["P@0.5_attribute"], figures["P@0.5_relation"]) == (1.0, 0.5) and "P@0.5_size" not in figures
