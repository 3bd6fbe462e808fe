"""A task and a mode -> metrics: predicts every example once, scores it with the task's metrics, keeps what was
predicted.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import rich.console
import rich.progress

from pixel_align import data, draw, geometry, image, predict, text
from pixel_align.batch import Batch
from pixel_align.evaluation import traces
from pixel_align.experiment import Eval, Experiment
from pixel_align.models.pixel_llm import Request

MODES = ("trace",)
Wrap = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one evaluation.

    Attributes:
      metrics: name -> figure, the house's keys; controls stand as "shuffled/...", "swapped/...", "center/...",
        "mean/...".
      predictions: one JSON-able dict per example, coordinates in pixels of the original.
      pictures: a sheet of the first examples, None where none were asked for.
      examples: how many were scored.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    pictures: PIL.Image.Image | None
    examples: int


def evaluate(
    config: Experiment,
    evaluation: Eval,
    params: Any,
    vocabulary: text.Vocabulary,
    *,
    controls: bool = False,
    wrap: Wrap = lambda batches: batches,
) -> Result:
    """Scores a task, each example exactly once.

    Args:
      params: of the model, as `PixelLLM` takes them.
      controls: also score what must fail: each text with the last picture before it that is another one (`shuffled`),
        each word with the place of another word of its sentence (`swapped`), readers without eyes (`center`, `mean`).
      wrap: put around the iterator of batches, for a progress bar.

    Raises:
      ValueError: unknown task, split or mode, or no example.
    """
    check(config, evaluation)
    score = data.scorer(evaluation.task)
    converter = data.PixelFeatureConverter(config.model.shape, vocabulary, config.data.augment)
    encode, answer = predict.compiled(config.model)
    targets: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    shuffled_targets: list[dict[str, Any]] = []
    shuffled: list[dict[str, Any]] = []
    others = _Others()
    lines: list[dict[str, Any]] = []
    drawn: list[tuple[np.ndarray, predict.Prediction]] = []
    drawn_ids: set[str] = set()
    batches = data.evaluation_batches(
        config.data, evaluation.task, evaluation.split, converter, evaluation.batch_size, evaluation.limit
    )
    for batch, group in wrap(batches):
        examples, placements = [example for example, _ in group], [placement for _, placement in group]
        request = _request(batch)
        features = encode(params, batch.images, batch.valid_size)
        batch_targets = [_target(*pair) for pair in group]
        targets += batch_targets
        pairs = _predict(answer, params, features, request, batch_targets, placements, vocabulary)
        said += [_for_metrics(*pair) for pair in pairs]
        if controls:
            kept = [
                _Seen(_string(example["image_id"]), features[i], batch.valid_size[i], batch.prompt_boxes[i], placement)
                for i, (example, placement) in enumerate(group)
            ]
            partners = [others.of(one) for one in kept]
            # The first pictures have none before them; rows that pad the batch repeat its first.
            rows = [partner or own for partner, own in zip(partners, kept, strict=True)]
            rows += rows[:1] * (len(batch.images) - len(rows))
            moved = dataclasses.replace(
                request,
                valid_size=np.stack([row.valid_size for row in rows]),
                prompt_boxes=np.stack([row.prompt_boxes for row in rows]),
            )
            elsewhere = [row.placement for row in rows[: len(group)]]
            wrong = _predict(
                answer, params, jnp.stack([r.features for r in rows]), moved, batch_targets, elsewhere, vocabulary
            )
            for pair, partner, one, target in zip(wrong, partners, kept, batch_targets, strict=True):
                if partner is not None:
                    sizes = partner.placement.original_size, one.placement.original_size
                    shuffled.append(_for_metrics(*_stretched(pair, *sizes)))
                    shuffled_targets.append(target)
        for example, target, (read, written) in zip(examples, batch_targets, pairs, strict=True):
            own = written.to_json()
            name = _string(example["example_id"])
            lines.append({"id": name, "target": target["text"], "read": read.to_json()["words"], **own})
            # One sentence of each picture: neighbours in a set are often of the same one.
            seen = _string(example["image_id"])
            if len(drawn) < evaluation.pictures and seen not in drawn_ids:
                drawn_ids.add(seen)
                drawn.append((image.read_image(example["image"]), written))
    if not targets:
        raise ValueError(
            f"task {evaluation.task!r} has no example in split {evaluation.split!r}, expected at least one. "
            "Check data.dir."
        )
    names = sorted({name for target in targets for name in target["object_names"]})
    metrics = score(targets, said)
    if shuffled:
        metrics |= _prefixed("shuffled", score(shuffled_targets, shuffled))
    if controls:
        exchanged = [traces.swapped(t, p, names) for t, p in zip(targets, said, strict=True)]
        metrics |= _prefixed("swapped", score(targets, exchanged))
        for reader, function in traces.READERS.items():
            blind = score(targets, [function(t, names) for t in targets])
            metrics |= _prefixed(reader, {key: blind[key] for key in ("point_distance", "inside_box")})
    sheet = None
    if drawn:
        pictures = [draw.annotate(pixels, p.words, *p.places()) for pixels, p in drawn]
        sheet = draw.sheet(pictures, columns=min(4, len(pictures)))
    return Result(metrics, lines, sheet, len(targets))


def progress(config: Experiment, evaluation: Eval, console: rich.console.Console) -> Wrap:
    """A `wrap` for `evaluate` that shows a bar with the time left, by pictures: one may have several texts."""

    def wrap(batches: Iterable[Any]) -> Iterable[Any]:
        total = data.count_pictures(config.data, evaluation.task, evaluation.split)
        columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
        with rich.progress.Progress(*columns, console=console) as bars:
            bar, last = bars.add_task("evaluate", total=total), None
            for batch, group in batches:
                yield batch, group
                for example, _ in group:
                    # The texts of a picture follow each other.
                    if (seen := example["image_id"]) != last:
                        last = seen
                        bars.advance(bar)

    return wrap


def check(config: Experiment, evaluation: Eval) -> None:
    """Raises ValueError, before anything is computed, for an evaluation that cannot be done."""
    if evaluation.mode not in MODES:
        raise ValueError(f"mode is {evaluation.mode!r}, expected one of {', '.join(MODES)}. Choose one of them.")
    data.check_task(config.data, evaluation.task, evaluation.split)
    data.scorer(evaluation.task)


class _Seen(NamedTuple):
    """One picture as the model keeps it."""

    image_id: str
    features: jax.Array  # Float[h, w, D]
    valid_size: np.ndarray
    prompt_boxes: np.ndarray
    placement: geometry.Placement


@dataclasses.dataclass
class _Others:
    """For each picture of a stream, the last one before it that is another: the same whatever the size of batches."""

    last: _Seen | None = None
    before: _Seen | None = None

    def of(self, picture: _Seen) -> _Seen | None:
        """The other picture, None for the first; several narratives of one picture share theirs."""
        if self.last is not None and self.last.image_id != picture.image_id:
            self.before = self.last
        self.last = picture
        return self.before


def write(result: Result, folder: Path) -> None:
    """metrics.json, predictions.jsonl and pictures.png, each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in result.predictions)
    finite = {name: value if np.isfinite(value) else None for name, value in result.metrics.items()}
    for name, content in (
        ("predictions.jsonl", lines),
        ("metrics.json", json.dumps({"examples": result.examples, **finite}, indent=2) + "\n"),
    ):
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)
    if result.pictures is not None:
        result.pictures.save(folder / "pictures.png")


Pair = tuple[predict.Prediction, predict.Prediction]  # (read: the target's text, written: the model's own)


def _predict(
    answer: Any,
    params: Any,
    features: jax.Array,
    request: Request,
    targets: list[dict[str, Any]],
    placements: list[geometry.Placement],
    vocabulary: text.Vocabulary,
) -> list[Pair]:
    read = jax.tree.map(np.asarray, answer("read", params, features, request))
    written = jax.tree.map(np.asarray, answer("trace", params, features, request))
    pairs = []
    for i, (target, placement) in enumerate(zip(targets, placements, strict=True)):
        one, own = (jax.tree.map(lambda x, i=i: x[i, 0], whole) for whole in (read, written))
        pairs.append(
            (predict.assemble(one, vocabulary, placement, target["text"]), predict.assemble(own, vocabulary, placement))
        )
    return pairs


def _for_metrics(read: predict.Prediction, written: predict.Prediction) -> dict[str, Any]:
    return {
        "points": read.points,
        "text": written.text,
        "word_spans": written.word_spans,
        "word_points": written.points,
    }


def _stretched(pair: Pair, size: tuple[int, int], onto: tuple[int, int]) -> Pair:
    """Points in a picture of `size` -> the same fractions of a picture of size `onto`, both (height, width)."""
    read, written = (
        dataclasses.replace(p, points=geometry.to_pixels(geometry.to_fractions(p.points, size), onto)) for p in pair
    )
    return read, written


def _target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """An example of a trace task -> the target of `evaluation.traces`, in pixels of the original."""
    size = placement.original_size

    def pixels(name: str, width: int) -> np.ndarray:
        return geometry.to_pixels(np.asarray(example[name], np.float64).reshape(-1, width), size)

    return {
        "text": _string(example["text"]),
        "word_spans": np.asarray(example["word_spans"]).reshape(-1, 2),
        "word_boxes": pixels("word_boxes", 4),
        "word_located": np.asarray(example["word_located"], bool),
        "object_boxes": pixels("object_boxes", 4),
        "object_names": [_string(name) for name in example["object_names"]],
        "size": size,
    }


def _request(batch: Batch) -> Request:
    return Request(
        batch.valid_size, batch.prompt_boxes, batch.instruction_tokens, batch.instruction_mask, batch.text_tokens
    )


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _string(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
