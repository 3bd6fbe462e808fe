"""RefCOCO in its four forms: the same expressions come out of each, and what is wrong with a file is said."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio

from data_pipelines import DataError, mdetr, refcoco, uninext
from data_pipelines.__main__ import main
from data_pipelines.regions import Picture
from tests.data_pipelines.drawn import examples, save_gray, texts

# Annotation -> (picture, x, y, width, height); picture 581 is 64 x 48.
OBJECTS = {11: (581, 8, 12, 16, 24), 12: (581, 30, 4, 20, 10), 13: (590, 0, 0, 40, 40), 14: (600, 2, 2, 10, 10)}
# Ref -> (annotation, split, expressions)
REFS = {
    1: (11, "train", ["red ball", "ball on the left"]),
    2: (12, "train", ["blue one"]),
    3: (13, "val", ["the dog"]),
    4: (14, "testA", ["man"]),
}


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(number: int) -> dict[str, Any]:
    image, *box = OBJECTS[number]
    return {"id": number, "image_id": image, "bbox": box, "segmentation": polygon(*box), "category_id": 1, "iscrowd": 0}


def make_refs() -> list[dict[str, Any]]:
    sentence = iter(range(100))
    return [
        {
            "ref_id": ref,
            "ann_id": number,
            "image_id": OBJECTS[number][0],
            "file_name": f"COCO_train2014_{OBJECTS[number][0]:012d}_{number}.jpg",
            "split": split,
            "category_id": 1,
            "sentences": [
                {"sent_id": next(sentence), "sent": text, "raw": text.upper(), "tokens": text.split()} for text in told
            ],
        }
        for ref, (number, split, told) in REFS.items()
    ]


def image(number: int) -> dict[str, Any]:
    return {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "height": 48, "width": 64}


def make_instances() -> dict[str, Any]:
    return {
        "images": [image(number) for number in (581, 590, 600)],
        "annotations": [annotation(number) for number in OBJECTS],
        "categories": [{"id": 1, "name": "thing"}],
    }


def refer(folder: Path, name: str = "refcoco_unc", refs: Any = None, instances: Any = None) -> Path:
    """The publisher's folder of a set."""
    data_set, by = refcoco.SETS[name]
    place = folder / "refer" / data_set
    place.mkdir(parents=True, exist_ok=True)
    (place / f"refs({by}).p").write_bytes(pickle.dumps(make_refs() if refs is None else refs, 0))
    (place / "instances.json").write_text(json.dumps(make_instances() if instances is None else instances))
    return folder / "refer"


def tfds_file(path: Path) -> Path:
    refs = [
        {**ref, "ann": annotation(ref["ann_id"]), "dataset": "refcoco", "dataset_partition": "unc"}
        for ref in make_refs()
    ]
    path.write_text(json.dumps({"ref": refs}))
    return path


def mdetr_file(path: Path, split: str) -> Path:
    """One image of each expression, as MDETR writes them."""
    images, annotations = [], []
    for ref in make_refs():
        for sentence in ref["sentences"] if ref["split"] == split else ():
            number, box = len(images) + 1000, annotation(ref["ann_id"])
            images.append(
                {**image(ref["image_id"]), "id": number, "original_id": ref["image_id"], "caption": sentence["sent"]}
            )
            annotations.append({**box, "id": number, "image_id": number, "original_id": ref["ann_id"]})
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def uninext_file(path: Path) -> Path:
    found: dict[str, list[Any]] = {}
    for ref in make_refs():
        box = annotation(ref["ann_id"])
        entry = {"image_id": ref["image_id"], "width": 64, "height": 48, "bbox": box["bbox"], "category_id": 0}
        told = [sentence["sent"] for sentence in ref["sentences"]]
        found.setdefault(ref["split"], []).append({**entry, "mask": box["segmentation"], "expressions": told})
    path.write_text(json.dumps(found))
    return path


def flat(found: list[Picture]) -> set[tuple[Any, ...]]:
    """What all forms must agree on."""
    return {
        (picture.image_id, region.text, tuple(region.box or ()), json.dumps(region.mask))
        for picture in found
        for region in picture.regions
    }


def test_the_four_forms_say_the_same(tmp_path: Path) -> None:
    expected = refcoco.read_refer(refer(tmp_path), "refcoco_unc")
    assert {split: refcoco.counts(found) for split, found in expected.items()} == {
        "train": (3, 2, 1),
        "validation": (1, 1, 1),
        "testA": (1, 1, 1),
    }
    of_tfds = refcoco.read_tfds(tfds_file(tmp_path / "tfds.json"), "refcoco_unc")
    of_uninext = uninext.read(uninext_file(tmp_path / "uninext.json"), "refcoco_unc")
    of_uninext["validation"] = of_uninext.pop("val")
    for split, found in expected.items():
        of_mdetr = list(mdetr.read(mdetr_file(tmp_path / "m.json", {"validation": "val"}.get(split, split)), "any"))
        assert flat(found) == flat(of_tfds[split]) == flat(of_uninext[split]) == flat(of_mdetr)
    raw = refcoco.read_refer(tmp_path / "refer", "refcoco_unc", "raw")
    assert [region.text for picture in raw["testA"] for region in picture.regions] == ["MAN"]


def test_a_set_is_built_with_all_its_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (581, 590, 600):
        save_gray(tmp_path / "images" / f"COCO_train2014_{number:012d}.jpg")
    options = ["--name", "refcoco_unc", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(["build", "refcoco", "--refer", str(refer(tmp_path)), *options]) == 0
    said = capsys.readouterr().out
    assert "note: refcoco_unc, split testA holds 1 expressions of 1 objects on 1 pictures, published 5,657" in said
    (example,) = examples(tmp_path / "out", "refcoco_unc").values()
    assert texts(example["region_text"]) == ["red ball", "ball on the left", "blue one"]
    assert texts(example["object_id"]) == ["11", "11", "12"] and texts(example["region_id"]) == ["0", "1", "2"]
    np.testing.assert_allclose(example["region_box"][2], np.array([30, 4, 50, 14]) / [64, 48, 64, 48], rtol=1e-6)
    assert all(example["region_mask"])
    assert set(examples(tmp_path / "out", "refcoco_unc", "validation")) == {"590"}
    # Another source is another build: what is there stays.
    for form in (
        ["--tfds", str(tfds_file(tmp_path / "t.json"))],
        ["--uninext", str(uninext_file(tmp_path / "u.json"))],
    ):
        assert main(["build", "refcoco", *map(str, form), "--splits", "testA", *options]) == 2
        assert "is from other inputs" in capsys.readouterr().err


def test_the_merged_set_holds_no_evaluation_picture(tmp_path: Path) -> None:
    """RefCOCO evaluates on picture 590; in RefCOCOg it is one to train on."""
    others = copy.deepcopy(make_refs())
    others[2]["split"] = "train"
    for ref in others:
        for sentence in ref["sentences"]:
            sentence["sent_id"] += 1000
    for name, refs in (("refcoco_unc", None), ("refcocoplus_unc", None), ("refcocog_umd", others)):
        refer(tmp_path, name, refs)
    sets = {name: refcoco.read_refer(tmp_path / "refer", name) for name in refcoco._IN_MIXED}
    merged = refcoco.mixed(sets)
    assert {picture.image_id for picture in merged} == {"581"}
    ids = [region.region_id for picture in merged for region in picture.regions]
    assert len(ids) == len(set(ids)) == 9 and "refcocog_umd:1000" in ids
    assert {region.object_id for picture in merged for region in picture.regions} == {"11", "12"}


def test_published_counts_add_up_to_the_papers() -> None:
    totals = {name: tuple(map(sum, zip(*splits.values(), strict=True))) for name, splits in refcoco.PUBLISHED.items()}
    assert totals["refcoco_unc"] == (142_210, 50_000, 19_994)
    assert totals["refcocoplus_unc"] == (141_564, 49_856, 19_992)
    assert totals["refcocog_umd"] == (95_010, 49_822, 25_799)
    assert totals["refcocog_google"][:2] == (95_010, 49_822)  # it is split by objects: pictures are in both
    published = refcoco.PUBLISHED["refcoco_unc"]["testA"]
    assert refcoco.compare("refcoco_unc", "testA", published) == ""
    assert refcoco.compare("refcoco_unc", "testA", published._replace(objects=0)) == ""
    assert "holds 5,656 expr" in refcoco.compare("refcoco_unc", "testA", published._replace(expressions=5656))
    assert refcoco.compare("my_own", "train", published) == ""


def test_expressions_without_object_or_picture_are_named(tmp_path: Path) -> None:
    refs, instances = make_refs(), make_instances()
    refs[0]["ann_id"], refs[1]["image_id"], refs[2]["image_id"] = 99, 777, 600
    found = refcoco.read_refer(refer(tmp_path, refs=refs, instances=instances), "refcoco_unc")
    problems = [region.problem for split in found.values() for picture in split for region in picture.regions]
    assert problems == [
        *["annotation 99 of ref 1 is missing, expected it among the instances"] * 2,
        "image 777 of ref 2 is missing, expected it among the instances",
        "image of ref 3 is 600, expected 590",
        "",
    ]


def wrong_files(folder: Path) -> list[tuple[list[str], str]]:
    """(options, what is said) of sources that cannot be used."""
    place = refer(folder) / "refcoco"
    whole = (place / "instances.json").read_text()

    def cut(name: str, text: str) -> str:
        (folder / name).write_text(text)
        return str(folder / name)

    broken = folder / "broken" / "refcoco"
    broken.mkdir(parents=True)
    (broken / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": 1}]))
    (broken / "instances.json").write_text(whole)
    evil = folder / "evil" / "refcoco"
    evil.mkdir(parents=True)
    (evil / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (evil / "instances.json").write_text(whole)
    short = folder / "short" / "refcoco"
    short.mkdir(parents=True)
    (short / "refs(unc).p").write_bytes((place / "refs(unc).p").read_bytes())
    (short / "instances.json").write_text(whole[:-100])
    return [
        (["--refer", str(folder / "evil")], "asks for 'os.system', expected plain data only"),
        (["--refer", str(folder / "broken")], "refs(unc).p' is broken (KeyError: 'ann_id'), expected a list of refs"),
        (["--refer", str(folder / "short")], "instances.json' is broken (JSONDecodeError"),
        (["--refer", str(folder / "none")], "expected refcoco/refs(unc).p and refcoco/instances.json in it"),
        (["--tfds", cut("a.json", '{"ref": [')], "is broken (JSONDecodeError"),
        (["--tfds", cut("b.json", '{"ref": []}')], "holds no expression of refcoco_unc"),
        (["--tfds", cut("c.json", "[]")], "is broken (TypeError"),
        (["--mdetr", cut("d.json", whole), "--splits", "train"], "is broken (KeyError: 'caption')"),
        (["--mdetr", cut("e.json", whole)], "--splits is None, expected the one split"),
        (["--uninext", cut("f.json", '{"train": [{"image_id": 1}]}')], "is broken (KeyError"),
        (["--uninext", cut("g.json", '{"train": [{"data_source": "x"}]}')], "data_source is 'x', expected coco, vg"),
        (["--uninext", cut("h.json", "{}"), "--splits", "train"], "--splits has 'train', expected some of"),
        (["--refer", str(folder), "--name", "refcoco"], "--name is 'refcoco', expected one of refcoco_unc"),
    ]


def test_files_that_cannot_be_used_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for options, message in wrong_files(tmp_path):
        fixed = ["--name", "refcoco_unc", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
        assert main(["build", "refcoco", *fixed, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1, error
        assert not list(tmp_path.glob("out/*/[!.]*"))


def test_captions_of_several_objects_are_cut_to_their_phrases(tmp_path: Path) -> None:
    file = mdetr_file(tmp_path / "m.json", "testA")
    content = json.loads(file.read_text())
    content["images"][0]["caption"] = "a man and a dog"
    first = content["annotations"][0]
    content["annotations"] = [{**first, "tokens_positive": [[0, 1], [2, 5]]}, {**first, "tokens_positive": [[10, 15]]}]
    file.write_text(json.dumps(content))
    ((picture),) = mdetr.read(file, "any")
    assert [(region.region_id, region.text) for region in picture.regions] == [("1000#0", "a man"), ("1000#1", "a dog")]


def test_pictures_of_several_collections_stay_apart(tmp_path: Path) -> None:
    entry = {"image_id": 7, "width": 64, "height": 48, "bbox": [1, 2, 3, 4], "expressions": ["a"]}
    sources = [{**entry, "data_source": source} for source in ("coco", "vg", "flickr")]
    (tmp_path / "mixed.json").write_text(json.dumps({"train": sources}))
    found = uninext.read(tmp_path / "mixed.json", "mixed")["train"]
    assert [(picture.image_id, picture.file_name, picture.name) for picture in found] == [
        ("7", "COCO_train2014_000000000007.jpg", "coco:7"),
        ("vg_7", "7.jpg", "visual_genome:7"),
        ("flickr_7", "7.jpg", "flickr30k:7"),
    ]
    assert len({region.region_id for picture in found for region in picture.regions}) == 3


def test_real_files(samples: Path, tmp_path: Path) -> None:
    found = refcoco.read_refer(samples / "refcoco" / "refcocog_umd", "refcocog_umd")
    assert {split: refcoco.counts(pictures) for split, pictures in found.items()} == {
        "train": (9, 5, 5),
        "test": (9, 5, 5),
        "validation": (10, 5, 5),
    }
    assert not any(region.problem for split in found.values() for picture in split for region in picture.regions)
    excerpt = samples / "refcoco" / "tfds_ref_coco_excerpt.json"
    assert refcoco.counts(refcoco.read_tfds(excerpt, "refcoco_unc")["train"]) == (5, 2, 1)
    with pytest.raises(DataError, match=r"no expression of refcocoplus_google, expected some; it holds refcoco \("):
        refcoco.read_tfds(excerpt, "refcocoplus_google")
    mini = samples / "refcoco" / "google_refexp_mini"
    out = ["--images", str(mini / "images"), "--out", str(tmp_path)]
    assert (
        main(["build", "refcoco", "--name", "refcocog_google", "--refer", str(mini), *out, "--max-skipped", "7"]) == 0
    )
    built = examples(tmp_path, "refcocog_google", "validation")
    assert {key: texts(example["region_text"]) for key, example in built.items()} == {
        "425988": ["birds in water"],
        "529": ["a motocross professional sitting on their bike with a woman who is strattling him"],
    }
    assert all(content for example in built.values() for content in example["region_mask"])


def test_the_tasks_are_registered() -> None:
    names = seqio.TaskRegistry.names()
    assert {*refcoco.SETS, refcoco.MIXED, "refcocog_umd_regions"} <= set(names)
    assert seqio.TaskRegistry.get("refcocog_umd_regions").source.name == "refcocog_umd"
