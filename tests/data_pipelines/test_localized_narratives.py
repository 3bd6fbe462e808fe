"""Localized Narratives from the publisher's lines to the examples of a Task."""

import gzip
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError, alignment, building, coco, narratives, parts, pictures
from data_pipelines import localized_narratives as ln
from data_pipelines.__main__ import main
from data_pipelines.alignment import Utterance
from pixel_align.evaluation import seen
from pixel_align.image import MAX_PIXELS, ImageError, read_image


def narrative(image_id: str, caption: str = "a red ball", **changes: Any) -> dict[str, Any]:
    """A record of the publisher's seven fields: one utterance per word, one second each, the mouse moving right."""
    words = str(caption).split()
    return {
        "dataset_id": "mscoco_val2017",
        "image_id": image_id,
        "annotator_id": 7,
        "caption": caption,
        "timed_caption": [
            {"utterance": word, "start_time": float(i), "end_time": i + 1.0} for i, word in enumerate(words)
        ],
        "traces": [[{"x": t / 10, "y": 0.5, "t": float(t)} for t in range(len(words) + 1)]],
        "voice_recording": "recordings/1.ogg",
        **changes,
    }


def utterance(text: str) -> dict[str, Any]:
    return {"utterance": text, "start_time": 0.0, "end_time": 1.0}


def write_lines(path: Path, records: list[Any]) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def save_picture(path: Path, size: tuple[int, int] = (32, 24), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    PIL.Image.fromarray(ramp).convert(mode).save(path, **options)
    return path


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """(annotations, images): three narratives on two pictures."""
    annotations = write_lines(
        tmp_path / "narratives.jsonl",
        [narrative("1", "a red ball"), narrative("25"), narrative("1", "a café ½  😀 dog")],
    )
    for image_id in ("1", "25"):
        save_picture(tmp_path / "images" / f"{image_id.zfill(12)}.jpg")
    return annotations, tmp_path / "images"


def inputs_of(world: tuple[Path, Path], **changes: Any) -> ln.Inputs:
    return ln.Inputs(annotations=(str(world[0]),), images=(str(world[1]),), **changes)


def examples(folder: Path, split: str = "train", task: str = ln.NAME, **changes: Any) -> list[dict[str, Any]]:
    found = seqio.get_mixture_or_task(task)
    dataset = found.replace(source=found.source.at(folder)).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False, **changes
    )
    return list(dataset.as_numpy_iterator())


# Reader


def test_lines_are_read_from_shards_globs_and_gzip(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "a-0.jsonl", [narrative("1"), "", narrative("2")])
    (tmp_path / "a-1.jsonl").write_bytes(gzip.compress(json.dumps(narrative("3")).encode()))  # gzip without the name
    lines = narratives.read_lines([str(tmp_path / "a-*.jsonl"), str(plain)])
    found = [(where, narratives.parse_narrative(line)) for where, line in lines]
    assert [(where, item.image_id) for where, item in found] == [
        ("a-0.jsonl:1", "1"),
        ("a-0.jsonl:3", "2"),
        ("a-1.jsonl:1", "3"),
    ]
    first = found[0][1]
    assert first.utterances[1] == Utterance("red", 1.0, 2.0)
    np.testing.assert_array_equal(first.traces[0][2], [0.2, 0.5, 2.0])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ('{"caption": "\xff', "not JSON"),
        ("[]", "is a list, expected an object"),
        (json.dumps(narrative("1", caption=" ")), "caption is empty"),
        (json.dumps(narrative("1", caption=5)), "caption is a int, expected a str"),
        (json.dumps({k: v for k, v in narrative("1").items() if k != "traces"}), "traces is missing, expected a list"),
        (json.dumps(narrative("1", annotator_id=True)), "annotator_id is a bool"),
        (json.dumps(narrative("", "x")), "image_id is empty"),
        (json.dumps(narrative("1", timed_caption=["a"])), "timed_caption holds a str"),
        (json.dumps(narrative("1", timed_caption=[{"utterance": "a", "start_time": 0}])), "end_time is None"),
        (
            json.dumps(narrative("1", timed_caption=[{"utterance": "a", "start_time": 0, "end_time": float("nan")}])),
            "end_time is nan, expected a number",
        ),
        (json.dumps(narrative("1", traces=[{"x": 1}])), "traces holds something else"),
        (json.dumps(narrative("1", traces=[[{"x": 0.1, "y": 0.1}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", traces=[[{"x": "0.1", "y": 0.1, "t": 0}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", traces=[[{"x": True, "y": True, "t": False}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", traces=[[{"x": float("inf"), "y": 0.1, "t": 0}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", caption="half \ud83d")), "half of a surrogate pair"),
        (
            json.dumps(narrative("1", timed_caption=[{"utterance": "a", "start_time": 0, "end_time": 10**400}])),
            "end_time is 1000.*expected a number of at most 1e\\+09",
        ),
        (json.dumps(narrative("1", traces=[[{"x": 0.1, "y": 0.1, "t": 10**400}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", traces=[[{"x": [1, 2], "y": 0.1, "t": 0}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", traces=[[{key: [1, 2, 3] for key in "xyt"}]])), "lacks x, y or t"),
        (json.dumps(narrative("1", annotator_id=2**70)), "annotator_id is .*expected a number of 64 bits"),
        ('{"caption": ' + "[" * 200_000 + "]" * 200_000 + "}", "not JSON"),
        (json.dumps(narrative("1", caption="a " * 2001)), "caption has 2001 words"),
        (json.dumps(narrative("1", timed_caption=[utterance("a " * 1001)] * 2)), "timed_caption has 2002 words"),
        (
            json.dumps(narrative("1", timed_caption=[utterance("")] * 2001)),
            "timed_caption has 2001 words or utterances",
        ),
    ],
)
def test_a_bad_line_says_why(line: str, why: str) -> None:
    with pytest.raises(narratives.BadRecord, match=why):
        narratives.parse_narrative(line.encode("latin-1") if "\xff" in line else line)


def test_what_real_files_hold_is_no_bad_record(samples: Path) -> None:
    fragment = (samples / "localized_narratives" / "ln_record_without_traces_FRAGMENT.json").read_text()
    read = narratives.parse_narrative(fragment)
    assert read.traces == () and read.utterances[0] == Utterance("In the", 0.0, 0.0)
    odd = narrative("1", traces=[[], [{"x": -0.1, "y": 1.2, "t": 3}, {"x": 0.5, "y": 0.5, "t": 1}]])
    assert [len(stroke) for stroke in narratives.parse_narrative(json.dumps(odd)).traces] == [0, 2]
    assert len(narratives.parse_narrative(json.dumps(narrative("1", caption="a " * 2000))).caption) == 4000
    assert narratives.parse_narrative(json.dumps(narrative(5))).image_id == "5"  # an id as a number
    assert narratives.parse_narrative(json.dumps(narrative("1", timed_caption=[], traces=[]))).utterances == ()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    whole = gzip.compress(json.dumps(narrative("1")).encode() * 1000)
    (tmp_path / "short.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.jsonl.gz").write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    for name, message in (
        ("none.jsonl", "expected a file that exists"),
        ("none-*.jsonl", "expected a file that exists"),
        ("empty.jsonl", "is empty, expected one narrative per line"),
        ("short.jsonl.gz", "short.jsonl.gz' is broken"),
        ("damaged.jsonl.gz", "damaged.jsonl.gz' is broken"),
    ):
        with pytest.raises(DataError, match=message):
            list(narratives.read_lines([str(tmp_path / name)]))


# Pictures


def test_pictures_are_found_by_id(tmp_path: Path) -> None:
    names = ["000000000025.jpg", "b/000000000026.png", "COCO_val2014_000000000027.jpg", "x/y/000025.jpeg", "plain.JPG"]
    for name in [*names, "twice/same.jpg", "again/same.jpg", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    index = pictures.PictureIndex([tmp_path])
    for image_id, name in zip(["25", "26", "27", "x/y/000025", "plain"], names, strict=True):
        assert index.find(image_id) == tmp_path / name, image_id
    assert index.find("twice/same") == tmp_path / "twice/same.jpg"
    for image_id in ("same", "28", "notes", "../plain", "x", ""):  # "same" is ambiguous
        assert index.find(image_id) is None, image_id
    with pytest.raises(DataError, match="image folder is .*none.*, expected a folder"):
        pictures.PictureIndex([tmp_path / "none"])


def test_links_may_lead_in_circles_and_the_order_of_the_disk_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("z/1.jpg", "z/2.jpg", "z/2.png", "z/deep/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "deep" / "loop").symlink_to(tmp_path)
    index = pictures.PictureIndex([tmp_path])
    assert len(index) == 3
    assert index.find("1") == tmp_path / "z/1.jpg" and index.find("z/2") == tmp_path / "z/2.jpg"
    scandir = os.scandir

    class Reversed(list):  # as os.walk wants it
        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> Any:
            if not self:
                raise StopIteration
            return self.pop(0)

        def __iter__(self) -> "Reversed":
            return self

    def backwards(path: str) -> Reversed:
        with scandir(path) as entries:
            return Reversed(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", backwards)
    again = pictures.PictureIndex([tmp_path])
    assert (again._by_path, again._by_name) == (index._by_path, index._by_name)


def test_what_is_stored_can_be_read_again() -> None:
    """Building and predicting share one limit; a larger stored side could break it."""
    side = int(MAX_PIXELS**0.5)
    assert ln.Inputs((), ()).max_pixels == MAX_PIXELS
    content, size = pictures.encode_jpeg(
        np.zeros((side + 10, side + 10, 3), np.uint8), ln.Inputs((), (), max_side=side).max_side
    )
    assert size == (side, side) and read_image(content).shape == (side, side, 3)
    with pytest.raises(DataError, match=f"--max-side is {side + 1}, expected 1 to {side} pixels"):
        ln.Inputs((), (), max_side=side + 1)


def test_an_upright_rgb_jpeg_keeps_its_bytes(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "a.jpg", (32, 24))
    content, size = pictures.upright_jpeg(path, MAX_PIXELS, pictures.MAX_SIDE)
    assert content == path.read_bytes() and size == (24, 32)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("gray.jpg", "L", {}),
        ("cmyk.jpg", "CMYK", {}),
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
        ("wide.png", "I;16", {}),
    ],
)
def test_other_modes_become_rgb(tmp_path: Path, name: str, mode: str, options: dict[str, Any]) -> None:
    path = tmp_path / name
    if mode == "I;16":
        PIL.Image.fromarray(np.full((24, 32), 40000, np.uint16)).save(path)
    else:
        save_picture(path, (32, 24), mode, **options)
    content, size = pictures.upright_jpeg(path, MAX_PIXELS, pictures.MAX_SIDE)
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 24))
    assert size == (24, 32)


def test_a_rotated_picture_is_stored_upright(tmp_path: Path) -> None:
    # White on the left in the file; "turn by 90 degrees clockwise to view": white on top.
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    content, size = pictures.upright_jpeg(tmp_path / "a.jpg", MAX_PIXELS, pictures.MAX_SIDE)
    assert size == (32, 24)
    with PIL.Image.open(io.BytesIO(content)) as image:
        upright = np.asarray(image).astype(int)
        assert image.getexif().get(0x0112, 1) == 1
    assert upright[:14].min() > 200 and upright[18:].max() < 50


def test_large_pictures_are_reduced_and_larger_ones_refused(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "a.jpg", (400, 100))
    content, size = pictures.upright_jpeg(path, MAX_PIXELS, 100)
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert image.size == (100, 25) and size == (25, 100)
    with pytest.raises(ImageError, match="40000 pixels, expected at most 1000"):
        pictures.upright_jpeg(path, 1000, 100)


# Objects


def test_objects_are_fractions_of_the_picture_without_crowds(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    content = {
        "categories": [{"id": 3, "name": "small red circle"}],
        "images": [
            {"id": 25, "file_name": "000000000025.jpg", "height": 50, "width": 100},
            {"id": 26, "file_name": "26.jpg", "height": 5, "width": 10},
        ],
        "annotations": [
            {"image_id": 25, "category_id": 3, "bbox": [10, 10, 20, 20], "iscrowd": 0, "segmentation": [[1, 2]]},
            {"image_id": 25, "category_id": 3, "bbox": [90, 40, 50, 50]},  # beyond the edge
            {"image_id": 25, "category_id": 3, "bbox": [10, 10, 0, 5]},  # no extent
            {"image_id": 25, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
    }
    path.write_text(json.dumps(content))
    instances = coco.Instances(path)
    for image_id in ("25", "000000000025", "0025"):
        found = instances.find(image_id, (50, 100))
        np.testing.assert_allclose(found.boxes, [[0.1, 0.2, 0.3, 0.6], [0.9, 0.8, 1.0, 1.0]], atol=1e-6)
        assert found.names == ["small red circle"] * 2
    assert instances.find("25", (100, 50)).names == []  # annotated lying on its side
    assert instances.find("26", (5, 10)).names == instances.find("27", (5, 10)).names == []
    path.write_text("{}")
    with pytest.raises(DataError, match=r"instances file .* is broken \(KeyError"):
        coco.Instances(path)


# Building


def test_examples_hold_what_the_lines_said(world: tuple[Path, Path], tmp_path: Path) -> None:
    built = ln.build(tmp_path / "out", "train", inputs_of(world))
    found = {example["example_id"].decode(): example for example in examples(tmp_path / "out")}
    assert sorted(found) == ["1#0", "1#1", "25#0"]
    first = found["1#0"]
    assert {key: (value.dtype, value.ndim) for key, value in first.items() if isinstance(value, np.ndarray)} == {
        key: (np.dtype(feature.dtype.as_numpy_dtype), feature.rank)
        for key, feature in ln.OUTPUT_FEATURES.items()
        if feature.rank
    }
    assert first["image"] == (world[1] / "000000000001.jpg").read_bytes()
    assert first["text"].decode() == "a red ball" and first["instruction"].decode() == ln.INSTRUCTIONS[0]
    np.testing.assert_array_equal(first["word_spans"], [[0, 1], [2, 5], [6, 10]])
    assert first["word_located"].all()
    np.testing.assert_allclose(first["word_centers"], [[0.05, 0.5], [0.15, 0.5], [0.25, 0.5]], atol=1e-6)
    np.testing.assert_allclose(first["word_boxes"][1], [0.1, 0.5, 0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(first["word_points"][2, [0, -1], 0], [0.2, 0.3], atol=1e-6)
    assert first["object_boxes"].shape == (0, 4) and first["object_names"].shape == (0,)
    unicode = found["1#1"]
    text = unicode["text"].decode()
    assert [text[a:b] for a, b in unicode["word_spans"]] == ["a", "café", "½", "dog"]
    # The emoji is no word but was an utterance of its own; "dog" keeps the place of its own.
    np.testing.assert_allclose(unicode["word_centers"][:, 0], [0.05, 0.15, 0.25, 0.45], atol=1e-6)
    assert built.report["pictures"] == 2 and built.report["narratives"] == 3 and built.report["words"] == 10


def test_a_word_without_a_place_borrows_none(world: tuple[Path, Path], tmp_path: Path) -> None:
    silent = narrative("1", "a red ball lies")
    silent["timed_caption"] = [silent["timed_caption"][0], {"utterance": "ball", "start_time": 50, "end_time": 51}]
    bare = narrative("1", "nothing was said", timed_caption=[], traces=[])
    write_lines(world[0], [silent, bare])
    ln.build(tmp_path / "out", "train", inputs_of(world))
    first, second = examples(tmp_path / "out")
    assert first["word_located"].tolist() == [True, False, False, False]
    for key in ("word_boxes", "word_points", "word_centers"):
        assert not first[key][1:].any() and first[key][0].any()
        assert len(second[key]) == 3 and not second[key].any()
    assert not second["word_located"].any()
    first, second = examples(tmp_path / "out", task=f"{ln.NAME}_proportional")
    assert first["word_located"].all() and not second["word_located"].any()
    np.testing.assert_array_equal(first["word_centers"], np.tile(first["word_centers"][:1], (4, 1)))


def test_the_proportional_rule_in_the_graph_is_the_one_of_the_alignment() -> None:
    rng = np.random.default_rng(0)
    for words, utterances in itertools.product((0, 1, 2, 7, 30), (0, 1, 2, 5, 12)):
        valid = rng.random(utterances) < 0.6
        np.testing.assert_array_equal(
            ln._by_proportion(tf.constant(words), tf.constant(valid, tf.bool)).numpy(),
            alignment.by_proportion(words, valid),
        )


def test_one_go_and_parts_make_the_same_set(world: tuple[Path, Path], tmp_path: Path) -> None:
    ln.build(tmp_path / "parts", "train", inputs_of(world), shards=3)
    builder = building.builder_class(ln.NAME, ln.LocalizedNarratives)(
        inputs={"train": inputs_of(world)}, data_dir=tmp_path / "whole"
    )
    builder.download_and_prepare()
    shards = list((tmp_path / "parts").glob("*/*/*.tfrecord-*"))
    assert 1 <= len(shards) <= 2 and all(shard.stat().st_size for shard in shards)  # two pictures: no empty shard
    by_id = [{example["example_id"]: example for example in examples(tmp_path / name)} for name in ("parts", "whole")]
    assert by_id[0].keys() == by_id[1].keys()
    for example_id, example in by_id[0].items():
        for key, value in example.items():
            np.testing.assert_array_equal(value, by_id[1][example_id][key], err_msg=key)


def test_the_set_is_one_that_tfds_and_seqio_read_by_themselves(world: tuple[Path, Path], tmp_path: Path) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world))
    ln.build(tmp_path / "out", "validation", inputs_of(world), shards=2)
    builder = tfds.builder(f"{ln.NAME}:1.0.0", data_dir=tmp_path / "out")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {"train": 2, "validation": 2}
    record = next(iter(builder.as_dataset(split="train")))
    assert record["image"].shape == (24, 32, 3)
    source = seqio.TfdsDataSource(f"{ln.NAME}:1.0.0", tfds_data_dir=str(tmp_path / "out"))
    assert len(list(source.get_dataset("validation", shuffle=False))) == 2
    names = seen.read(tmp_path / "out" / ln.NAME / "1.0.0", "train")
    assert names == {"1": "coco:1", "25": "coco:25"}


def test_bad_records_and_pictures_are_counted_and_named(world: tuple[Path, Path], tmp_path: Path) -> None:
    save_picture(world[1] / "3.jpg")
    (world[1] / "3.jpg").write_bytes((world[1] / "3.jpg").read_bytes()[:200])
    write_lines(world[0], ["{", narrative("1"), narrative("2"), narrative("3"), narrative("3"), narrative("25")])
    with pytest.raises(DataError, match=r"leave out is 2 of 6 \(1 bad record, 1 missing picture\), expected at most 1"):
        ln.build(tmp_path / "out", "train", inputs_of(world))
    # The second pass finds the broken picture; what counts as done does not hold it.
    with pytest.raises(DataError, match=r"is 4 of 6 \(2 bad picture, 1 bad record, 1 missing picture\)"):
        ln.build(tmp_path / "out", "train", inputs_of(world, max_skipped="3"))
    built = ln.build(tmp_path / "out", "train", inputs_of(world, max_skipped="70%"))
    assert built.report["skipped"]["counts"] == {"bad picture": 2, "bad record": 1, "missing picture": 1}
    assert built.report["skipped"]["total"] == 4 and built.report["narratives"] == 2
    named = built.report["skipped"]["named"]
    assert any(name.startswith("narratives.jsonl:1: not JSON") for name in named)
    assert "2: no file of this id in --images" in named
    assert any(name.startswith("3: content of") and "broken" in name for name in named)
    assert "left out" in ln.describe(built) and "bad picture: 2" in ln.describe(built)
    assert parts.read_json(built.folder / "build_report-train.json") == built.report


def test_a_mended_picture_needs_no_new_build(world: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (world[1] / "000000000001.jpg").read_bytes()
    (world[1] / "000000000001.jpg").write_bytes(whole[:200])
    with pytest.raises(DataError, match="2 bad picture"):
        ln.build(tmp_path / "out", "train", inputs_of(world))
    (world[1] / "000000000001.jpg").write_bytes(whole)
    assert ln.build(tmp_path / "out", "train", inputs_of(world)).report["pictures"] == 2


def test_pictures_that_came_later_are_found_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only parts that lost a picture are made again, and only when its file is another one."""
    annotations = write_lines(tmp_path / "narratives.jsonl", [narrative(str(i)) for i in range(12)])
    for i in range(12):
        save_picture(tmp_path / "images" / f"{i}.jpg")
    whole = (tmp_path / "images" / "3.jpg").read_bytes()
    (tmp_path / "images" / "3.jpg").write_bytes(whole[:200])
    (tmp_path / "images" / "5.jpg").unlink()
    inputs = inputs_of((annotations, tmp_path / "images"), max_skipped="2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "join_split", lambda *_: 1 / 0)  # ended when all parts are done
        with pytest.raises(ZeroDivisionError):
            ln.build(tmp_path / "out", "train", inputs, shards=4)
    (tmp_path / "out" / ln.NAME / "incomplete.train_1.0.0" / "forgotten").unlink()  # and before they are joined
    written, write_records = [], parts.write_records
    monkeypatch.setattr(
        parts, "write_records", lambda path, *rest: (written.append(path.stem), write_records(path, *rest))[1]
    )
    (tmp_path / "images" / "3.jpg").write_bytes(whole)
    (tmp_path / "images" / "5.jpg").write_bytes(whole)
    report = ln.build(tmp_path / "out", "train", inputs, shards=4).report
    assert report["pictures"] == 12 and report["skipped"]["total"] == 0 and 1 <= len(written) <= 2


@pytest.mark.parametrize("step", ["write_split_infos", "_forget", "join_split"])
def test_a_replacement_ended_at_any_step_is_finished_by_the_next_run(
    world: tuple[Path, Path], tmp_path: Path, step: str
) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world), shards=2)
    where = building if step == "_forget" else parts
    function = getattr(where, step)

    def ended(*args: Any) -> None:
        function(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, step, ended)
        with pytest.raises(KeyboardInterrupt):
            ln.build(tmp_path / "out", "train", inputs_of(world, max_side=16), shards=2, overwrite=True)
    built = ln.build(tmp_path / "out", "train", inputs_of(world, max_side=16), shards=2)
    assert len(examples(tmp_path / "out")) == 3 and built.fresh
    again = ln.build(tmp_path / "out", "train", inputs_of(world, max_side=16), shards=2)
    assert not again.fresh and "already built" in ln.describe(again) and "--overwrite" in ln.describe(again)
    assert "already built" not in ln.describe(built)


def test_an_overwrite_that_cannot_be_leaves_the_old_split(world: tuple[Path, Path], tmp_path: Path) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world))
    bad = write_lines(tmp_path / "bad.jsonl", ["{"])
    for inputs in (
        inputs_of((bad, world[1])),
        inputs_of((world[0], tmp_path / "none")),
        inputs_of(world, instances=str(bad)),
        inputs_of(world, max_pixels=10),
    ):
        with pytest.raises(DataError):
            ln.build(tmp_path / "out", "train", inputs, overwrite=True)
        assert len(examples(tmp_path / "out")) == 3
        assert (tmp_path / "out" / ln.NAME / "1.0.0" / "image_ids-train.json").exists()


def test_parts_of_a_build_from_before_names_were_kept_are_made_again(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "_forget", killed)
        with pytest.raises(KeyboardInterrupt):
            ln.build(tmp_path / "out", "train", inputs_of(world))
    (described,) = (tmp_path / "out").glob("*/incomplete.*/parts/*.json")
    report = parts.read_json(described)
    del report["image_names"]
    parts.write_json(described, report)
    built = ln.build(tmp_path / "out", "train", inputs_of(world))
    assert seen.read(built.folder, "train") == {"1": "coco:1", "25": "coco:25"}


def test_a_forgotten_split_leaves_no_file(world: tuple[Path, Path], tmp_path: Path) -> None:
    built = ln.build(tmp_path / "out", "train", inputs_of(world))
    building._forget(
        building.builder_class(ln.NAME, ln.LocalizedNarratives)(data_dir=tmp_path / "out"),
        built.folder,
        "train",
        built.folder / "build_report-train.json",
    )
    assert not list(built.folder.glob("*train*"))


def test_the_same_bytes_are_the_same_input(world: tuple[Path, Path], tmp_path: Path) -> None:
    content = world[0].read_bytes()
    ln.build(tmp_path / "out", "train", inputs_of(world))
    os.utime(world[0], (1, 1))
    assert not ln.build(tmp_path / "out", "train", inputs_of(world)).fresh
    (tmp_path / "copy.jsonl").write_bytes(content)
    assert not ln.build(tmp_path / "out", "train", inputs_of((tmp_path / "copy.jsonl", world[1]))).fresh
    world[0].write_bytes(content.replace(b"ball", b"bell"))  # as long as before
    with pytest.raises(DataError, match="is from other inputs"):
        ln.build(tmp_path / "out", "train", inputs_of(world))


def test_many_shards_open_few_files(world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_OPEN", 3)
    held: list[int] = []
    index = building._index

    def counting(*args: Any) -> Any:
        found = index(*args)
        held.append(len(list((args[1] / "buckets").iterdir())))
        return found

    monkeypatch.setattr(building, "_index", counting)
    built = ln.build(tmp_path / "out", "train", inputs_of(world), shards=50)
    assert held == [3] and built.report["pictures"] == 2 and built.report["shards"] == 2
    assert len(examples(tmp_path / "out")) == 3


def test_a_full_disk_is_one_line() -> None:
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    with pytest.raises(DataError, match="writing '/dev/full' failed .*expected a disk with room"):
        parts.write_records(Path("/dev/full"), features, [{"text": "a" * 1000}] * 1000)


@pytest.mark.parametrize(("setting", "limit"), [("1%", 2), ("0%", 0), ("7", 7), ("12.5%", 17)])
def test_limits_of_what_may_be_left_out(setting: str, limit: int) -> None:
    assert ln.Inputs((), (), max_skipped=setting).limit(130) == limit


def test_a_split_in_the_way_is_not_touched(world: tuple[Path, Path], tmp_path: Path) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world), shards=2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / ln.NAME / "1.0.0").iterdir()}
    ln.build(tmp_path / "out", "train", inputs_of(world), shards=2)
    with pytest.raises(DataError, match="split 'train' of .* is from other inputs"):
        ln.build(tmp_path / "out", "train", inputs_of(world, max_side=16), shards=2)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / ln.NAME / "1.0.0").iterdir()}
    assert before == after
    ln.build(tmp_path / "out", "train", inputs_of(world, max_side=16), overwrite=True)
    shards = sorted(path.name for path in (tmp_path / "out" / ln.NAME / "1.0.0").glob("*tfrecord*"))
    assert shards == [f"{ln.NAME}-train.tfrecord-00000-of-00001"]
    assert len(examples(tmp_path / "out")) == 3


def test_a_second_builder_is_turned_away(world: tuple[Path, Path], tmp_path: Path) -> None:
    with (
        parts.only_builder(tmp_path / "out" / ln.NAME),
        pytest.raises(DataError, match="is being built by another process"),
    ):
        ln.build(tmp_path / "out", "train", inputs_of(world))


def test_large_sets_have_at_least_64_shards() -> None:
    assert [building._number_of_shards(images) for images in (1, 800, 801, 10_000, 10_001, 118_287, 504_413)] == [
        1, 1, 2, 16, 64, 256, 256,
    ]  # fmt: skip


def test_a_killed_build_redoes_at_most_one_part(tmp_path: Path) -> None:
    """kill -9 in the middle of the second pass, then again: parts that were done stay, and the set is the uninterrupted
    one.
    """
    shards, count = 20, 200
    annotations = write_lines(tmp_path / "narratives.jsonl", [narrative(str(i)) for i in range(count)])
    # Noise of some size, in a form that has to be encoded anew: a part takes long enough to be killed in.
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    noise.save(tmp_path / "noise.png")
    (tmp_path / "images").mkdir()
    for i in range(count):
        (tmp_path / "images" / f"{i}.png").hardlink_to(tmp_path / "noise.png")
    settings = ["--annotations", str(annotations), "--images", str(tmp_path / "images"), "--shards", str(shards)]
    command = [sys.executable, "-m", "data_pipelines", "build", "localized_narratives", *settings, "--threads", "1"]
    work = tmp_path / "out" / ln.NAME / "incomplete.train_1.0.0" / "parts"
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(work.glob("*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline, "the build ended before it could be killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in work.glob("*.tfrecord") if path.with_suffix(".json").exists()}
    assert 3 <= len(done) < shards
    assert not list((tmp_path / "out" / ln.NAME).glob("1.0.0/dataset_info.json"))
    written = []
    write_records = parts.write_records

    def counting(path: Path, *args: Any) -> tuple[int, int]:
        written.append(path.name)
        return write_records(path, *args)

    inputs = ln.Inputs((str(annotations),), (str(tmp_path / "images"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "write_records", counting)
        ln.build(tmp_path / "out", "train", inputs, shards=shards)
    assert len(written) == shards - len(done)
    ln.build(tmp_path / "straight", "train", inputs, shards=shards)
    interrupted, straight = (
        sorted((tmp_path / name / ln.NAME / "1.0.0").glob("*.tfrecord-*")) for name in ("out", "straight")
    )
    assert [path.name for path in interrupted] == [path.name for path in straight]
    found = examples(tmp_path / "out")
    assert len(found) == count
    for first, second in zip(found, examples(tmp_path / "straight"), strict=True):
        assert first["example_id"] == second["example_id"] and first["image"] == second["image"]
    assert not work.parent.exists()


# Tasks


def test_order_is_the_same_every_time_and_hosts_share_the_work(tmp_path: Path) -> None:
    annotations = write_lines(tmp_path / "narratives.jsonl", [narrative(str(i)) for i in range(40)])
    for i in range(40):
        save_picture(tmp_path / "images" / f"{i}.jpg")
    built = ln.build(tmp_path / "out", "train", inputs_of((annotations, tmp_path / "images")), shards=8)
    ids = [[example["example_id"] for example in examples(tmp_path / "out")] for _ in range(2)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 40
    hosts = [
        [example["example_id"] for example in examples(tmp_path / "out", shard_info=seqio.ShardInfo(i, 4))]
        for i in range(4)
    ]
    assert sorted(itertools.chain(*hosts)) == sorted(ids[0])
    found = seqio.get_mixture_or_task(ln.NAME).source.at(tmp_path / "out")
    assert found.num_input_examples("train") == 40 and len(found.list_shards("train")) == built.report["shards"]


def test_no_python_function_is_in_the_graph(world: tuple[Path, Path], tmp_path: Path) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world))
    task = seqio.get_mixture_or_task(ln.NAME)
    dataset = task.replace(source=task.source.at(tmp_path / "out")).get_dataset(
        sequence_length=None, split="train", shuffle=False, try_in_mem_cache=False
    )
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    operations = {node.op for node in graph.node}
    operations |= {node.op for function in graph.library.function for node in function.node_def}
    assert {"PyFunc", "EagerPyFunc", "PyFuncStateless"}.isdisjoint(operations)
    assert not any("Cache" in operation for operation in operations)
    assert not any(operation.startswith(("DecodeJpeg", "DecodeImage", "DecodePng")) for operation in operations)


def test_the_folder_is_found_by_its_three_ways(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ln.build(tmp_path / "out", "train", inputs_of(world))
    task = seqio.get_mixture_or_task(ln.NAME)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="data folder of 'localized_narratives_coco' is not set"):
        task.get_dataset(split="train", shuffle=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="holds no set 'localized_narratives_coco'"):
        task.get_dataset(split="train", shuffle=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "out"))
    assert len(list(task.get_dataset(split="train", shuffle=False))) == 3
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    seqio.set_tfds_data_dir_override(str(tmp_path / "out"))
    try:
        assert len(list(task.get_dataset(split="train", shuffle=False))) == 3
    finally:
        seqio.set_tfds_data_dir_override(None)
    assert len(list(task.replace(source=task.source.at(tmp_path / "out")).get_dataset(split="train"))) == 3
    with pytest.raises(DataError, match=r"split is 'test', expected one of \['train'\]"):
        task.source.at(tmp_path / "out").get_dataset("test")


def test_registering_twice_is_once() -> None:
    ln.register("localized_narratives_of_a_test", ln.NAME)
    ln.register("localized_narratives_of_a_test", ln.NAME)
    for name in ("localized_narratives_of_a_test", "localized_narratives_of_a_test_proportional"):
        assert seqio.get_mixture_or_task(name).source.name == ln.NAME


# Command line


def test_build_and_list_from_the_command_line(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--annotations", str(world[0]), "--images", str(world[1]), "--out", str(tmp_path / "out")]
    assert main(["build", "localized_narratives", *arguments, "--split", "validation"]) == 0
    assert "narratives             3" in capsys.readouterr().out
    assert main(["list", "--data-dir", str(tmp_path / "out")]) == 0
    listed = capsys.readouterr().out
    assert "localized_narratives_coco/1.0.0" in listed and "validation" in listed and "2 records" in listed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--annotations": "none.jsonl"}, "annotation file is 'none.jsonl', expected a file that exists."),
        ({"--images": "none"}, "image folder is 'none', expected a folder that exists."),
        ({"--instances": "none"}, "instances file is 'none', expected a file that exists."),
        ({"--max-skipped": "few"}, "--max-skipped is 'few', expected a number or a share"),
        ({"--max-skipped": "nan%"}, "--max-skipped is 'nan%', expected a number or a share"),
        ({"--max-skipped": "inf%"}, "--max-skipped is 'inf%', expected a number or a share"),
        ({"--shards": "0"}, "--shards is 0, expected at least 1."),
        ({"--shards": "1000000"}, "--shards is 1000000, expected at most 10000."),
        ({"--threads": "0"}, "--threads is 0, expected at least 1."),
        ({"--max-side": "0"}, "--max-side is 0, expected 1 to 8000 pixels."),
        ({"--max-pixels": "-1"}, "--max-pixels is -1, expected at least 1."),
        ({"--out": "/dev/null/out"}, "'/dev/null/out/localized_narratives_coco' is of no use (Not a directory)"),
        ({"--name": "LN"}, "--name is 'LN', expected lower-case letters"),
        ({"--split": "a/b"}, "--split is 'a/b', expected letters, digits and underscores"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    options = {"--annotations": str(world[0]), "--images": str(world[1]), "--out": str(tmp_path / "out"), **changes}
    assert main(["build", "localized_narratives", *itertools.chain(*options.items())]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_help_lists_the_sets_and_then_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--help"]) == 0
    said = capsys.readouterr().out
    assert "coco_captions" in said and "localized_narratives" in said and "build SET" in said
    with pytest.raises(SystemExit, match="0"):
        main(["build", "localized_narratives", "--help"])
    assert "--max-skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["build"])
    assert "required: SET" in capsys.readouterr().err


def test_a_folder_that_lacks_the_pictures_is_told_before_any_work(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in world[1].iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    arguments = ["--annotations", str(world[0]), "--images", str(world[1]), "--out", str(tmp_path / "out")]
    assert main(["build", "localized_narratives", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds 2 pictures but none of the 2 annotated ones, expected files named by image id, such as 1.jpg." in last
    assert not list((tmp_path / "out" / ln.NAME).glob("*/parts"))


def test_the_sample_of_real_narratives_builds(samples: Path, tmp_path: Path) -> None:
    inputs = ln.Inputs(
        annotations=(str(samples / "localized_narratives" / "coco_val_mini_DERIVED.jsonl"),),
        images=(str(samples / "coco" / "val2017"),),
        instances=str(samples / "coco" / "annotations" / "instances_val2017.json"),
    )
    built = ln.build(tmp_path / "out", "train", inputs)
    assert (built.report["pictures"], built.report["narratives"], built.report["skipped"]["total"]) == (66, 128, 0)
    found = examples(tmp_path / "out")
    assert len(found) == 128 and sum(len(example["object_names"]) > 0 for example in found) > 100
    for example in found:
        assert example["word_points"].min(initial=0) >= 0 and example["word_points"].max(initial=0) <= 1
        text = example["text"].decode()
        # Between its words a text holds spaces and, here and there, a sign: never a letter.
        gaps = np.split(
            np.concatenate([[0], example["word_spans"].reshape(-1), [len(text)]]), len(example["word_spans"]) + 1
        )
        assert not any(text[a:b].strip().isalnum() for a, b in gaps)


def test_what_an_ended_overwrite_left_behind_goes(world: tuple[Path, Path], tmp_path: Path) -> None:
    left = tmp_path / "out" / ln.NAME / "1.0.0" / f"{ln.NAME}-train.tfrecord-00000-of-00009"
    left.parent.mkdir(parents=True)
    left.touch()
    built = ln.build(tmp_path / "out", "train", inputs_of(world))
    assert not left.exists() and built.report["shards"] == 1
