"""The synthetic world keeps its promises: what is drawn, said, traced and written."""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import pathlib

import numpy as np
import PIL.Image
import pytest

from data_pipelines import synthetic
from data_pipelines.synthetic import Scene, World

WORLDS = {"default": World(), "easy": synthetic.easy(), "noisy": World(size=64, transcript_noise=0.1, wander=1.0)}
FIELDS = ["dataset_id", "image_id", "annotator_id", "caption", "timed_caption", "traces", "voice_recording"]


@pytest.fixture(scope="module", params=WORLDS)
def scenes(request: pytest.FixtureRequest) -> list[Scene]:
    return [synthetic.scene(WORLDS[request.param], 0, index) for index in range(200)]


def bare(text: str) -> str:
    return text.lower().strip(".")


def digest(told: Scene) -> str:
    return hashlib.sha256(json.dumps(told.record).encode()).hexdigest()


# What is in the scene


def test_counts_are_within_bounds_and_all_occur(scenes: list[Scene]) -> None:
    world = scenes[0].world
    low, high = world.objects
    counts = collections.Counter(len(told.things) for told in scenes)
    assert set(counts) == set(range(low, high + 1))
    # Full scenes fit less often, and must not be rarer for it: within 5 standard deviations of an even share.
    share = 1 / (high - low + 1)
    assert min(counts.values()) > 200 * share - 5 * math.sqrt(200 * share * (1 - share))
    for told in scenes:
        assert min(world.mentions[0], len(told.mentioned)) <= len(told.mentioned) <= world.mentions[1]
        assert told.mentioned
    if world == synthetic.easy():
        assert all(len(told.mentioned) == len(told.things) for told in scenes)


def test_areas_fill_their_range_and_follow_the_size_words(scenes: list[Scene]) -> None:
    world = scenes[0].world
    by_size = collections.defaultdict(list)
    for thing in (thing for told in scenes for thing in told.things):
        assert synthetic.polygon_area(thing.outline) == pytest.approx(thing.area)
        by_size[thing.size].append(thing.area)
    areas = list(itertools.chain.from_iterable(by_size.values()))
    assert min(areas) >= world.area[0] and max(areas) <= world.area[1]
    assert min(areas) < world.area[0] * 1.1 and max(areas) > world.area[1] * 0.8
    for smaller, larger in itertools.pairwise(world.sizes):
        assert max(by_size[smaller]) * 1.1 < min(by_size[larger])


def test_things_lie_inside_the_picture_and_hardly_overlap(scenes: list[Scene]) -> None:
    world = scenes[0].world
    for told in scenes:
        for thing in told.things:
            assert thing.outline.min() >= -1e-9 and thing.outline.max() <= 1 + 1e-9
            np.testing.assert_allclose(thing.box, [*thing.outline.min(0), *thing.outline.max(0)], atol=1e-9)
        for one, other in itertools.combinations(told.things, 2):
            shared = [max(0.0, min(one.box[2 + k], other.box[2 + k]) - max(one.box[k], other.box[k])) for k in range(2)]
            smaller = min(math.prod(t.box[2 + k] - t.box[k] for k in range(2)) for t in (one, other))
            assert math.prod(shared) <= world.max_overlap * smaller + 1e-9


def test_positions_are_spread_over_the_picture(scenes: list[Scene]) -> None:
    centers = np.asarray([thing.center for told in scenes for thing in told.things])
    quadrants = collections.Counter(map(tuple, (centers > 0.5).tolist()))
    assert min(quadrants.values()) > 0.18 * len(centers)


def test_distractors() -> None:
    """Required: each object mentioned shares its shape with another and its colour with another."""
    for index in range(200):
        told = synthetic.scene(World(), 1, index)
        for k in told.mentioned:
            others = [thing for j, thing in enumerate(told.things) if j != k]
            assert any(thing.shape == told.things[k].shape for thing in others)
            assert any(thing.colour == told.things[k].colour for thing in others)
        # None: no colour twice.
        told = synthetic.scene(synthetic.easy(), 1, index)
        assert len({thing.colour for thing in told.things}) == len(told.things)


def test_held_out_pairs_are_seen_in_evaluation_only() -> None:
    for world, count in ((World(), 5), (synthetic.easy(), 2)):
        assert len(world.held_out_pairs) == count
        seen = {
            split: {(t.colour, t.shape) for i in range(400) for t in synthetic.scene(world, 0, i, split).things}
            for split in ("train", "validation")
        }
        everything = set(itertools.product(world.colours, world.shapes))
        assert seen["train"] == everything - world.held_out_pairs
        assert seen["validation"] == everything


def test_categories_are_the_full_names() -> None:
    assert len(World().names) == len(set(World().names)) == 144 and "small red circle" in World().names
    assert len(synthetic.easy().names) == 24 and "red circle" in synthetic.easy().names


def test_all_of_the_world_is_used() -> None:
    names = {thing.name for index in range(600) for thing in synthetic.scene(World(), 0, index, "test").things}
    assert names == set(World().names)


# What is said


def phrases(told: Scene) -> list[tuple[int, list[str]]]:
    """The spoken phrases, [(object, bare words)], from the truth of each word."""
    runs = itertools.groupby(told.words, key=lambda word: word.thing)
    return [(thing, [bare(word.text) for word in words]) for thing, words in runs if thing >= 0]


def test_each_phrase_describes_its_object_and_no_other(scenes: list[Scene]) -> None:
    for told in scenes:
        for thing, words in phrases(told):
            described = [k for k, other in enumerate(told.things) if set(words) <= set(other.name.split())]
            assert described == [thing]
        assert tuple(thing for thing, _ in phrases(told)) == told.mentioned


def test_shortest_and_full_phrases() -> None:
    full = dataclasses.replace(World(), phrase="full")
    assert all(len(words) == 3 for i in range(50) for _, words in phrases(synthetic.scene(full, 0, i)))
    lengths = collections.Counter(
        len(words) for i in range(200) for _, words in phrases(synthetic.scene(World(), 0, i))
    )
    assert set(lengths) == {2, 3} and min(lengths.values()) > 30
    for index in range(100):
        told = synthetic.scene(World(), 0, index)
        for thing, words in phrases(told):
            if len(words) == 3:  # said in full because it had to be
                assert sum(set(words[1:]) <= set(other.name.split()) for other in told.things) > 1
                assert told.things[thing].name == " ".join(words)


def test_caption_is_the_words_and_reads_like_a_sentence(scenes: list[Scene]) -> None:
    for told in scenes:
        caption = told.record["caption"]
        assert caption == " ".join(word.text for word in told.words)
        if told.world.punctuation:
            assert caption[0].isupper() and caption.endswith(".") and " i " not in caption
            assert all(sentence[0].isupper() for sentence in caption[:-1].split(". "))
        else:
            assert caption == caption.lower() and caption.replace(" ", "").isalpha()
        assert "a orange" not in caption and "an red" not in caption
    assert len({tuple(bare(w.text) for w in told.words if w.thing < 0) for told in scenes}) > 60


def test_reading_order() -> None:
    world = dataclasses.replace(synthetic.easy(), order="reading")
    for index in range(50):
        told = synthetic.scene(world, 0, index)
        centers = [told.things[k].center for k in told.mentioned]
        rows = [(math.floor(y * 3), x) for x, y in centers]
        assert rows == sorted(rows)
    random = [synthetic.scene(synthetic.easy(), 0, index) for index in range(50)]
    tops = [told.things[told.mentioned[0]].center[1] < told.things[told.mentioned[-1]].center[1] for told in random]
    assert 10 < sum(tops) < 40


# When it is said, and where the mouse is


def test_words_are_spoken_one_after_the_other(scenes: list[Scene]) -> None:
    for told in scenes:
        clock = 0.0
        for word in told.words:
            assert clock <= word.start < word.end
            clock = word.end


def test_utterances_are_short_runs_of_the_words(scenes: list[Scene]) -> None:
    lengths: collections.Counter[int] = collections.Counter()
    for told in scenes:
        utterances = told.record["timed_caption"]
        assert all(set(u) == {"utterance", "start_time", "end_time"} for u in utterances)
        assert all(a["end_time"] <= b["start_time"] for a, b in itertools.pairwise(utterances))
        if told.world.transcript_noise:
            continue
        assert " ".join(u["utterance"] for u in utterances) == told.record["caption"]
        starts, ends = {w.start for w in told.words}, {w.end for w in told.words}
        for utterance in utterances:
            lengths[len(utterance["utterance"].split())] += 1
            assert utterance["start_time"] in starts and utterance["end_time"] in ends
    if lengths:
        assert set(lengths) == {1, 2, 3, 4}


def test_clean_utterances_never_join_two_objects_and_blurred_ones_do() -> None:
    def joined(world: World) -> int:
        count = 0
        for told in (synthetic.scene(world, 0, index) for index in range(60)):
            for utterance in told.record["timed_caption"]:
                inside = [w for w in told.words if utterance["start_time"] <= w.start < utterance["end_time"]]
                count += len({word.thing for word in inside}) > 1
        return count

    assert joined(synthetic.easy()) == 0
    assert joined(dataclasses.replace(synthetic.easy(), blur=0.5)) > 30


def test_transcript_noise_touches_its_share_of_words_and_never_the_caption() -> None:
    clean, noisy = World(), World(transcript_noise=0.1)
    words = dropped = doubled = misheard = 0
    for index in range(300):
        told, other = synthetic.scene(clean, 0, index), synthetic.scene(noisy, 0, index)
        assert all(word.text for word in other.words)
        truth = collections.Counter(bare(word.text) for word in other.words)
        heard = collections.Counter(bare(w) for u in other.record["timed_caption"] for w in u["utterance"].split())
        words += sum(truth.values())
        new = sum(count for word, count in heard.items() if word not in truth)
        misheard += new
        more = sum(max(0, heard[word] - count) for word, count in truth.items())
        doubled += more
        dropped += sum(truth.values()) + new + more - sum(heard.values())
        assert told.record["caption"].split()[0] == other.record["caption"].split()[0]
    # A misheard word is one that is gone and one that is new.
    for count in (dropped - misheard, doubled, misheard):
        assert 0.02 < count / words < 0.05


def points(told: Scene) -> np.ndarray:
    return np.asarray([(p["x"], p["y"], p["t"]) for stroke in told.record["traces"] for p in stroke])


def test_the_mouse_is_over_an_object_while_its_words_are_spoken(scenes: list[Scene]) -> None:
    inside = total = 0
    offsets = []
    for told in scenes:
        trace = points(told)
        for thing, words in itertools.groupby(told.words, key=lambda word: word.thing):
            if thing < 0:
                continue
            spoken = list(words)
            during = trace[(trace[:, 2] >= spoken[0].start) & (trace[:, 2] <= spoken[-1].end)]
            assert len(during) >= 4
            x0, y0, x1, y1 = told.things[thing].box
            held = (during[:, 0] >= x0) & (during[:, 0] <= x1) & (during[:, 1] >= y0) & (during[:, 1] <= y1)
            inside, total = inside + held.sum(), total + len(held)
            offsets.append((during[:, :2].mean(0) - told.things[thing].center) / (x1 - x0, y1 - y0))
    assert inside / total > 0.99
    # On the whole the hand circles the middle of the object; in a single short phrase it may not.
    assert np.all(np.abs(np.mean(offsets, axis=0)) < 0.02)


def test_time_runs_forward_inside_and_between_strokes(scenes: list[Scene]) -> None:
    for told in scenes:
        trace = points(told)
        assert np.all(np.diff(trace[:, 2]) > 0)
        assert all(told.record["traces"]), "no stroke is empty"
        assert np.abs(trace[:, :2] - 0.5).max() < 0.6


def test_wander_decides_whether_words_without_a_place_have_a_trace() -> None:
    def traced(world: World) -> float:
        hits = []
        for told in (synthetic.scene(world, 0, index) for index in range(40)):
            times = points(told)[:, 2]
            unplaced = [word for word in told.words if word.thing < 0]
            hits += [bool(((times >= word.start) & (times <= word.end)).any()) for word in unplaced]
        return float(np.mean(hits))

    calm, hard = traced(synthetic.easy()), traced(World())
    assert calm == 0 and 0.35 < hard < 0.65 and traced(World(wander=1.0)) > 0.9


# The picture


def test_pictures_show_the_colours_where_the_things_are() -> None:
    for world in WORLDS.values():
        for index in range(20):
            told = synthetic.scene(world, 0, index)
            pixels = synthetic.draw(told)
            assert pixels.shape == (world.size, world.size, 3) and pixels.dtype == np.uint8
            for thing in told.things:
                x, y = (int(value * world.size) for value in thing.center)
                nearest = min(
                    world.colours,
                    key=lambda name: np.abs(np.asarray(synthetic.COLOURS[name]) - pixels[y, x].astype(int)).sum(),
                )
                assert nearest == thing.colour


@pytest.mark.parametrize("shape", synthetic.SHAPES)
def test_a_thing_covers_the_area_and_the_box_that_it_says(shape: str) -> None:
    """Drawn white on its background, alone; coverage is counted in pixels, soft edges by their share."""
    world = World(size=128, shapes=(shape,), colours=("white",), objects=(1, 1), mentions=(1, 1), distractors="free",
                  held_out=0.0, background="plain", area=(0.01, 0.1))  # fmt: skip
    shifts = []
    for index in range(20):
        told = synthetic.scene(world, 0, index)
        pixels = synthetic.draw(told)[..., 1].astype(float)
        thing = told.things[0]
        background, full = np.median(pixels[[0, -1]]), pixels.max()
        cover = np.clip((pixels - background) / (full - background), 0, 1)
        # PIL rounds corners to fine pixels, a quarter of a pixel each, and paints every one that the edge touches.
        edge = np.linalg.norm(thing.outline - np.roll(thing.outline, -1, axis=0), axis=1).sum()
        assert cover.sum() / 128**2 == pytest.approx(thing.area, abs=0.25 / 128 * edge)
        middles = (np.arange(128) + 0.5) / 128
        centroid = np.asarray([(cover.sum(0) * middles).sum(), (cover.sum(1) * middles).sum()]) / cover.sum()
        shifts.append((centroid - _centroid(thing.outline)) * 128)
        ys, xs = np.nonzero(cover > 0.5)
        seen = np.asarray([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 128
        # The tip of a star or a diamond is thinner than a pixel before it ends.
        assert np.abs(seen - thing.box).max() < 2.5 / 128
    assert np.abs(shifts).max() < 0.25 and np.abs(np.mean(shifts, axis=0)).max() < 0.06, "in pixels"


def _centroid(outline: np.ndarray) -> np.ndarray:
    """Centre of mass of a polygon."""
    after = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * after[:, 1] - after[:, 0] * outline[:, 1]
    return ((outline + after) * cross[:, None]).sum(0) / (3 * cross.sum())


def test_plain_and_textured_backgrounds() -> None:
    for background, limit in (("plain", 3), ("textured", 300)):
        world = dataclasses.replace(synthetic.easy(), background=background)
        told = synthetic.scene(world, 0, 0)
        pixels = synthetic.draw(told).reshape(-1, 3)
        assert (len(np.unique(pixels, axis=0)) > 300) == (limit == 300)


# Determinism


def test_a_scene_is_a_function_of_world_seed_split_and_index() -> None:
    for world in WORLDS.values():
        first, again = synthetic.scene(world, 3, 5), synthetic.scene(world, 3, 5)
        assert digest(first) == digest(again)
        np.testing.assert_array_equal(synthetic.draw(first), synthetic.draw(again))
        others = [synthetic.scene(world, 4, 5), synthetic.scene(world, 3, 6), synthetic.scene(world, 3, 5, "test")]
        assert len({digest(told) for told in [first, *others]}) == 4
        assert len({told.image_id for told in [first, *others[1:]]}) == 3


def test_scenes_are_the_same_on_every_machine() -> None:
    """Guards data sets that were described by (world, seed, scenes): remade scenes must be the scenes of the report.

    To remake after an intended change: print the caption and the centres of scene 7 of seed 0.
    """
    told = synthetic.scene(World(), 0, 7)
    assert told.record["caption"] == GOLDEN_CAPTION
    np.testing.assert_allclose([thing.center for thing in told.things[:2]], GOLDEN_CENTERS, atol=1e-6)


GOLDEN_CAPTION = (
    "I can see a small white diamond. Here is a medium white diamond. I can also see a white triangle and also a large "
    "white diamond. In the background we can see a wall."
)
GOLDEN_CENTERS = [[0.1950698, 0.6192954], [0.7505156, 0.483494]]


# The publishers' files


def everything_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["default", "easy"])
def test_files_are_in_the_publishers_formats(name: str, tmp_path: pathlib.Path) -> None:
    world = dataclasses.replace(WORLDS[name], size=64)
    done: list[int] = []
    files = synthetic.write(world, tmp_path, 30, seed=2, split="validation", progress=done.append)
    assert sum(done) == 30 and [p.name for p in tmp_path.iterdir()] == ["validation"]
    records = [json.loads(line) for line in files.narratives.read_text().splitlines()]
    assert len(records) == 30
    for index, record in enumerate(records):
        assert list(record) == FIELDS
        assert record == synthetic.scene(world, 2, index, "validation").record
        with PIL.Image.open(files.images / f"{int(record['image_id']):012d}.jpg") as picture:
            assert picture.format == "JPEG" and picture.mode == "RGB" and picture.size == (64, 64)
            drawn = synthetic.draw(synthetic.scene(world, 2, index, "validation"))
            assert np.abs(np.asarray(picture).astype(int) - drawn).mean() < 4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with NumPy 2
def test_instances_load_in_the_coco_api(tmp_path: pathlib.Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    world = World(size=128)
    files = synthetic.write(world, tmp_path, 20, seed=0)
    api = coco.COCO(str(files.instances))
    assert len(api.imgs) == 20 and len(api.cats) == 144
    assert len(api.anns) == sum(len(synthetic.scene(world, 0, index).things) for index in range(20)), "ids are unique"
    for index in range(20):
        told = synthetic.scene(world, 0, index)
        annotations = api.imgToAnns[told.image_id]
        assert [api.cats[a["category_id"]]["name"] for a in annotations] == [thing.name for thing in told.things]
        for k, (annotation, thing) in enumerate(zip(annotations, told.things, strict=True)):
            x, y, width, height = annotation["bbox"]
            assert api.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.15, abs=6)
            if synthetic.visible(told, k) is None:  # what others hide: test_synthetic_files
                np.testing.assert_allclose([x, y, x + width, y + height], np.asarray(thing.box) * 128, atol=0.02)
                assert annotation["area"] == pytest.approx(thing.area * 128**2, abs=0.01)


def test_processes_do_not_change_the_files(tmp_path: pathlib.Path) -> None:
    world = synthetic.easy()
    synthetic.write(world, tmp_path / "one", 260, seed=0, also=synthetic.ALSO)
    synthetic.write(world, tmp_path / "two", 260, seed=0, also=synthetic.ALSO, processes=2)
    assert everything_in(tmp_path / "one") == everything_in(tmp_path / "two")


def test_writing_is_all_or_nothing(tmp_path: pathlib.Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write(synthetic.easy(), tmp_path, 4, seed=0, progress=stop)
    assert not (tmp_path / "train").exists()
    synthetic.write(synthetic.easy(), tmp_path, 4, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train"]
    assert len(list((tmp_path / "train" / "images").iterdir())) == 4


def test_a_written_split_is_kept_and_another_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    files = synthetic.write(synthetic.easy(), tmp_path, 4, seed=0)
    before = files.narratives.stat().st_mtime_ns
    assert synthetic.write(synthetic.easy(), tmp_path, 4, seed=0) == files
    assert files.narratives.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"which holds something else.*Remove it"):
        synthetic.write(synthetic.easy(), tmp_path, 4, seed=1)


def test_command_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.main(["--out", str(tmp_path), "--scenes", "3", "--preset", "easy", "--split", "test", "--size", "96"])
    assert str(tmp_path / "test" / "instances.json") in capsys.readouterr().out.replace("\n", "")
    picture = next((tmp_path / "test" / "images").iterdir())
    with PIL.Image.open(picture) as opened:
        assert opened.size == (96, 96)
    with pytest.raises(SystemExit) as caught:
        synthetic.main(["--out", str(tmp_path), "--scenes", "4", "--preset", "easy", "--split", "test"])
    assert caught.value.code == 2 and "holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": ("circle", "blob")}, r"World\.shapes is \('circle', 'blob'\), expected distinct ones of"),
        ({"colours": ()}, r"World\.colours is \(\), expected"),
        ({"objects": (5, 3)}, r"World\.objects is \(5, 3\), expected 0 < least <= most"),
        ({"area": (0, 0.1)}, r"World\.area is \(0, 0\.1\)"),
        ({"distractors": "none", "objects": (3, 9)}, r"at most the 8 that can be told apart"),
    ],
)
def test_impossible_worlds_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(**changes)  # type: ignore[arg-type]


def test_bad_requests_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="expected one with room for its objects"):
        synthetic.scene(World(objects=(8, 8), area=(0.2, 0.3)), 0, 0)
    with pytest.raises(ValueError, match="split is 'dev', expected one of"):
        synthetic.write(World(), tmp_path, 3, seed=0, split="dev")
    with pytest.raises(ValueError, match="scenes is 0"):
        synthetic.write(World(), tmp_path, 0, seed=0)
    assert not list(tmp_path.iterdir())
