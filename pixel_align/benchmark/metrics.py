"""How fast metrics are: dense captioning as large as Visual Genome's test set, METEOR beside its jar, masks beside
pycocotools.

Each measurement runs in a process of its own, so that its peak of memory is its own. METEOR's rows need pycocoevalcap
(extra [eval]), their ratio Java as well; without it they say so by a ratio of None.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixel_align.benchmark.rows import Measured, document
from pixel_align.evaluation import dense_captioning, json_files, masks, referring

IMAGES, REGIONS, PREDICTIONS = 5_000, 40, 50
PAIRS, REPEATED_PAIRS = 10_000, 90_000  # the second: as many as those images ask for
EXPRESSIONS, SIZE = 10_000, (480, 640)

_SEED = 0
_TURN = 1_000  # pairs
_REPEATS = 5  # of measurements that take less than a second; the fastest counts


class Region(NamedTuple):
    """A described box, xyxy in pixels."""

    box: tuple[float, float, float, float]
    phrase: str


def measurements() -> dict[str, Callable[[Sequence[Sequence[Region]], int], Measured]]:
    """Name -> function of (described regions of pictures, most cases) that measures."""
    functions = (
        measure_dense_captioning,
        measure_meteor_distinct,
        measure_meteor_repeated,
        measure_referring_run_lengths,
        measure_referring_arrays,
    )
    return {function.__name__.removeprefix("measure_"): function for function in functions}


def run(phrases: Path | None = None, cases: int = 0, *, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows as they are measured.

    Args:
        phrases: Visual Genome's region_descriptions.json; without it phrases are drawn from a small grammar.
        cases: at most so many in each row; 0 for the sizes above.
        names: of the measurements, all by default.

    Raises:
        ValueError: no such measurement, or a file that is no region_descriptions.json.
    """
    known = measurements()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"measurement is {unknown[0]!r}, expected one of {', '.join(known)}. Choose among them.")
    if phrases is not None:
        read_regions(phrases)  # refused here, before a process is started
    context = multiprocessing.get_context("spawn")
    for name in names or known:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            yield pool.submit(measure, name, phrases, cases).result()


def measure(name: str, phrases: Path | None, cases: int) -> dict[str, Any]:
    """One row, measured in this process."""
    pictures = read_regions(phrases) if phrases is not None else draw_regions()
    return document(measurements()[name](pictures, cases))


def read_regions(path: Path) -> list[list[Region]]:
    """Visual Genome's region_descriptions.json -> the regions of each picture that has any."""
    pictures = []
    for picture in json_files.records(json_files.load(path, "phrases"), "phrases"):
        regions = []
        for region in picture.several("regions"):
            x, y, width, height = (region.number(key) for key in ("x", "y", "width", "height"))
            if width > 0 and height > 0 and (phrase := region.text("phrase").strip()):
                regions.append(Region((x, y, x + width, y + height), phrase))
        if regions:
            pictures.append(regions)
    if not pictures:
        raise ValueError(f"regions in {str(path)!r} are none, expected described ones. Give region_descriptions.json.")
    return pictures


def draw_regions(pictures: int = 200) -> list[list[Region]]:
    """Regions with phrases of a small grammar."""
    random = np.random.default_rng(_SEED)
    colors = ("red", "white", "dark blue", "wooden", "metal")
    things = ("man", "trees", "window", "car", "shirt", "sign")
    places = ("on the left", "in the background", "near a building", "wearing a hat", "of the table")
    result = []
    for _ in range(pictures):
        regions = []
        for _ in range(REGIONS):
            x, y, width, height = random.integers([0, 0, 20, 20], [500, 350, 300, 250]).tolist()
            words = [str(random.choice(part)) for part in (("a", "the"), colors, things, places)]
            regions.append(Region((x, y, x + width, y + height), " ".join(words)))
        result.append(regions)
    return result


def draw_pictures(pictures: Sequence[Sequence[Region]], count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Targets with 40 of a picture's own regions, drawn again where it has fewer, and 50 predictions near them.

    A prediction's phrase is that of another region of any picture: almost no pair of phrases comes twice, which is the
    hard case for METEOR.
    """
    random = np.random.default_rng(_SEED)
    phrases = [region.phrase for regions in pictures for region in regions]
    for _ in range(count):
        regions = pictures[int(random.integers(len(pictures)))]
        truth = [regions[i] for i in random.integers(len(regions), size=REGIONS).tolist()]
        boxes = np.array([region.box for region in truth])
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        near = random.integers(REGIONS, size=PREDICTIONS)
        found = boxes[near] + sides[near] * random.uniform(-0.15, 0.15, (PREDICTIONS, 4))
        yield (
            {"boxes": boxes, "captions": [region.phrase for region in truth]},
            {
                "boxes": found,
                "captions": [phrases[i] for i in random.integers(len(phrases), size=PREDICTIONS)],
                "scores": random.random(PREDICTIONS),
            },
        )


def measure_dense_captioning(pictures: Sequence[Sequence[Region]], cases: int) -> Measured:
    """Rows and summary of pictures with 40 regions and 50 predictions each, METEOR included."""
    count, seconds, rows = _at_most(IMAGES, cases), 0.0, []
    for target, prediction in draw_pictures(pictures, count):
        start = time.perf_counter()
        rows.append(dense_captioning.row(target, prediction))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    figures = dense_captioning.summary(rows)
    seconds += time.perf_counter() - start
    asked = sum(int((row["taken"] & (row["iou"] >= dense_captioning.IOUS[0])).sum()) for row in rows)
    notes = {"meteor_scores": asked, "mAP": figures["mAP"], "mAP_detection": figures["mAP_detection"]}
    return Measured("dense_captioning", count, "images", seconds, notes=notes)


def measure_meteor_distinct(pictures: Sequence[Sequence[Region]], cases: int) -> Measured:
    """Pairs of phrases, no pair twice."""
    phrases = sorted({region.phrase for regions in pictures for region in regions})
    random = np.random.default_rng(_SEED)
    # Pair number n is (phrase n // N, phrase n % N).
    count = _at_most(PAIRS, cases)
    numbers = random.permutation(np.unique(random.integers(len(phrases) ** 2, size=2 * count)))[:count]
    pairs = [(phrases[number // len(phrases)], phrases[number % len(phrases)]) for number in numbers]
    return _measure_meteor("meteor_distinct", pairs)


def measure_meteor_repeated(pictures: Sequence[Sequence[Region]], cases: int) -> Measured:
    """Pairs whose reference is a phrase that several regions share, as often as they do, and whose hypothesis is one of
    three phrases that end in the same word: what a model says that always finds the thing and often says the same.
    """
    shared = collections.Counter(region.phrase for regions in pictures for region in regions)
    common = [phrase for phrase, times in shared.items() if times > 1]
    by_word: dict[str, list[str]] = {}
    for phrase in shared:
        by_word.setdefault(phrase.split()[-1].lower(), []).append(phrase)
    random = np.random.default_rng(_SEED)
    weights = np.array([shared[phrase] for phrase in common], float)
    count = _at_most(REPEATED_PAIRS, cases)
    pairs = []
    for chosen in random.choice(len(common), count, p=weights / weights.sum()):
        likely = by_word[common[chosen].split()[-1].lower()]
        pairs.append((common[chosen], likely[(chosen + int(random.integers(3))) % len(likely)]))
    return _measure_meteor("meteor_repeated", pairs)


def measure_referring_run_lengths(pictures: Sequence[Sequence[Region]], cases: int) -> Measured:
    """Boxes and masks of 640 x 480 as the readers of files give them, their runs checked, beside pycocotools' `iou` and
    `area` of the same masks, which check nothing. In the notes: beside its `merge` and `area`, which is what ours asks
    of it; and ours with the check, as of runs that come from elsewhere.
    """
    del pictures
    count = _at_most(EXPRESSIONS, cases)
    drawn = list(_draw_expressions(min(count, 1_000), encoded=True))
    plain = [({**t, "mask": dict(t["mask"])}, {**p, "mask": dict(p["mask"])}) for t, p in drawn]
    pairs, unchecked = (list(itertools.islice(itertools.cycle(each), count)) for each in (drawn, plain))
    mask = masks.pycocotools_mask()

    def theirs() -> None:
        for target, prediction in unchecked:
            mask.iou([prediction["mask"]], [target["mask"]], [0])
            mask.area([prediction["mask"], target["mask"]])

    def sums() -> None:
        for target, prediction in unchecked:
            mask.area([mask.merge([prediction["mask"], target["mask"]], True), prediction["mask"], target["mask"]])

    ours, other, least, checking = _fastest(lambda: _refer(pairs), theirs, sums, lambda: _refer(unchecked))
    against = "pycocotools: iou and area of the same run lengths"
    notes = {"ratio_to_merge_and_area": least / ours, "ratio_with_checks": other / checking}
    return Measured("referring_run_lengths", count, "expressions", ours, against, other / ours, notes)


def measure_referring_arrays(pictures: Sequence[Sequence[Region]], cases: int) -> Measured:
    """The same from arrays, as a model gives them, beside pycocotools' `encode`, `iou` and `area` of the same masks."""
    del pictures
    count = _at_most(EXPRESSIONS, cases)
    drawn = list(_draw_expressions(min(count, 50), encoded=False))
    pairs = list(itertools.islice(itertools.cycle(drawn), count))
    mask = masks.pycocotools_mask()

    def theirs() -> None:
        for target, prediction in pairs:
            both = [mask.encode(np.asfortranarray(side["mask"], np.uint8)) for side in (prediction, target)]
            mask.iou(both[:1], both[1:], [0])
            mask.area(both)

    ours, other = _fastest(lambda: _refer(pairs), theirs, repeats=1)
    against = "pycocotools: encode, iou and area of the same arrays"
    return Measured("referring_arrays", count, "expressions", ours, against, other / ours)


def _measure_meteor(name: str, pairs: Sequence[tuple[str, str]]) -> Measured:
    """Ours as dense captioning asks it, and the jar through its pipe, in turns of some pairs each.

    The jar has been over all pairs before, as Java compiles while it runs; that first time is in the notes.
    """
    dense_captioning.meteor_score(["tables"], "open")
    notes: dict[str, float] = {"distinct_pairs": len(set(pairs))}
    if jar := shutil.which("java"):
        _, first = _ask_jar(jar_process := _open_jar(), pairs)
    ours, theirs, seconds, other = [], [], 0.0, 0.0
    for start in range(0, len(pairs), _TURN):
        turn = pairs[start : start + _TURN]
        began = time.perf_counter()
        ours += [dense_captioning.meteor_score([reference], hypothesis) for reference, hypothesis in turn]
        seconds += time.perf_counter() - began
        if jar:
            answers, taken = _ask_jar(jar_process, turn)
            theirs += answers
            other += taken
    if not jar:
        return Measured(name, len(pairs), "pairs", seconds, "no jar: java is not on the path", None, notes)
    differences = np.abs(np.subtract(ours, theirs))
    notes |= {"jar_rate": len(pairs) / other, "jar_rate_first_time": len(pairs) / first}
    notes |= {"largest_difference": float(differences.max()), "unequal": int((differences > 1e-9).sum())}
    return Measured(name, len(pairs), "pairs", seconds, "meteor-1.5.jar through its pipe", other / seconds, notes)


def _open_jar() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    jar = Meteor()
    _ask_jar(jar, [("its start", "is not measured")])
    return jar


def _ask_jar(jar: Any, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], float]:
    """(scores, seconds)."""
    references = {i: [reference] for i, (reference, _) in enumerate(pairs)}
    hypotheses = {i: [hypothesis] for i, (_, hypothesis) in enumerate(pairs)}
    began = time.perf_counter()
    _, scores = jar.compute_score(references, hypotheses)
    return scores, time.perf_counter() - began


def _refer(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    referring.summary([referring.row(target, prediction) for target, prediction in pairs])


def _draw_expressions(count: int, *, encoded: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Three overlapping ellipses each, with a ragged edge; the predicted one is moved and has another edge."""
    random = np.random.default_rng(_SEED)
    height, width = SIZE
    for _ in range(count):
        center = random.uniform(0.25, 0.75, 2) * [width, height]
        radii = random.uniform(20, 120, (3, 2))
        offsets = random.uniform(-60, 60, (3, 2))
        sides = []
        for moved in (np.zeros(2), random.uniform(-12, 12, 2)):
            mask = np.zeros(SIZE, bool)
            edge = random.uniform(0.9, 1.1, (height, 1))
            for radius, offset in zip(radii, offsets, strict=True):
                x, y = (np.arange(n) - c for n, c in zip((width, height), center + offset + moved, strict=True))
                mask |= (x / radius[0]) ** 2 + (y[:, None] / radius[1]) ** 2 < edge
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
            sides.append({"box": box, "mask": masks.as_rle(mask, "mask") if encoded else mask})
        target, prediction = sides
        yield {"text": "the third thing from the left", "split": "drawn", **target}, prediction


def _fastest(*functions: Callable[[], None], repeats: int = _REPEATS) -> list[float]:
    """Seconds of each function, the least of several turns; they take turns, to share the machine's luck."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def _at_most(full: int, cases: int) -> int:
    return min(full, cases) if cases else full
