"""One picture has one name, and a score says which of its pictures were trained on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pixel_align.evaluation import seen


@pytest.mark.parametrize(
    ("dataset_id", "image_id", "name"),
    [
        ("mscoco_train2017", "391895", "coco:391895"),
        ("mscoco_val2017", "000000391895", "coco:391895"),
        ("captions_val2014", 391895, "coco:391895"),
        ("refcoco_unc", "train2014/COCO_train2014_000000391895.jpg", "coco:391895"),
        ("Flick30k_train", "1000092795", "flickr30k:1000092795"),
        ("flickr30k", "flickr30k-images/1000092795.jpg", "flickr30k:1000092795"),
        ("open_images_train_v6", "000a1249af2bc5f0", "open_images:000a1249af2bc5f0"),
        ("ADE20k_train", "ADE_train_00000001.jpg", "ade20k:ADE_train_00000001"),
        ("vg_densecap", "2371680.jpg", "visual_genome:2371680"),
        ("synthetic_train", "7", "synthetic:7"),
        ("oops_train", "a/000025", "oops_train:a/000025"),
    ],
)
def test_a_picture_has_one_name(dataset_id: str, image_id: str | int, name: str) -> None:
    assert seen.canonical(seen.collection_of(dataset_id), image_id) == name


def test_pictures_of_visual_genome_that_are_of_coco_are_named_so(samples: Path) -> None:
    records = json.loads((samples / "visual_genome" / "image_data_484_DERIVED.json").read_text())
    names = seen.visual_genome_names(records)
    assert len(names) == len(records)
    for record in records:
        expected = f"coco:{record['coco_id']}" if record["coco_id"] else f"visual_genome:{record['image_id']}"
        assert names[str(record["image_id"])] == expected
    assert len({name.partition(":")[0] for name in names.values()}) == 2


def test_names_of_a_split_its_slices_and_its_sums(tmp_path: Path) -> None:
    (tmp_path / seen.FILE.format(split="train")).write_text('{"1": "coco:1"}')
    (tmp_path / seen.FILE.format(split="test")).write_text('{"2": "coco:2"}')
    assert seen.read(tmp_path, "train[:10%]") == {"1": "coco:1"}
    assert seen.read(tmp_path, "train[5%:]+test") == {"1": "coco:1", "2": "coco:2"}
    assert seen.read(tmp_path, "train+validation") is None and seen.read(None, "train") is None
    for broken in ('{"1": ', '["1"]', '{"1": 2}', "[" * 100_000):
        (tmp_path / seen.FILE.format(split="test")).write_text(broken)
        with pytest.raises(ValueError, match=r"is broken \(.*\), expected .* Build the split again") as caught:
            seen.read(tmp_path, "test")
        assert "\n" not in str(caught.value)


TRACES = {"9": "coco:9", "1": "coco:1"}
CAPTIONS = {"000000000001": "coco:1", "2": "coco:2"}
EVALUATION = {"r1": "coco:1", "r2": "coco:2", "r9": "coco:9", "r3": "coco:3"}


def test_the_overlap_counts_each_picture_once_and_says_through_what(tmp_path: Path) -> None:
    first = seen.Seen.of({"traces/train": TRACES})
    history = seen.Seen.of({"captions/train": CAPTIONS, "old/train": None}, first)
    (found,) = seen.overlaps(history, {"refer/val": EVALUATION})
    assert (found.pictures, found.seen) == (4, 3)  # coco:1 came twice
    assert found.through == {"captions/train": 2, "traces/train": 2}
    assert str(found) == (
        "refer/val: 3 of 4 images seen in training (2 in captions/train; 2 in traces/train); not known of old/train: "
        "build again with --overwrite to know"
    )
    (nothing,) = seen.overlaps(history, {"old/val": None})
    assert nothing.pictures is None and "not known" in str(nothing) and "--overwrite" in str(nothing)
    (clean,) = seen.overlaps(first, {"other": {"5": "flickr30k:9"}})
    assert str(clean) == "other: 0 of 1 images seen in training"


def test_what_was_seen_outlives_the_stage(tmp_path: Path) -> None:
    history = seen.Seen.of({"a/train": TRACES, "b/train": None}, seen.Seen.of({"a/train": CAPTIONS}))
    assert history.sets["a/train"] == {"coco:1", "coco:2", "coco:9"}
    history.write(tmp_path)
    assert seen.Seen.read(tmp_path) == history
    before = (tmp_path / seen.SEEN_FILE).read_bytes()
    assert before[4:8] == bytes(4)  # no time in it: the same content is the same file
    history.write(tmp_path)
    assert (tmp_path / seen.SEEN_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [seen.SEEN_FILE]
    assert seen.Seen.read(tmp_path / "elsewhere") is None
    for broken in (before[:20], b"{}", gzip.compress(b"[]"), gzip.compress(b"{"), gzip.compress(b'{"sets": 1}')):
        (tmp_path / seen.SEEN_FILE).write_bytes(broken)
        with pytest.raises(ValueError, match=r"is broken \("):
            seen.Seen.read(tmp_path)


def share(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    return {"right": float(np.mean(np.equal(targets, predictions)))}


def test_the_score_on_unseen_images_is_of_those_alone() -> None:
    history = seen.Seen.of({"traces/train": TRACES, "old/train": None})
    ids = ["r1", "r2", "r2", "r9", "r3"]  # two sentences of r2
    found = seen.figures(share, [1, 1, 1, 1, 1], [1, 1, 0, 1, 0], ids, EVALUATION, history)
    assert found == {
        "images_seen_in_training": 2,
        "training_sets_unknown": 1,
        "unseen/images": 2,
        "unseen/examples": 3,
        "unseen/right": pytest.approx(1 / 3),
    }
    assert seen.figures(share, [1], [1], ["r1"], EVALUATION, None) == {}
    assert seen.figures(share, [1], [1], ["r1"], None, history) == {}
    every = seen.figures(share, [1], [1], ["r1"], EVALUATION, history)
    assert every["unseen/images"] == 0 and "unseen/right" not in every
    with pytest.raises(ValueError, match="image 'r7' has no canonical name among the 4"):
        seen.figures(share, [1], [1], ["r7"], EVALUATION, history)
