"""COCO captions from the publisher's json to examples, and the mixtures that they are part of."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import seqio

from data_pipelines import DataError, building, coco_captions, mixtures
from data_pipelines import localized_narratives as ln
from data_pipelines import narratives as lines_of
from data_pipelines.__main__ import main
from pixel_align import data
from pixel_align.batch import Shape
from pixel_align.converter import PixelFeatureConverter
from pixel_align.evaluation import seen
from pixel_align.text import load_vocabulary, train_sentencepiece


def save_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, 32 * 24).reshape(24, 32).astype(np.uint8)
    PIL.Image.fromarray(ramp).convert("RGB").save(path)
    return path


def captions_file(path: Path, captions: list[tuple[Any, Any]]) -> Path:
    """(image id, caption) pairs as the publisher writes them."""
    content = {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in sorted({i for i, _ in captions}, key=str)],
        "annotations": [{"image_id": i, "id": 7 + k, "caption": text} for k, (i, text) in enumerate(captions)],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """(annotations, images): three captions on two pictures, one named as COCO named them in 2014."""
    save_picture(tmp_path / "images" / "000000000025.jpg")
    save_picture(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    captions = [(1, "A red ball.\n"), (25, "Two  cafés, ½ full 😀"), (1, " a ball on grass ")]
    return captions_file(tmp_path / "captions_val2017.json", captions), tmp_path / "images"


def build(world: tuple[Path, Path], out: Path, **changes: Any) -> ln.Built:
    inputs = ln.Inputs(annotations=(str(world[0]),), images=(str(world[1]),), **changes)
    return ln.build(out, "train", inputs, name=coco_captions.NAME, kind=coco_captions.CocoCaptions, shards=1)


def examples(folder: Path, task: str = coco_captions.NAME, split: str = "train") -> list[dict[str, Any]]:
    found = seqio.TaskRegistry.get(task)
    dataset = found.replace(source=found.source.at(folder)).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    return list(dataset.as_numpy_iterator())


def test_every_caption_becomes_an_example_without_places(world: tuple[Path, Path], tmp_path: Path) -> None:
    built = build(world, tmp_path / "data")
    assert (built.report["pictures"], built.report["narratives"], built.report["words_located"]) == (2, 3, 0)
    # Of COCO, whatever the file is called.
    assert seen.read(built.folder, "train") == {"1": "coco:1", "25": "coco:25"}
    found = {example["example_id"].decode(): example for example in examples(tmp_path / "data")}
    assert {key: example["text"].decode() for key, example in found.items()} == {
        "1#0": "A red ball.",
        "1#1": "a ball on grass",
        "25#0": "Two  cafés, ½ full 😀",
    }
    for example in found.values():
        caption = example["text"].decode()
        words = [caption[start:end] for start, end in example["word_spans"]]
        assert words and all(word and word == word.strip() for word in words)
        count = len(words)
        assert example["word_boxes"].shape == (count, 4) and example["word_points"].shape == (count, 16, 2)
        assert example["word_centers"].shape == (count, 2)
        assert not example["word_located"].any() and not example["word_boxes"].any()
        assert example["instruction"].decode() == coco_captions.INSTRUCTIONS[0]
        assert [text.decode() for text in example["instructions"]] == list(coco_captions.INSTRUCTIONS)


def test_the_tfds_builder_makes_the_same_records(world: tuple[Path, Path], tmp_path: Path) -> None:
    build(world, tmp_path / "parts")
    inputs = ln.Inputs(annotations=(str(world[0]),), images=(str(world[1]),))
    builder = building.builder_class(coco_captions.NAME, coco_captions.CocoCaptions)
    builder(inputs={"train": inputs}, data_dir=tmp_path / "once").download_and_prepare()

    def texts(folder: Path) -> set[tuple[bytes, bytes]]:
        return {(example["example_id"], example["text"]) for example in examples(folder)}

    assert texts(tmp_path / "parts") == texts(tmp_path / "once")


def test_gzipped_files_and_several_files_are_read(world: tuple[Path, Path], tmp_path: Path) -> None:
    zipped = tmp_path / "captions_more.json.gz"
    zipped.write_bytes(gzip.compress(captions_file(tmp_path / "more.json", [(25, "more")]).read_bytes()))
    lines = list(coco_captions.read_lines([str(world[0]), str(zipped)]))
    assert [where for where, _ in lines] == [
        *(f"captions_val2017.json: caption {i}" for i in (7, 8, 9)),
        "captions_more.json.gz: caption 7",
    ]
    assert lines_of.parse_narrative(lines[-1][1]).dataset_id == "captions_more"


def test_bad_captions_are_counted_and_named(world: tuple[Path, Path], tmp_path: Path) -> None:
    bad = [(1, "good"), (1, " "), (1, 5), (None, "nowhere"), (99, "no picture")]
    captions_file(world[0], bad)
    with pytest.raises(DataError, match=r"to leave out is 4 of 5 \(3 bad record, 1 missing picture\).*caption 8: "):
        build(world, tmp_path / "data")
    report = build(world, tmp_path / "data", max_skipped="4").report
    assert report["narratives"] == 1
    assert report["skipped"]["named"][0] == "captions_val2017.json: caption 8: caption is empty, expected text"


GZIPPED = gzip.compress(json.dumps({"annotations": [{"caption": str(i)} for i in range(1000)]}).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is broken (JSONDecodeError"),
        ("{}", "is broken (KeyError: 'annotations'), expected COCO captions"),
        ("[]", "is broken (TypeError"),
        ('{"annotations": [1]}', "is broken (TypeError: annotations is no list of objects)"),
        ('{"annotations": []}', "holds 0 annotations and no caption, expected captions_<split>.json"),
        ('{"annotations": [{"bbox": [0, 0, 1, 1]}]}', "holds 1 annotations and no caption"),
        ("[" * 200_000, "is broken (RecursionError"),
        (GZIPPED[:20] + b"\xff" * 20 + GZIPPED[40:], "is broken (error: Error -3 while decompressing data"),
        (GZIPPED[:-100], "is broken (EOFError"),
    ],
)
def test_wrong_files_are_said_in_one_line(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, message: str
) -> None:
    world[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ["--annotations", str(world[0]), "--images", str(world[1]), "--out", str(tmp_path / "data")]
    assert main(["build", "coco_captions", *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: captions file") and message in last


def test_there_are_as_many_instructions_as_published_and_no_two_are_equal() -> None:
    assert len(set(coco_captions.INSTRUCTIONS)) == 13
    assert len(set(ln.INSTRUCTIONS)) == 11
    assert not set(coco_captions.INSTRUCTIONS) & set(ln.INSTRUCTIONS)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("vocabulary") / "words.model"
    train_sentencepiece([*coco_captions.INSTRUCTIONS, *ln.INSTRUCTIONS, "a red ball"], path, 100)
    return load_vocabulary(path)


def test_training_draws_an_instruction_and_evaluation_takes_the_first(
    world: tuple[Path, Path], tmp_path: Path, vocabulary: Any
) -> None:
    build(world, tmp_path / "data")
    example = examples(tmp_path / "data")[0]
    converter = PixelFeatureConverter(Shape(canvas=32, text=16, instruction=40), vocabulary)

    def asked(rng: np.random.Generator | None) -> str:
        row, _ = converter(example, rng)
        return vocabulary.decode(row.instruction_tokens[0][row.instruction_mask[0]])

    texts = {vocabulary.decode(vocabulary.encode(text)): text for text in coco_captions.INSTRUCTIONS}
    assert len(texts) == len(coco_captions.INSTRUCTIONS)
    assert {texts[asked(None)] for _ in range(3)} == {coco_captions.INSTRUCTIONS[0]}
    drawn = Counter(texts[asked(np.random.default_rng([3, i]))] for i in range(400))
    assert set(drawn) == set(coco_captions.INSTRUCTIONS)
    assert max(drawn.values()) < 3 * 400 / len(coco_captions.INSTRUCTIONS)
    assert asked(np.random.default_rng(5)) == asked(np.random.default_rng(5))
    # A Task without several asks in its one way.
    assert converter({k: v for k, v in example.items() if k != "instructions"}, np.random.default_rng(5))


def test_captions_weigh_in_the_text_loss_only(world: tuple[Path, Path], tmp_path: Path, vocabulary: Any) -> None:
    build(world, tmp_path / "data")
    converter = PixelFeatureConverter(Shape(canvas=32, text=16, instruction=8), vocabulary)
    row, _ = converter(examples(tmp_path / "data")[0])
    assert (row.weights.text, row.weights.point, row.locate.any()) == (1, 0, False)


def narrative(image_id: str, dataset_id: str = "mscoco_train2017") -> dict[str, Any]:
    return {
        "dataset_id": dataset_id,
        "image_id": image_id,
        "annotator_id": 7,
        "caption": "a red ball",
        "timed_caption": [{"utterance": "a red ball", "start_time": 0.0, "end_time": 2.0}],
        "traces": [[{"x": t / 10, "y": 0.5, "t": float(t)} for t in range(4)]],
        "voice_recording": "",
    }


def narratives(world: tuple[Path, Path], out: Path, name: str, records: list[dict[str, Any]]) -> None:
    path = world[0].with_name(f"{name}.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    inputs = ln.Inputs(annotations=(str(path),), images=(str(world[1]),), max_skipped="0")
    ln.build(out, "train", inputs, name=name, shards=1)


def test_the_trace_stage_draws_one_caption_for_two_narratives(
    world: tuple[Path, Path], tmp_path: Path, vocabulary: Any
) -> None:
    # Enough of both for one epoch.
    captions_file(world[0], [(25, "a red ball")] * 80)
    build(world, tmp_path / "data")
    narratives(world, tmp_path / "data", ln.NAME, [narrative("1")] * 140)
    config = data.DataConfig(
        modules=("data_pipelines.mixtures",),
        mixture="trace_stage",
        dir=str(tmp_path / "data"),
        batch_size=32,
        shuffle_buffer=8,
        workers=1,
    )
    converter = PixelFeatureConverter(Shape(canvas=32, text=16, instruction=8), vocabulary)
    with data.Stream(config, converter) as stream:
        batches = [next(stream)[0] for _ in range(5)]
    shares = [batch.weights.point.mean() for batch in batches]
    assert 0.55 < np.mean(shares) < 0.78  # 2 / 3, within three standard deviations of 160 draws
    assert all(0 < share < 1 for share in shares)  # both in every batch
    assert all(batch.weights.text.all() for batch in batches)


def test_mixtures_are_of_the_published_rates() -> None:
    for name, located in (("trace_stage", ln.NAME), ("trace_stage_proportional", f"{ln.NAME}_proportional")):
        config = data.DataConfig(modules=("data_pipelines.mixtures",), mixture=name)
        assert data.rates(config) == {coco_captions.NAME: 1.0, located: 2.0}
    assert set(mixtures.MIXTURES) <= set(seqio.MixtureRegistry.names())


@pytest.mark.parametrize(
    ("name", "dataset_id", "image_id", "file"),
    [
        ("localized_narratives_flickr30k", "Flick30k_train", "1000092795", "flickr30k-images/1000092795.jpg"),
        ("localized_narratives_open_images", "open_images_train", "000a1249af2bc5f0", "train_0/000a1249af2bc5f0.jpg"),
        ("localized_narratives_open_images", "open_images_train", "0001234567891234", "train_1/0001234567891234.jpg"),
        ("localized_narratives_ade20k", "ADE20k_train", "ADE_train_00000001", "a/abbey/ADE_train_00000001.jpg"),
    ],
)
def test_narratives_on_other_pictures_are_found_by_their_names(
    world: tuple[Path, Path], tmp_path: Path, name: str, dataset_id: str, image_id: str, file: str
) -> None:
    picture = save_picture(world[1] / file)
    # What lies beside the photographs of ADE20k.
    save_picture(picture.with_name(f"{picture.stem}_seg.png"))
    save_picture(picture.with_suffix("") / "instance_000.png")
    narratives(world, tmp_path / "data", name, [narrative(image_id, dataset_id)])
    for task in (name, f"{name}_proportional"):
        (example,) = examples(tmp_path / "data", task)
        assert example["image_id"].decode() == image_id
        assert example["image"] == picture.read_bytes()
        assert example["word_located"].all()
    folder = tmp_path / "data" / name / "1.0.0"
    collection = name.removeprefix("localized_narratives_")
    assert seen.read(folder, "train") == {image_id: f"{collection}:{image_id}"}


def test_the_real_captions_build_and_read(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = samples / "coco" / "annotations" / "captions_val2017.json"
    options = ["--annotations", str(annotations), "--images", str(samples / "coco" / "val2017"), "--max-skipped", "0"]
    assert main(["build", "coco_captions", *options, "--out", str(tmp_path), "--split", "validation"]) == 0
    assert "coco_captions 1.0.0, split validation" in capsys.readouterr().out
    published = json.loads(annotations.read_text(encoding="utf-8"))["annotations"]
    found = Counter(
        (int(example["image_id"]), example["text"].decode()) for example in examples(tmp_path, split="validation")
    )
    assert found == Counter((annotation["image_id"], annotation["caption"].strip()) for annotation in published)
