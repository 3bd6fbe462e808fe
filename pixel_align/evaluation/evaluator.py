"""A task and a mode -> metrics: predicts every example once, scores it with the task's metrics, keeps what was
predicted.
"""

import dataclasses
import functools
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

from pixel_align import data, distributed, draw, geometry, image, models, predict, sharding, text
from pixel_align.converter import string
from pixel_align.evaluation import seen, traces
from pixel_align.evaluation.seen import Seen
from pixel_align.experiment import Eval, Experiment
from pixel_align.prediction import Prediction, run_lengths

Wrap = Callable[[Iterable[Any]], Iterable[Any]]
Controls = dict[str, tuple[list[Any], tuple[str, ...]]]  # name -> (readings, figures that are kept; () for all)


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one evaluation.

    Attributes:
      metrics: name -> figure, the house's keys; controls stand as "shuffled/...", "swapped/...", "center/...",
        "mean/...".
      predictions: one JSON-able dict per example, coordinates in pixels of the original.
      targets: one JSON-able dict per example, what the predictions were scored against, without masks.
      pictures: a sheet of the first examples, None where none were asked for.
      examples: how many were scored.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    targets: list[dict[str, Any]]
    pictures: PIL.Image.Image | None
    examples: int


def evaluate(
    config: Experiment,
    evaluation: Eval,
    params: Any,
    vocabulary: text.Vocabulary,
    *,
    controls: bool = False,
    history: Seen | None = None,
    wrap: Wrap = lambda batches: batches,
    mesh: jax.sharding.Mesh | None = None,
) -> Result:
    """Scores a task, each example exactly once. Several processes share every batch; all of them get the result.

    Args:
      params: of the model.
      controls: also score what must fail: each text with the last picture before it that is another one (`shuffled`),
        what the mode adds (CONTROLS): each word with the place of another word of its sentence (`swapped`), readers
        without eyes (`center`, `mean`).
      history: what the model was trained on: metrics then say how it does on pictures that it has not seen.
      wrap: put around the iterator of batches, for a progress bar.
      mesh: where the parameters lie, over which batches are then spread; needed in several processes.

    Raises:
      ValueError: unknown task, split or mode, or no example; controls in several processes.
    """
    check(config, evaluation)
    if controls and jax.process_count() > 1:
        raise ValueError(
            f"number of processes is {jax.process_count()}, expected 1 for controls: they ask about pictures that came "
            "before, which other processes hold. Evaluate the checkpoint in one process."
        )
    if evaluation.shape is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, shape=evaluation.shape))
    family = models.family_of(config.model)
    scoring, run = family.modes[evaluation.mode].scoring, predict.compiled(config.model)
    assert scoring is not None  # or check had refused
    score = data.scorer(evaluation.task)
    seen_as = dataclasses.replace(config.data.augment, evaluation=evaluation.transform)
    converter = family.converter(config.model, vocabulary, seen_as)

    rows = list(range(evaluation.batch_size))
    place: Callable[[Any], Any] = lambda arrays: arrays  # noqa: E731
    fetch: Callable[[Any], Any] = np.asarray
    if mesh is not None and mesh.size > 1:
        lies = sharding.over_batch(mesh)
        groups = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = data.own_rows(lies, -(-evaluation.batch_size // groups) * groups) or []
        place, fetch = functools.partial(data.to_device, sharding=lies), functools.partial(data.to_host, sharding=lies)

    def answers(batch: Any, pictures: Any, features: Any) -> Callable[[int], Any]:
        """Row -> the answer to what it says in `batch` about the picture that it is in `pictures`."""
        whole = run.scored[evaluation.mode](params, features, place(scoring.request(batch, pictures)))
        whole = jax.tree.map(fetch, whole)
        return lambda i: jax.tree.map(lambda x: x[i], whole)

    targets: list[Any] = []
    said: list[Any] = []
    shuffled_targets: list[Any] = []
    shuffled: list[Any] = []
    others = _Others()
    lines: list[dict[str, Any]] = []
    ids: list[str] = []
    drawn: dict[str, tuple[Any, Prediction]] = {}  # of each picture the first sentence: (its bytes, what was said)
    numbers: list[int] = []  # which example of the task each is
    batches = data.evaluation_batches(
        config.data, evaluation.task, evaluation.split, converter, evaluation.batch_size, evaluation.limit, rows
    )
    for index, (batch, group) in enumerate(wrap(batches)):
        numbers += [index * evaluation.batch_size + row for row in rows[: len(group)]]
        features = run.encode(params, place(batch.images), place(batch.valid_size))
        answer = answers(batch, batch, features)
        kept = []
        for i, (example, placement) in enumerate(group):
            target = scoring.target(example, placement)
            one = scoring.said(answer(i), target, vocabulary, placement)
            targets.append(target)
            said.append(one.scored)
            lines.append({"id": string(example["example_id"]), **one.line, **one.prediction.to_json()})
            # One sentence of each picture: neighbours in a set are often of the same one.
            ids.append(string(example["image_id"]))
            if len(drawn) < evaluation.pictures:
                drawn.setdefault(ids[-1], (example["image"], one.prediction))
            if controls:
                row = jax.tree.map(lambda x, i=i: x[i], batch)
                kept.append(_Seen(ids[-1], jax.tree.map(lambda x, i=i: x[i], features), row, placement))
        if controls:
            partners = [others.of(one) for one in kept]
            # The first pictures have none before them; rows that pad the batch repeat its first.
            others_ = [partner or own for partner, own in zip(partners, kept, strict=True)]
            others_ += others_[:1] * (len(rows) - len(others_))
            pictures = jax.tree.map(lambda *leaves: np.stack(leaves), *(other.batch for other in others_))
            elsewhere = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(other.features for other in others_))
            answer = answers(batch, pictures, elsewhere)
            for i, (partner, own) in enumerate(zip(partners, kept, strict=True)):
                if partner is not None:
                    target = targets[len(targets) - len(kept) + i]
                    # Places in the other picture, as the same fractions of this one.
                    moved = partner.placement.of_size(own.placement.original_size)
                    shuffled.append(scoring.said(answer(i), target, vocabulary, moved).scored)
                    shuffled_targets.append(target)
    # Of all processes, in the order of the task.
    told = [one for part in distributed.gather((numbers, targets, said, lines, ids)) for one in zip(*part, strict=True)]
    told.sort(key=lambda one: one[0])
    targets, said, lines, ids = ([one[k] for one in told] for k in range(1, 5))
    if not targets:
        raise ValueError(
            f"task {evaluation.task!r} has no example in split {evaluation.split!r}, expected at least one. "
            "Check data.dir."
        )
    metrics = score(targets, said)
    if shuffled:
        metrics |= _prefixed("shuffled", score(shuffled_targets, shuffled))
    if controls and evaluation.mode in CONTROLS:
        for name, (readings, keys) in CONTROLS[evaluation.mode](targets, said).items():
            failed = score(targets, readings)
            metrics |= _prefixed(name, {key: value for key, value in failed.items() if not keys or key in keys})
    names = seen.read(data.set_folder(config.data, evaluation.task), evaluation.split)
    metrics |= seen.figures(score, targets, said, ids, names, history)
    shown = {name: one for part in reversed(distributed.gather(drawn)) for name, one in part.items()}
    first = [name for name in dict.fromkeys(ids) if name in shown][: evaluation.pictures]
    pictures = [draw.annotate(image.read_image(shown[name][0]), *shown[name][1].marks()) for name in first]
    sheet = draw.sheet(pictures, columns=min(4, len(pictures))) if pictures else None
    kept_targets = [{"id": line["id"], "image_id": name} for line, name in zip(lines, ids, strict=True)]
    kept_targets = [known | _plain(target) for known, target in zip(kept_targets, targets, strict=True)]
    return Result(metrics, lines, kept_targets, sheet, len(targets))


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
    modes = models.family_of(config.model).modes
    if evaluation.mode not in modes or modes[evaluation.mode].scoring is None:
        scored = ", ".join(name for name, mode in modes.items() if mode.scoring is not None)
        raise ValueError(f"mode is {evaluation.mode!r}, expected one that is scored: {scored}. Choose one of them.")
    held = data.check_task(config.data, evaluation.task, evaluation.split)
    scoring = modes[evaluation.mode].scoring
    if scoring is not None and (missing := [name for name in scoring.reads if name not in held]):
        raise ValueError(
            f"task {evaluation.task!r} has no {missing[0]}, expected a task that mode {evaluation.mode!r} reads. "
            "Choose another mode or task."
        )
    data.scorer(evaluation.task)


class _Seen(NamedTuple):
    """One picture as the model keeps it."""

    image_id: str
    features: Any  # its image features, without the leading axis
    batch: Any  # its row
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
    """metrics.json, predictions.jsonl, targets.jsonl and pictures.png, each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, targets = (
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
        for part in (result.predictions, result.targets)
    )
    finite = {name: value if np.isfinite(value) else None for name, value in result.metrics.items()}
    for name, content in (
        ("predictions.jsonl", lines),
        ("targets.jsonl", targets),
        ("metrics.json", json.dumps({"examples": result.examples, **finite}, indent=2) + "\n"),
    ):
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)
    if result.pictures is not None:
        result.pictures.save(folder / "pictures.png")


def _plain(target: Any) -> dict[str, Any]:
    """A target as JSON has it; masks become run lengths."""
    if not isinstance(target, Mapping):
        return {"target": target}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return run_lengths(value) if value.dtype == bool and value.ndim == 2 else value.tolist()
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return {name: plain(value) for name, value in target.items()}


def _trace_controls(targets: list[Any], said: list[Any]) -> Controls:
    names = sorted({name for target in targets for name in target["object_names"]})
    pairs = zip(targets, said, strict=True)
    found: Controls = {"swapped": ([traces.swapped(target, one, names) for target, one in pairs], ())}
    for reader, function in traces.READERS.items():
        found[reader] = [function(target, names) for target in targets], ("point_distance", "inside_box")
    return found


# mode -> (targets, what was said) -> {control: what a reader says who must fail, with the figures that mean something}
CONTROLS: dict[str, Callable[[list[Any], list[Any]], Controls]] = {"trace": _trace_controls}


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
