"""Which word of a narrative has which place: utterance times -> the trace in them, caption words -> utterances.

Frames: x and y in [0, 1] of the picture, boxes xyxy. Times are in seconds. Places belong to utterances, words point to
them: the rule that joins the two is chosen by name (`by_text`, `by_proportion`), the places are the same for both.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pixel_align.text_alignment import align, pair_misheard, split_words, words_of

NUM_POINTS = 16  # places of one utterance along its path, the published number


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A piece of speech as the publisher timed it."""

    text: str
    start: float  # seconds
    end: float  # seconds


@dataclasses.dataclass(frozen=True)
class Places:
    """What the mouse showed during each of U utterances. Rows where `valid` is False are zeros and mean nothing."""

    points: np.ndarray  # float32[U, 16, 2], xy, uniform in recorded time
    centers: np.ndarray  # float32[U, 2], average over recorded time
    boxes: np.ndarray  # float32[U, 4], xyxy, around the path
    valid: np.ndarray  # bool[U]


def clean_strokes(traces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Strokes as recorded, float[n, 3] of (x, y, t) -> the same without empty ones, each in order of time.

    The sort is stable: points of equal time keep their order.
    """
    return [np.asarray(stroke)[np.argsort(np.asarray(stroke)[:, 2], kind="stable")] for stroke in traces if len(stroke)]


def path_within(strokes: Sequence[np.ndarray], start: float, end: float) -> list[np.ndarray]:
    """The parts of the recorded path inside [start, end]: float[n, 3] of (x, y, t) for each stroke that has any.

    Each part is the stroke's own points inside the span and, where the stroke goes on beyond the span, its interpolated
    position at the span's edge. Nothing is extrapolated: before a stroke's first and after its last point there is no
    trace, and the way from one stroke to the next is none either. A span without length holds nothing.
    """
    parts = []
    for stroke in strokes:
        times = stroke[:, 2]
        first, last = max(start, times[0]), min(end, times[-1])
        # Touching at one moment is not being recorded during the span: that point belongs to the neighbour. A stroke
        # that is itself one moment belongs to the span that begins with it or holds it.
        if first > last or (first == last and (times[0] < times[-1] or first == end)):
            continue
        inside = stroke[(times >= first) & (times <= last)]
        edges = [
            np.array([[np.interp(t, times, stroke[:, 0]), np.interp(t, times, stroke[:, 1]), t]])
            for t, recorded in ((first, np.any(times == first)), (last, np.any(times == last)))
            if not recorded
        ]
        # np.interp never leaves the stroke here: first and last lie inside [times[0], times[-1]].
        part = np.concatenate([inside, *edges])
        parts.append(part[np.argsort(part[:, 2], kind="stable")])
    return parts


def utterance_places(utterances: Sequence[Utterance], traces: Sequence[np.ndarray]) -> Places:
    """Where the mouse was during each utterance.

    Args:
        utterances: U of them, in any order, spans of any length.
        traces: strokes as recorded, each float[n, 3] of (x, y, t), in any order.

    An utterance has a place if some of the recorded path lies in its span and inside the picture. Coordinates beyond
    the picture's edge are moved onto the edge. Time between strokes has no weight. Strokes of a single moment count for
    the box, and for points and centre only where nothing longer is recorded.
    """
    strokes = clean_strokes(traces)
    count = len(utterances)
    places = Places(
        points=np.zeros((count, NUM_POINTS, 2), np.float32),
        centers=np.zeros((count, 2), np.float32),
        boxes=np.zeros((count, 4), np.float32),
        valid=np.zeros(count, bool),
    )
    for i, utterance in enumerate(utterances):
        parts = path_within(strokes, utterance.start, utterance.end)
        if not any(_inside(part) for part in parts):
            continue
        parts = [np.concatenate([np.clip(part[:, :2], 0.0, 1.0), part[:, 2:]], axis=1) for part in parts]
        every = np.concatenate(parts)[:, :2]
        places.points[i] = _resample([part for part in parts if part[-1, 2] > part[0, 2]], every)
        places.centers[i] = _time_average(parts, every)
        places.boxes[i] = [*every.min(axis=0), *every.max(axis=0)]
        places.valid[i] = True
    return places


def word_spans(caption: str) -> np.ndarray:
    """int32[W, 2]: the words of a caption as [start, end) in characters."""
    return np.array(split_words(caption), np.int32).reshape(-1, 2)


def by_text(caption: str, utterances: Sequence[Utterance]) -> np.ndarray:
    """int32[W]: the utterance that spoke each word of the caption, -1 where the text does not tell. Ours.

    Transcript and caption are aligned word by word. A caption word takes the utterance of its partner; a word without
    one takes the utterance only if both its nearest partnered neighbours were spoken in it (the transcript dropped a
    word inside one utterance: its time is inside that span too). Every other word has no utterance: none borrows a
    neighbour's.
    """
    spoken = [(word, i) for i, utterance in enumerate(utterances) for word in words_of(utterance.text)]
    words = words_of(caption)
    pairs = align(words, [word for word, _ in spoken])
    pairs = pair_misheard(pairs, len(words), len(spoken))
    result = np.full(len(words), -1, np.int32)
    for (i, j), (next_i, next_j) in itertools.pairwise(pairs):
        if spoken[j][1] == spoken[next_j][1]:
            result[i:next_i] = spoken[j][1]
    for i, j in pairs:
        result[i] = spoken[j][1]
    return result


def by_proportion(num_words: int, valid: np.ndarray) -> np.ndarray:
    """int32[num_words]: the utterance of each word by relative position alone; the published rule, for comparison.

    Word k of n (from 1) stands at k / n of the way from the first to the last utterance that has a place, and takes the
    nearest of those (the earlier one of two equally near); no text is compared, a word without a place borrows its
    neighbour's. -1 only where no utterance has a place (`valid` bool[U]). With one word per utterance the first word
    takes the second's place: the rule leans forward, most at the start. Source: pixel_llm's
    `DecodeLocalizedNarrativesAnnotations`.
    """
    candidates = np.flatnonzero(valid)
    if candidates.size == 0:
        return np.full(num_words, -1, np.int32)
    at = candidates[0] + np.arange(1, num_words + 1) / max(num_words, 1) * (candidates[-1] - candidates[0])
    return candidates[np.abs(at[:, None] - candidates[None, :]).argmin(axis=1)].astype(np.int32)


def _inside(part: np.ndarray) -> bool:
    """Whether any vertex of a path float[n, 3] is inside the picture."""
    return bool(((part[:, :2] >= 0.0) & (part[:, :2] <= 1.0)).all(axis=1).any())


def _resample(parts: Sequence[np.ndarray], every: np.ndarray) -> np.ndarray:
    """float[16, 2]: positions at uniform steps of recorded time, from the first moment to the last.

    Args:
        parts: pieces of path float[n, 3] of some length in time.
        every: float[m, 2], all positions; they serve in order where no part has a length.
    """
    if not parts:
        return every[np.round(np.linspace(0, len(every) - 1, NUM_POINTS)).astype(int)]
    # The pieces are laid end to end on one clock of recorded time. At a seam two positions have the same time; a sample
    # on the seam takes one of them and never a position between the strokes.
    clock, positions, elapsed = [], [], 0.0
    for part in parts:
        clock.append(part[:, 2] - part[0, 2] + elapsed)
        positions.append(part[:, :2])
        elapsed = clock[-1][-1]
    times, xy = np.concatenate(clock), np.concatenate(positions)
    at = np.linspace(0.0, elapsed, NUM_POINTS)
    return np.stack([np.interp(at, times, xy[:, 0]), np.interp(at, times, xy[:, 1])], axis=-1)


def _time_average(parts: Sequence[np.ndarray], every: np.ndarray) -> np.ndarray:
    """float[2]: the average position over recorded time; over the points where the whole path has no length in time."""
    total, weight = np.zeros(2), 0.0
    for part in parts:
        steps = np.diff(part[:, 2])
        total += (steps[:, None] * (part[1:, :2] + part[:-1, :2]) / 2).sum(axis=0)
        weight += float(steps.sum())
    return total / weight if weight > 0 else every.mean(axis=0)
