"""Data: words keep their places through tokens, cuts, crops and flips; the order is a function of seed and position."""

import dataclasses
import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import seqio

from pixel_align import batch, data, image, sharding
from pixel_align.batch import Shape
from pixel_align.converter import Augment, PixelFeatureConverter
from pixel_align.data import DataConfig, Stream, evaluation_batches
from pixel_align.text import SentencePieceVocabulary, train_sentencepiece
from pixel_align.text_alignment import split_words
from tests import tiny

# The converter

TEXT = "A  café with ½ cup, 😀 reddish dot"
WORDS = [TEXT[start:end] for start, end in split_words(TEXT)]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (255, 255, 255)]
SIZE = (60, 90)  # (height, width) of the picture
# A disc of its own colour for each word: centres in pixels of the picture, and the half side of its box.
CENTERS = np.asarray([(12 + 25 * (k % 3), 10 + 18 * (k // 3)) for k in range(len(WORDS))], np.float32)
HALF = 5
SHAPE = Shape(canvas=64, regions=2, text=24, instruction=3, objects=4, phrase=12)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceVocabulary:
    """Of pieces so small that every word has several."""
    lines = [TEXT, "what is with the cup", "a dot", "red"] * 5
    path = train_sentencepiece(lines, tmp_path_factory.mktemp("vocabulary") / "v.model", 30, character_coverage=1.0)
    return SentencePieceVocabulary(path)


def _picture() -> bytes:
    pixels = np.full((*SIZE, 3), 60, np.uint8)
    for (x, y), colour in zip(CENTERS.astype(int), itertools.cycle(COLOURS), strict=False):
        pixels[y - HALF : y + HALF, x - HALF : x + HALF] = colour
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _example(**changes: Any) -> dict[str, Any]:
    boxes = np.concatenate([CENTERS - HALF, CENTERS + HALF], -1) / np.asarray([SIZE[1], SIZE[0]] * 2)
    located = np.ones(len(WORDS), bool)
    located[2] = False
    return {
        "image": _picture(),
        "image_id": b"7",
        "example_id": b"7#0",
        "text": TEXT.encode(),
        "instruction": b"what is",
        "word_spans": np.asarray(split_words(TEXT), np.int32),
        "word_boxes": boxes.astype(np.float32),
        "word_located": located,
        "object_boxes": boxes[:3].astype(np.float32),
        "object_names": np.asarray([b"red dot", b"cup", b"dot dot"], object),
        **changes,
    }


def _words_of_tokens(vocabulary: SentencePieceVocabulary) -> list[int | None]:
    """The word of each token of TEXT, character by character."""
    owner = {c: k for k, (start, end) in enumerate(split_words(TEXT)) for c in range(start, end)}
    _, spans = vocabulary.encode_with_spans(TEXT)
    found = []
    for start, end in spans:
        words = {owner[c] for c in range(start, end) if c in owner}
        assert len(words) <= 1, "a piece of two words: choose another text"
        found.append(words.pop() if words else None)
    return found


def test_every_token_has_the_place_of_its_word(vocabulary: SentencePieceVocabulary) -> None:
    owners = _words_of_tokens(vocabulary)
    assert max(owners.count(k) for k in range(len(WORDS))) > 2 and {"café", "½"} <= set(WORDS)
    row, placement = PixelFeatureConverter(dataclasses.replace(SHAPE, text=64), vocabulary)(_example())
    ids = vocabulary.encode(TEXT)
    n = len(ids)
    np.testing.assert_array_equal(row.text_tokens[0, : n + 2], [vocabulary.bos_id, *ids, vocabulary.eos_id])
    np.testing.assert_array_equal(row.text_mask[0], np.arange(64) < n + 2)
    # The picture is 90 wide: 64 canvas pixels. Its boxes, by hand.
    scale = np.asarray([placement.valid_size[1] / SIZE[1], placement.valid_size[0] / SIZE[0]]) / 64
    for t, owner in enumerate(owners, start=1):
        if owner is None or owner == 2:  # word 2 has no place, and what stands between words has none
            assert not row.locate[0, t]
        else:
            assert row.locate[0, t]
            corners = np.stack([(CENTERS[owner] - HALF) * scale, (CENTERS[owner] + HALF) * scale])
            np.testing.assert_allclose(row.token_points[0, t], corners, atol=1e-6)
    assert not row.locate[0, 0] and not row.locate[0, n + 1 :].any()
    assert not row.token_points[0][~row.locate[0]].any()


def test_a_cut_text_moves_no_point_and_does_not_end(vocabulary: SentencePieceVocabulary) -> None:
    whole, _ = PixelFeatureConverter(dataclasses.replace(SHAPE, text=64), vocabulary)(_example())
    n = len(vocabulary.encode(TEXT))
    for length in (n + 2, n + 1, n, 5, 2):
        row, _ = PixelFeatureConverter(dataclasses.replace(SHAPE, text=length), vocabulary)(_example())
        for field in ("text_tokens", "text_mask", "token_points", "locate"):
            np.testing.assert_array_equal(getattr(row, field)[0], getattr(whole, field)[0, :length], err_msg=field)
        assert (vocabulary.eos_id in row.text_tokens[0]) == (length == n + 2)
        assert row.text_mask[0].all()


def test_places_move_with_the_pixels(vocabulary: SentencePieceVocabulary) -> None:
    """In the middle of a word's box stands its colour, however the picture was scaled, cut and mirrored."""
    shape = dataclasses.replace(SHAPE, text=64)
    augment = Augment(scale=(0.6, 2.0), flip_rate=0.5, keep=0.5)
    converter = PixelFeatureConverter(shape, vocabulary, augment)
    owners = _words_of_tokens(vocabulary)
    kept, lost, flips = 0, 0, set()
    for seed in range(25):
        row, placement = converter(_example(), np.random.default_rng(seed))
        flips.add(placement.flip)
        height, width = placement.valid_size
        assert not row.images[height:].any() and not row.images[:, width:].any()
        for t, owner in enumerate(owners, start=1):
            if not row.locate[0, t]:
                lost += owner not in (None, 2)
                continue
            kept += 1
            x, y = (row.token_points[0, t].mean(axis=0) * 64).astype(int)
            np.testing.assert_allclose(row.images[y, x], COLOURS[owner % len(COLOURS)], atol=30)
            assert (row.token_points[0, t] >= 0).all()
            assert (row.token_points[0, t] <= np.asarray([width, height]) / 64 + 1e-6).all()
        for k in np.flatnonzero(row.regions.mask):
            x, y = ((row.regions.boxes[k, :2] + row.regions.boxes[k, 2:]) / 2 * 64).astype(int)
            assert any(np.allclose(row.images[y, x], colour, atol=30) for colour in COLOURS[:3])
    assert flips == {True, False} and kept > 50 and lost > 50


def test_a_word_keeps_its_place_while_enough_of_it_is_seen(vocabulary: SentencePieceVocabulary) -> None:
    """The share of a box that is seen, by counting the pixels of its colour in the view."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[20:40, 30:60] = 255
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "png")
    box = np.tile(np.asarray([30 / 90, 20 / 60, 60 / 90, 40 / 60], np.float32), (len(WORDS), 1))
    example = _example(image=file.getvalue(), word_boxes=box)
    converter = PixelFeatureConverter(SHAPE, vocabulary, Augment(scale=(3.0, 3.0), keep=0.4))
    outcomes = set()
    for seed in range(40):
        row, placement = converter(example, np.random.default_rng(seed))
        scale = placement.scale
        share = (row.images[..., 0] / 255).sum() / (30 * scale[0] * 20 * scale[1])
        if abs(share - 0.4) > 0.05:  # resizing blurs the border
            outcomes.add(bool(share > 0.4))
            assert row.locate.any() == (share > 0.4)
    assert outcomes == {True, False}


def test_augmentation_comes_from_seeds_and_only_in_training(vocabulary: SentencePieceVocabulary) -> None:
    augmented = PixelFeatureConverter(SHAPE, vocabulary, Augment(scale=(0.5, 1.5), flip_rate=0.5))
    plain = PixelFeatureConverter(SHAPE, vocabulary)
    example = _example()
    for one, other in zip(jax.tree.leaves(augmented(example)[0]), jax.tree.leaves(plain(example)[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(plain(example)[0].images, image.fit_to_canvas(image.read_image(_picture()), 64)[0])
    first, again, another = (augmented(example, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != another.images).any()


def test_a_row_is_what_the_batch_says(vocabulary: SentencePieceVocabulary) -> None:
    row, placement = PixelFeatureConverter(SHAPE, vocabulary)(_example())
    batch.check(data.stack([row, row]), batch.spec(SHAPE, 2))
    np.testing.assert_array_equal(row.valid, [True, False])
    assert not row.text_mask[1].any() and not row.locate[1].any() and not row.instruction_mask[1].any()
    asks = vocabulary.encode("what is")[:3]
    np.testing.assert_array_equal(row.instruction_tokens[0, : len(asks)], asks)
    assert row.instruction_mask[0].sum() == len(asks)
    assert placement.valid_size == (43, 64)
    np.testing.assert_allclose(row.prompt_boxes, [[0, 0, 1, 43 / 64]])
    # Objects: three of four; the name "dot dot" is a set of pieces.
    np.testing.assert_array_equal(row.regions.mask, [True, True, True, False])
    for k, name in enumerate(["red dot", "cup", "dot dot"]):
        pieces = list(dict.fromkeys(vocabulary.encode(name).tolist()))
        assert row.regions.tokens[k][row.regions.token_mask[k]].tolist() == pieces
    assert not row.regions.token_mask[3].any()
    short, _ = PixelFeatureConverter(dataclasses.replace(SHAPE, phrase=2), vocabulary)(_example())
    np.testing.assert_array_equal(short.regions.tokens, row.regions.tokens[:, :2])
    weights = row.weights
    assert (weights.text, weights.point, weights.region) == (1, 1, 1)


def test_what_an_example_lacks_weighs_nothing(vocabulary: SentencePieceVocabulary) -> None:
    empty = _example(
        text=b"",
        word_spans=np.zeros((0, 2), np.int32),
        word_boxes=np.zeros((0, 4), np.float32),
        word_located=np.zeros(0, bool),
        object_boxes=np.zeros((0, 4), np.float32),
        object_names=np.zeros(0, object),
    )
    row, _ = PixelFeatureConverter(SHAPE, vocabulary)(empty)
    assert (row.weights.text, row.weights.point, row.weights.region) == (1, 0, 0)
    assert row.text_tokens[0, :2].tolist() == [vocabulary.bos_id, vocabulary.eos_id] and row.text_mask[0].sum() == 2
    batch.check(data.stack([row]), batch.spec(SHAPE, 1))
    # More objects than there is room for: as many as fit.
    crowd = _example(
        object_boxes=np.tile([[0.1, 0.1, 0.4, 0.4]], (9, 1)), object_names=np.asarray([b"cup"] * 9, object)
    )
    row, _ = PixelFeatureConverter(SHAPE, vocabulary)(crowd)
    assert row.regions.mask.all()


def test_a_broken_picture_is_named(vocabulary: SentencePieceVocabulary) -> None:
    with pytest.raises(
        ValueError, match=r"the picture of example '7#0' cannot be read: .*Build the set again\."
    ) as error:
        PixelFeatureConverter(SHAPE, vocabulary)(_example(image=b"no picture"))
    assert "\n" not in str(error.value)


# The stream


class Recorder:
    """Stands in for the converter: says which example came and what its generator draws; remembers its calls."""

    regions = 1

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, example: Any, rng: np.random.Generator | None = None) -> tuple[Any, Any]:
        # Pictures arrive as they lie in the set: nobody has decoded them.
        assert isinstance(example["image"], bytes) and example["image"][:2] == b"\xff\xd8"
        self.calls.append(example["example_id"].decode())
        assert rng is not None
        return {"id": np.asarray(example["example_id"].decode()), "draw": rng.integers(2**31)}, None


@pytest.fixture(scope="module")
def config(tiny_world: Path) -> DataConfig:
    return DataConfig(mixture=tiny.TASK, dir=str(tiny_world / "data"), batch_size=5, workers=2, prefetch=1)


def _take(stream: Stream, count: int) -> tuple[list[tuple[str, int]], list[data.Position]]:
    """(id, draw) of each example of `count` batches, and their positions."""
    drawn, positions = [], []
    with stream:
        for rows, position in itertools.islice(stream, count):
            drawn += list(zip(rows["id"].tolist(), rows["draw"].tolist(), strict=True))
            positions.append(position)
    return drawn, positions


def _ids(drawn: list[tuple[str, int]]) -> list[str]:
    return [name for name, _ in drawn]


@pytest.fixture(scope="module")
def straight(config: DataConfig) -> tuple[list[tuple[str, int]], list[data.Position]]:
    """21 batches of 5 without interruption: four epochs of 24 and a little more."""
    return _take(Stream(config, Recorder()), 21)


def test_the_same_seed_gives_the_same_batches_and_another_seed_another_order(
    config: DataConfig, straight: tuple[list, list]
) -> None:
    # Neither the number of threads nor what is held ready matters.
    other = dataclasses.replace(config, workers=4, prefetch=3)
    assert _take(Stream(other, Recorder()), 21) == straight
    seeded, _ = _take(Stream(dataclasses.replace(config, seed=1), Recorder()), 15)
    assert _ids(seeded) != _ids(straight[0])
    assert not {draw for _, draw in seeded} & {draw for _, draw in straight[0]}


@pytest.mark.parametrize("shuffle_buffer", [10_000, 5])
def test_an_epoch_is_a_permutation(config: DataConfig, shuffle_buffer: int) -> None:
    drawn, _ = _take(Stream(dataclasses.replace(config, shuffle_buffer=shuffle_buffer), Recorder()), 15)
    epochs = [_ids(drawn)[24 * k : 24 * (k + 1)] for k in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 24 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3, "every epoch has an order of its own"
    # The generator of an example is its own, also when the example comes again.
    assert len({draw for _, draw in drawn}) == len(drawn)


@pytest.mark.parametrize("done", [1, 5, 12])
def test_a_resumed_stream_is_the_uninterrupted_one_and_converts_nothing_that_it_skips(
    config: DataConfig, straight: tuple[list, list], done: int
) -> None:
    recorder = Recorder()
    drawn, positions = straight
    rest, further = _take(Stream(config, recorder, positions[done - 1]), 15 - done)
    assert rest == drawn[5 * done : 5 * 15]
    assert further == positions[done:15]
    assert positions[done - 1]["drawn"] == 5 * done
    # Threads take turns, but what was converted is a run of examples that begins where the stream was left.
    assert 5 * (15 - done) <= len(recorder.calls) <= 5 * (21 - done)
    assert sorted(recorder.calls) == sorted(_ids(drawn)[5 * done :][: len(recorder.calls)])


def test_a_resume_at_the_end_of_an_epoch_begins_the_next(config: DataConfig) -> None:
    whole = dataclasses.replace(config, batch_size=8)
    drawn, positions = _take(Stream(whole, Recorder()), 6)
    assert positions[2] == {"drawn": 24, "readers": {"0": {tiny.TASK: [0, 24]}}}
    assert _take(Stream(whole, Recorder(), positions[2]), 3) == (drawn[24:], positions[3:])
    # As positions were written when there was one reader always.
    earlier = {"drawn": 24, "tasks": {tiny.TASK: [0, 24]}}
    assert _take(Stream(whole, Recorder(), earlier), 3) == (drawn[24:], positions[3:])


def test_readers_share_an_epoch(config: DataConfig) -> None:
    """24 examples in one file: each of two processes reads 12 of them, every epoch the same ones, and no other."""
    two = dataclasses.replace(config, batch_size=8, readers=2)
    parts = [_ids(_take(Stream(two, Recorder(), rows=range(4 * i, 4 * i + 4)), 6)[0]) for i in range(2)]
    assert all(len(part) == 6 * 4 for part in parts)
    assert all(sorted(part[:12]) == sorted(part[12:]) and len(set(part)) == 12 for part in parts)
    assert len({*parts[0], *parts[1]}) == 24


@pytest.mark.parametrize(("readers", "processes"), [(1, 2), (4, 1), (4, 8)])
def test_a_batch_is_the_same_however_many_processes_make_it_and_go_on_with_it(
    config: DataConfig, readers: int, processes: int
) -> None:
    """Batches of 8 by 4 processes for a while, then by others: no example is repeated or lost, nor any draw."""
    several = dataclasses.replace(config, batch_size=8, readers=readers)
    expected, reached = _take(Stream(several, Recorder()), 6)
    before = [_take(Stream(several, Recorder(), rows=range(2 * i, 2 * i + 2)), 2) for i in range(4)]
    (position,) = data.joined([[positions[-1]] for _, positions in before])
    assert position == reached[1]
    size = 8 // processes
    rows = [range(size * i, size * (i + 1)) for i in range(processes)]
    recorders = [Recorder() for _ in rows]
    after = [_take(Stream(several, r, position, own), 4)[0] for r, own in zip(recorders, rows, strict=True)]
    made = [one for k in range(2) for drawn, _ in before for one in drawn[2 * k : 2 * k + 2]]
    made += [one for k in range(4) for drawn in after for one in drawn[size * k : size * (k + 1)]]
    assert made == expected
    # What another process makes is read where shares are split, and never converted.
    for recorder, drawn in zip(recorders, after, strict=True):
        assert len(recorder.calls) <= 9 * size and recorder.calls[:1] == _ids(drawn)[:1]


@pytest.fixture
def mixture() -> Iterator[str]:
    import data_pipelines.localized_narratives  # noqa: F401 - registers the tasks

    name = "tiny_mixture"
    seqio.MixtureRegistry.add(name, [(tiny.TASK, 3.0), (f"{tiny.TASK}_proportional", 1.0)])
    yield name
    seqio.MixtureRegistry.remove(name)


def test_mixtures_follow_their_rates_and_resume(config: DataConfig, mixture: str) -> None:
    mixed = dataclasses.replace(config, mixture=mixture, batch_size=40)
    drawn, positions = _take(Stream(mixed, Recorder()), 3)
    counts = {name: 24 * epoch + index for name, (epoch, index) in positions[-1]["readers"]["0"].items()}
    assert sum(counts.values()) == 120 == positions[-1]["drawn"]
    # Within four standard deviations of 90.
    assert abs(counts[tiny.TASK] - 90) < 4 * np.sqrt(120 * 0.75 * 0.25), counts
    assert _take(Stream(mixed, Recorder(), positions[1]), 1) == (drawn[80:], positions[2:])


class Broken:
    def __init__(self, after: int) -> None:
        self.left = after

    regions = 1

    def __call__(self, example: Any, rng: Any = None) -> tuple[Any, Any]:
        self.left -= 1
        if self.left < 0:
            raise ValueError("the picture of example 'x' cannot be read")
        return {"id": np.asarray(0)}, None


def test_a_failure_in_the_thread_is_raised_where_batches_are_taken(config: DataConfig) -> None:
    with Stream(dataclasses.replace(config, workers=1), Broken(after=10)) as stream:
        assert [len(next(stream)[0]["id"]) for _ in range(2)] == [5, 5]
        for _ in range(2):  # and again, instead of waiting for ever
            with pytest.raises(ValueError, match="the picture of example 'x' cannot be read"):
                next(stream)


def test_close_ends_the_thread_and_the_stream(config: DataConfig) -> None:
    before = set(threading.enumerate())
    for taken in (0, 2):
        stream = Stream(config, Recorder())
        for _ in range(taken):
            next(stream)
        stream.close()
        assert set(threading.enumerate()) <= before
        stream.close()  # once more is nothing
        assert list(stream) == []


def test_batches_of_the_real_converter_fit_the_model(tiny_world: Path) -> None:
    experiment = tiny.get_config()
    vocabulary = SentencePieceVocabulary(tiny_world / "vocabulary.model")
    config = dataclasses.replace(experiment.data, dir=str(tiny_world / "data"), batch_size=4)
    converter = PixelFeatureConverter(experiment.model.shape, vocabulary)
    with Stream(config, converter) as stream:
        rows, _ = next(stream)
    batch.check(rows, batch.spec(experiment.model.shape, 4))
    assert rows.locate.any(axis=(1, 2)).all() and rows.images.any(axis=(1, 2, 3)).all()


# Evaluation


@pytest.fixture(scope="module")
def converter(tiny_world: Path) -> PixelFeatureConverter:
    shape = dataclasses.replace(tiny.get_config().model.shape, canvas=16)
    return PixelFeatureConverter(
        shape, SentencePieceVocabulary(tiny_world / "vocabulary.model"), Augment(scale=(0.5, 2.0), flip_rate=0.5)
    )


def _evaluated(config: DataConfig, converter: PixelFeatureConverter, size: int, **options: Any) -> tuple[list, list]:
    """(ids, their pictures); checks the form of every batch."""
    ids, rows = [], []
    for found, group in evaluation_batches(config, tiny.TASK, "validation", converter, size, **options):
        assert found.images.shape[0] == size and 0 < len(group) <= size
        np.testing.assert_array_equal(found.images[len(group) :], found.images[[0] * (size - len(group))])
        ids += _names(group)
        rows += list(found.images[: len(group)])
    return ids, rows


@pytest.mark.parametrize("size", [1, 5, 20])
def test_evaluation_takes_every_example_once_whatever_the_size_of_batches(
    config: DataConfig, converter: PixelFeatureConverter, size: int
) -> None:
    ids, rows = _evaluated(config, converter, size)
    assert len(ids) == len(set(ids)) == 16
    assert ids == _evaluated(config, converter, 7)[0]
    # Never augmented: as a converter without augmentation has it.
    plain = PixelFeatureConverter(converter.shape, converter.vocabulary)
    for one, other in zip(rows, _evaluated(config, plain, 16)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def _names(group: list[tuple[Any, Any]]) -> list[str]:
    return [example["example_id"].decode() for example, _ in group]


def test_evaluation_is_shared_between_processes(config: DataConfig, converter: PixelFeatureConverter) -> None:
    """Batches of 5, padded to 6, over three processes: 16 examples, of which the last batch has one."""
    expected, pictures = _evaluated(config, converter, 5)
    parts = []
    for own in ([0, 1], [2, 3], [4, 5]):
        batches = list(evaluation_batches(config, tiny.TASK, "validation", converter, 5, rows=own))
        assert [len(group) for _, group in batches] == [
            len([row for row in own if row < size]) for size in (5, 5, 5, 1)
        ]
        assert all(made.images.shape[0] == 2 for made, _ in batches)
        parts.append([(made.images[i], name) for made, group in batches for i, name in enumerate(_names(group))])
    assert sorted(name for part in parts for _, name in part) == sorted(expected)
    by_name = dict(zip(expected, pictures, strict=True))
    for made, name in itertools.chain(*parts):
        np.testing.assert_array_equal(made, by_name[name])
    assert [name for _, name in parts[1]] == [expected[i] for i in (2, 3, 7, 8, 12, 13)]


def test_evaluation_may_be_limited(config: DataConfig, converter: PixelFeatureConverter) -> None:
    assert _evaluated(config, converter, 4, limit=6)[0] == _evaluated(config, converter, 4)[0][:6]


def test_batches_become_global_arrays() -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=2))
    rows = batch.zeros(Shape(canvas=8), 16)
    rows = dataclasses.replace(rows, valid_size=np.arange(32, dtype=np.int32).reshape(16, 2))
    found = data.to_device(rows, sharding.over_batch(mesh))
    np.testing.assert_array_equal(found.valid_size, rows.valid_size)
    assert {shard.data.shape for shard in found.images.addressable_shards} == {(2, 8, 8, 3)}


def test_a_step_takes_a_batch_of_each_group_and_says_where_each_stands(
    config: DataConfig, converter: PixelFeatureConverter
) -> None:
    """Of two groups over the same task, each goes its own way, as it would alone, and resumes there."""
    several = dataclasses.replace(config, further=(data.Group(tiny.TASK, 3),))
    streams = [(several.of_group(i), converter) for i in range(2)]
    with data.Steps(streams, None) as steps:
        taken = [next(steps) for _ in range(4)]
    for i, (alone, _) in enumerate(streams):
        with Stream(alone, converter) as stream:
            for batches, positions in taken:
                expected, position = next(stream)
                np.testing.assert_array_equal(batches[i].images, expected.images)
                assert positions[i] == position
    with data.Steps(streams, taken[1][1]) as again:
        for one, other in zip(next(again)[0], taken[2][0], strict=True):
            np.testing.assert_array_equal(one.images, other.images)
    with pytest.raises(ValueError, match="the saved position is of 1 batches a step, expected 2"):
        data.Steps(streams, taken[0][1][:1])


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": "synthetic_narrative"}, "task is 'synthetic_narrative', .* Did you mean 'synthetic_narratives'?"),
        ({"mixture": "zzz"}, "task is 'zzz', expected one that data_pipelines.localized_narratives registers. Known: "),
        ({"dir": "/no/such/folder"}, "data.dir is '/no/such/folder', expected the folder that"),
        ({"modules": ("data_pipelines.no_such",)}, "data.modules has 'data_pipelines.no_such', expected an importable"),
        ({"split": "trian"}, "split is 'trian', expected one of"),
        (
            {"mixture": "localized_narratives_coco"},
            "holds no set 'localized_narratives_coco', expected one that is built",
        ),
        ({"batch_size": 3, "readers": 2}, "synthetic_narratives is 3, expected a multiple of the 2 readers"),
    ],
)
def test_wrong_settings_are_one_line(config: DataConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Stream(dataclasses.replace(config, **changes), Recorder())
    assert "\n" not in str(error.value)


def test_a_position_of_other_tasks_is_refused(config: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"the saved position is of tasks \['other'\], expected \['synthetic") as error:
        Stream(config, Recorder(), {"drawn": 5, "readers": {"0": {"other": [0, 5]}}})
    assert "\n" not in str(error.value)
    four = {"drawn": 8, "readers": {str(reader): {tiny.TASK: [0, 2]} for reader in range(4)}}
    with pytest.raises(ValueError, match="data.readers is 1, expected 4, with which the run began. Set it."):
        Stream(dataclasses.replace(config, readers=1), Recorder(), four)


def test_a_module_that_is_there_but_lacks_something_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks_of_a_test.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        data.register(DataConfig(modules=("tasks_of_a_test",)))


def test_tasks_are_checked_before_a_run(config: DataConfig) -> None:
    data.check_task(config, tiny.TASK, "validation")
    with pytest.raises(ValueError, match=r"task is 'synthetic', .* Did you mean"):
        data.check_task(config, "synthetic", "validation")
    with pytest.raises(ValueError, match=r"split is 'test', expected one of"):
        data.check_task(config, tiny.TASK, "test")


def test_a_reader_without_examples_is_told(config: DataConfig) -> None:
    """24 examples for 30 readers: the last has none, and says so instead of waiting."""
    many = dataclasses.replace(config, batch_size=30, readers=30)
    with (
        Stream(many, Recorder(), rows=[29]) as stream,
        pytest.raises(ValueError, match="has no example in split 'train' for reader 29"),
    ):
        next(stream)
