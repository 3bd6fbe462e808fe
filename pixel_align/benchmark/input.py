"""How many photographs a second become batches, for traces and for referring, and where the time goes.

    pixel-align benchmark input --preset bench --json rows.jsonl

JPEGs of 640 x 480 of the weight of photographs, each with a narrative or with expressions, are built into sets by
`python -m data_pipelines build own` in a temporary folder and read as training reads them. Of each pipeline: its
stages by themselves on one thread; decoding alone on all threads; and the whole with as many, whose ratio is against
decoding alone. Nothing else runs beside the whole, as where an accelerator trains; where the CPU trains, too, the two
share its cores. `data_wait` in a run's metrics.jsonl says what share of the time its steps waited for data.
"""

import concurrent.futures
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image

from pixel_align import converter, data, models, text
from pixel_align.batch import Shape
from pixel_align.benchmark.rows import Measured, document
from pixel_align.experiment import Experiment

SIZE = 640, 480
QUALITY = 90
PICTURES = 96  # different ones
REGIONS = 8  # of a picture, to refer to
TURNS = 3  # of stages; the fastest counts
WARM = 4  # batches before the time of the whole begins

_SEED = 0
_NOUNS = ("man", "tree", "window", "car", "shirt", "sign", "dog", "table", "road", "cloud")
_WORDS = ("the", "red", "small", "left", "near", "behind", "white", "wooden", "old", "bright")


def run(config: Experiment, images: int = 0) -> Iterator[dict[str, Any]]:
    """Rows as they are measured.

    Args:
        config: whose model, batch size and augmentation are used.
        images: that the whole pipelines turn into batches; 0 for 2,000.

    Raises:
        ValueError: a set that cannot be built.
    """
    images, cores = images or 2_000, _cores()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sizes = write_pictures(root)
        build(root)
        vocabulary = learn_vocabulary(root, config)
        for name, task, shape in pipelines(config):
            read = dataclasses.replace(
                config.data,
                modules=("data_pipelines.own_data",),
                mixture=task,
                split="train",
                dir=str(root / "data"),
                further=(),
                workers=cores,
                shuffle_buffer=4 * PICTURES,
            )
            model = dataclasses.replace(config.model, shape=shape)
            rows = models.family_of(model).converter(model, vocabulary, read.augment)
            examples = _examples(read, rows, PICTURES)
            seconds = stages(read, rows, examples, shape.canvas)
            for stage, each in seconds.items():
                yield document(Measured(f"{name}/{stage}", len(examples), "images", each * len(examples)))
            alone = decoding_alone(examples, images, cores)
            yield document(
                Measured(f"{name}/decoding_alone", images, "images", alone, notes={"per_core": images / alone / cores})
            )
            whole, count = through(read, rows, images)
            ratio = (count / whole) / (images / alone)
            notes = {
                "per_core": count / whole / cores,
                "cores": float(cores),
                "bytes_per_image": float(np.mean(sizes)),
                "one_thread_ms": 1e3 * sum(seconds.values()),
            }
            yield document(Measured(f"{name}/whole", count, "images", whole, "decoding alone", ratio, notes))


def pipelines(config: Experiment) -> list[tuple[str, str, Shape]]:
    """(name, task, shape of its batches): one long text about a picture, and several expressions that share it."""
    shape = dataclasses.replace(config.model.shape, mask=0, prompt_mask=0, described=0)
    refer = dataclasses.replace(shape, regions=REGIONS, prompts=1, text=32, instruction=32, objects=0)
    return [("trace", "own_narratives", shape), ("refer", "own_expressions", refer)]


def write_pictures(root: Path) -> list[int]:
    """root/pictures/*.jpg and root/own.jsonl; returns the bytes of each picture."""
    random = np.random.default_rng(_SEED)
    (root / "pictures").mkdir()
    sizes = []
    with (root / "own.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(PICTURES):
            encoded = photograph(random)
            (root / "pictures" / f"{number}.jpg").write_bytes(encoded)
            sizes.append(len(encoded))
            lines.write(json.dumps({"file": f"{number}.jpg", **_told(random)}) + "\n")
    return sizes


def photograph(random: np.random.Generator) -> bytes:
    """A JPEG of 640 x 480: shapes at all scales, finer ones fainter, as in photographs; some 100 kB."""
    width, height = SIZE
    sheet = np.zeros((height, width, 3), np.float32)
    for octave in range(3, 9):
        cells = random.normal(size=(2**octave * 3 // 4, 2**octave, 3)).astype(np.float32)
        layers = [PIL.Image.fromarray(cells[..., k]).resize(SIZE, PIL.Image.Resampling.BICUBIC) for k in range(3)]
        sheet += np.stack([np.asarray(layer) for layer in layers], axis=-1) * 160 / 2 ** (0.7 * octave)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.clip(sheet + 128, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _told(random: np.random.Generator) -> dict[str, Any]:
    """A narrative of eight utterances with a trace, and expressions with boxes, as docs/own_data.md says."""
    phrases = [f"{' '.join(random.choice(_WORDS, 3))} {random.choice(_NOUNS)}" for _ in range(REGIONS)]
    times = [(float(k), k + 1.0) for k in range(REGIONS)]
    timed = [
        {"utterance": phrase, "start_time": start, "end_time": end}
        for phrase, (start, end) in zip(phrases, times, strict=True)
    ]
    traces = [
        [{"x": float(x), "y": float(y), "t": start + k / 20} for k, (x, y) in enumerate(random.random((20, 2)))]
        for start, _ in times
    ]
    corners = random.integers((0, 0), (500, 350), (REGIONS, 2))
    boxes = np.concatenate([corners, corners + random.integers(30, 120, (REGIONS, 2))], axis=1).tolist()
    return {
        "narratives": [{"caption": " ".join(phrases), "timed_caption": timed, "traces": traces}],
        "expressions": [{"text": phrase, "box": box} for phrase, box in zip(phrases, boxes, strict=True)],
    }


def build(root: Path) -> None:
    """root/data, by the command that a user would give."""
    done = subprocess.run([sys.executable, *build_command(root)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["python -m data_pipelines said nothing"])[-1])


def build_command(root: Path) -> list[str]:
    """That command's words, without the interpreter."""
    words = ["-m", "data_pipelines", "build", "own", "--annotations", str(root / "own.jsonl")]
    return [*words, "--images", str(root / "pictures"), "--out", str(root / "data"), "--split", "train"]


def learn_vocabulary(root: Path, config: Experiment) -> text.Vocabulary:
    """The experiment's vocabulary, or one learned from what is told of the pictures."""
    if config.data.vocabulary:
        return text.load_vocabulary(config.data.vocabulary)
    lines = (root / "own.jsonl").read_text(encoding="utf-8").splitlines()
    said = [told["narratives"][0]["caption"] for told in map(json.loads, lines)]
    return text.load_vocabulary(text.train_sentencepiece(said, root / "vocabulary.model", 80, model_type="bpe"))


def _examples(read: data.DataConfig, rows: converter.Converter, count: int) -> list[Any]:
    """The first examples of the set as a Task gives them, pictures encoded."""
    found = data.dataset(read, read.mixture, read.split, (0, 1), rows.regions).as_numpy_iterator()
    return [example for example, _ in zip(found, range(count), strict=False)]


def stages(read: data.DataConfig, rows: converter.Converter, examples: Sequence[Any], canvas: int) -> dict[str, float]:
    """Seconds of an image on one thread: reading records, decoding, laying on the canvas, the rest of its row (words,
    places), putting rows together to batches.
    """

    def each(function: Callable[[Any], Any]) -> float:
        return _fastest(lambda: [function(example) for example in examples]) / len(examples)

    reading = _fastest(lambda: _examples(read, rows, len(examples))) / len(examples)
    decoding = each(lambda example: decode(example["image"]))
    random = np.random.default_rng(_SEED)
    placing = each(lambda example: converter.picture(example, canvas, read.augment, random)) - decoding
    converting = each(lambda example: rows(example, random)) - decoding - placing
    made = [rows(example, random)[0] for example in examples[: read.batch_size]]
    stacking = _fastest(lambda: data.stack(made)) / len(made)
    found = {"read": reading, "decode": decoding, "place": placing, "convert": converting, "stack": stacking}
    return {name: max(seconds, 1e-9) for name, seconds in found.items()}


def decode(encoded: bytes) -> np.ndarray:
    """A JPEG -> uint8[H, W, 3], by PIL and nothing else."""
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture.convert("RGB"))


def decoding_alone(examples: Sequence[Any], images: int, threads: int) -> float:
    """Seconds that as many threads need to decode so many pictures."""

    def decode_share(share: int) -> None:
        for number in range(share, images, threads):
            decode(examples[number % len(examples)]["image"])

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode_share, range(threads)))  # warm
        begun = time.perf_counter()
        list(pool.map(decode_share, range(threads)))
        return time.perf_counter() - begun


def through(read: data.DataConfig, rows: converter.Converter, images: int) -> tuple[float, int]:
    """(seconds, images) of whole batches as training gets them, once the stream runs."""
    count = -(-images // read.batch_size)
    with data.Stream(read, rows) as stream:
        for _ in range(WARM + read.prefetch):
            next(stream)
        begun = time.perf_counter()
        for _ in range(count):
            batch, _ = next(stream)
        seconds = time.perf_counter() - begun
    assert jax.tree.leaves(batch)[0].shape[0] == read.batch_size
    return seconds, count * read.batch_size


def _fastest(function: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(TURNS):
        begun = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begun)
    return best


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
