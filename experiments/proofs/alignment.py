"""Proof: how many words get the place where the mouse was while they were said.

    PIXEL_ALIGN_SAMPLES=... python -m experiments.proofs.alignment

Narratives whose every word has a time of its own are cut into utterances of 2 to 6 words; the word times are hidden;
each rule then says which utterance spoke which word. A word counts as right if the box it is given holds the centre of
the trace points recorded during the word itself. Words without trace points of their own are not counted. `--help`
lists the settings.

Rows: the published rule (relative position), ours (alignment on the text), and the ceiling: the utterance that really
holds the word. Writes docs/proof/alignment.json and the table in docs/alignment.md. A minute on one core; nothing to
resume.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import alignment, synthetic
from data_pipelines.alignment import Utterance
from experiments import record
from pixel_align.text_alignment import words_of

RULES = ("published", "ours", "ceiling")


@dataclasses.dataclass(frozen=True)
class Told:
    """A narrative whose words have times. `words` are exactly the words of `caption`, in order."""

    caption: str
    words: list[Utterance]
    traces: list[np.ndarray]  # float[n, 3] of (x, y, t)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", default=os.environ.get("PIXEL_ALIGN_SAMPLES"), help="default: $PIXEL_ALIGN_SAMPLES"
    )
    parser.add_argument("--seeds", type=int, default=20, help="ways to cut each real narrative into utterances")
    parser.add_argument("--scenes", type=int, default=2000, help="synthetic narratives")
    args = parser.parse_args()
    if not args.samples:
        sys.exit("error: folder of samples is not set, expected real narratives. Set $PIXEL_ALIGN_SAMPLES.")
    real = list(real_narratives(Path(args.samples) / "localized_narratives" / "vidln_as_ln_DERIVED.jsonl"))
    drawn = list(synthetic_narratives(args.scenes))
    sets = {
        "real traces": measure(real, seeds=args.seeds, noise=0.0),
        "real traces, 10% of the transcript's words wrong": measure(real, seeds=args.seeds, noise=0.1),
        "synthetic": measure(drawn, seeds=1, noise=0.0),
        "synthetic, 10% of the transcript's words wrong": measure(drawn, seeds=1, noise=0.1),
    }
    result = {
        "command": "python -m experiments.proofs.alignment",
        "commit": record.commit(),
        "settings": {"seeds": args.seeds, "scenes": args.scenes, "narratives": len(real)},
        "sets": sets,
    }
    record.write("alignment", result)
    record.fill(record.ROOT / "docs" / "alignment.md", table(result))
    print(table(result))


def real_narratives(path: Path) -> Iterator[Told]:
    """Narratives of the sample in which every utterance is one word."""
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        # An utterance such as "T-shirt" is two words of the caption that share its time.
        words = [
            Utterance(word, item["start_time"], item["end_time"])
            for item in record["timed_caption"]
            for word in words_of(item["utterance"])
        ]
        yield Told(" ".join(word.text for word in words), words, _traces(record))


def synthetic_narratives(scenes: int) -> Iterator[Told]:
    """Narratives of drawn scenes; their maker knows when each word was said."""
    world = synthetic.World()
    for index in range(scenes):
        scene = synthetic.scene(world, seed=0, index=index, split="validation")
        words = [Utterance(text, word.start, word.end) for word in scene.words for text in words_of(word.text)]
        yield Told(scene.record["caption"], words, _traces(scene.record))


def measure(narratives: Sequence[Told], *, seeds: int, noise: float) -> dict[str, Any]:
    """Counts over all narratives and ways to cut them: per rule, words right, and words given another utterance's
    place.
    """
    counts: Counter[str] = Counter()
    for seed, (number, told) in itertools.product(range(seeds), enumerate(narratives)):
        rng = np.random.default_rng([seed, number])
        utterances, spoke = cut(told.words, rng)
        heard = [
            Utterance(" ".join(_hear(words_of(item.text), noise, rng)), item.start, item.end) for item in utterances
        ]
        places = alignment.utterance_places(heard, told.traces)
        assert len(alignment.word_spans(told.caption)) == len(spoke), "the words of a caption are not its timed words"
        assigned = {
            "published": alignment.by_proportion(len(spoke), places.valid),
            "ours": alignment.by_text(told.caption, heard),
            "ceiling": spoke,
        }
        own = [own_center(told.traces, word) for word in told.words]
        counts["words"] += len(spoke)
        counts["words with trace points"] += sum(center is not None for center in own)
        for rule, utterance in assigned.items():
            placed = (utterance >= 0) & places.valid[utterance]
            counts[f"{rule}: given a place"] += int(placed.sum())
            counts[f"{rule}: given another utterance's place"] += int((placed & (utterance != spoke)).sum())
            for center, row, has in zip(own, utterance, placed, strict=True):
                if center is not None and has:
                    low, high = places.boxes[row, :2] - 1e-6, places.boxes[row, 2:] + 1e-6
                    counts[f"{rule}: right"] += bool((center >= low).all() and (center <= high).all())
    return dict(sorted(counts.items()))


def cut(words: Sequence[Utterance], rng: np.random.Generator) -> tuple[list[Utterance], np.ndarray]:
    """Words -> utterances of 2 to 6 of them (the last may be shorter), and int[W]: which utterance holds each word."""
    utterances, spoke = [], []
    start = 0
    while start < len(words):
        group = words[start : start + int(rng.integers(2, 7))]
        utterances.append(Utterance(" ".join(word.text for word in group), group[0].start, group[-1].end))
        spoke += [len(utterances) - 1] * len(group)
        start += len(group)
    return utterances, np.array(spoke)


def own_center(traces: Sequence[np.ndarray], word: Utterance) -> np.ndarray | None:
    """float[2]: the mean of the points recorded during a word, moved into the picture; None where there is none."""
    points = np.concatenate([stroke[(stroke[:, 2] >= word.start) & (stroke[:, 2] <= word.end)] for stroke in traces])
    return np.clip(points[:, :2], 0.0, 1.0).mean(axis=0) if len(points) else None


def _hear(words: Sequence[str], noise: float, rng: np.random.Generator) -> Iterator[str]:
    """What a transcript has for some words: a share is dropped, doubled or misheard, one third each."""
    for word in words:
        kind = rng.choice(4, p=[1 - noise, noise / 3, noise / 3, noise / 3])
        if kind == 3:
            yield synthetic.MISHEARD.get(word.lower(), word[:-1] or "uh")
        else:
            yield from [word] * (1, 0, 2)[kind]


def _traces(record: dict[str, Any]) -> list[np.ndarray]:
    return [np.array([[p["x"], p["y"], p["t"]] for p in stroke]).reshape(-1, 3) for stroke in record["traces"]]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| narratives | rule | words right | of | share | given another utterance's place |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in result["sets"].items():
        total = counts["words with trace points"]
        for rule in RULES:
            right = counts[f"{rule}: right"]
            wrong, given = counts[f"{rule}: given another utterance's place"], counts[f"{rule}: given a place"]
            lines.append(f"| {name} | {rule} | {right:,} | {total:,} | {right / total:.1%} | {wrong:,} of {given:,} |")
    lines.append("")
    lines.append(f"`{result['command']}`, commit {result['commit']}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
