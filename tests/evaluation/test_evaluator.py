"""Evaluation: every example once, the same figures whatever the size of batches, beside what must fail."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import seqio

from data_pipelines import coco_captions
from pixel_align import config, data, geometry, predict
from pixel_align.checkpoints import store
from pixel_align.evaluation import evaluator, seen, traces
from pixel_align.evaluation.evaluator import Result
from pixel_align.evaluation.seen import Seen
from pixel_align.experiment import Eval, Experiment
from pixel_align.predict import Predictor
from tests import tiny

UNSEEN = tiny.SCENES["validation"]
KEYS = ("point_distance", "inside_box", "point_distance_free", "inside_box_free", "matched_words")


@pytest.fixture(scope="module")
def predictor(tiny_run: Path) -> Predictor:
    return predict.load(tiny_run)


@pytest.fixture(scope="module")
def experiment(tiny_world: Path) -> Experiment:
    return config.load(tiny.__file__, tiny.in_world(tiny_world))


def run(predictor: Predictor, experiment: Experiment, *, controls: bool = False, **changes: Any) -> Result:
    asked = dataclasses.replace(Eval(task=tiny.TASK, batch_size=8, pictures=3), **changes)
    return evaluator.evaluate(experiment, asked, predictor.params, predictor.vocabulary, controls=controls)


@pytest.fixture(scope="module")
def whole(predictor: Predictor, experiment: Experiment) -> Result:
    """All unseen scenes with controls, in batches that they fill."""
    return run(predictor, experiment, controls=True)


@pytest.fixture(scope="module")
def examples(experiment: Experiment) -> list[dict[str, Any]]:
    return list(data.dataset(experiment.data, tiny.TASK, "validation", shard=(0, 1)).as_numpy_iterator())


def test_every_example_is_scored_once(whole: Result, examples: list[dict[str, Any]]) -> None:
    ids = [line["id"] for line in whole.predictions]
    assert ids == [example["example_id"].decode() for example in examples]
    assert len(set(ids)) == len(ids) == whole.examples == UNSEEN


def test_the_size_of_batches_moves_no_figure(predictor: Predictor, experiment: Experiment, whole: Result) -> None:
    """3 leaves one example for the last batch: alone in it, it is still compared with another's picture."""
    other = run(predictor, experiment, controls=True, batch_size=3)
    assert other.metrics.keys() == whole.metrics.keys()
    for key, value in whole.metrics.items():
        assert other.metrics[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    assert [line["text"] for line in other.predictions] == [line["text"] for line in whole.predictions]


@pytest.mark.parametrize("limit", [1, 5, 99])
def test_a_limit_takes_the_first_examples(
    predictor: Predictor, experiment: Experiment, whole: Result, limit: int
) -> None:
    part = run(predictor, experiment, limit=limit)
    assert part.examples == min(limit, UNSEEN) == len(part.predictions)
    assert [line["id"] for line in part.predictions] == [line["id"] for line in whole.predictions[:limit]]


def test_what_is_scored_is_what_predict_says(
    predictor: Predictor, experiment: Experiment, whole: Result, examples: list[dict[str, Any]]
) -> None:
    """One picture at a time through the predictor, scored with the metric itself: the same figures."""
    targets, predictions = [], []
    for example, line in zip(examples[:5], whole.predictions[:5], strict=True):
        predictor.set_image(example["image"])
        read, written = predictor.trace(text=example["text"].decode()), predictor.trace()
        assert line["text"] == written.text and line["target"] == example["text"].decode()
        for said, told in ((read, line["read"]), (written, line["words"])):
            assert [word["word"] for word in told] == said.words
            for word, points in zip(told, said.points, strict=True):
                np.testing.assert_allclose(word["points"], points, atol=0.02)
        size = np.asarray(read.size[::-1])
        targets.append(
            {
                "text": line["target"],
                "word_spans": example["word_spans"],
                "word_boxes": example["word_boxes"] * np.tile(size, 2),
                "word_centers": example["word_centers"] * size,
                "word_located": example["word_located"],
                "object_boxes": example["object_boxes"] * np.tile(size, 2),
                "object_names": [name.decode() for name in example["object_names"]],
                "size": read.size,
            }
        )
        spans = written.word_spans
        predictions.append(
            {"points": read.points, "text": written.text, "word_spans": spans, "word_points": written.points}
        )
    expected = run(predictor, experiment, limit=5).metrics
    assert traces.score(targets, predictions) == pytest.approx(expected, abs=1e-3, nan_ok=True)


def test_figures_have_the_names_of_the_house(whole: Result) -> None:
    blind = ("point_distance", "inside_box")
    expected = [*KEYS, *(f"{c}/{k}" for c in ("shuffled", "swapped") for k in KEYS)]
    expected += [f"{reader}/{key}" for reader in ("center", "mean") for key in blind]
    assert list(whole.metrics) == expected
    for key, value in whole.metrics.items():
        assert math.isnan(value) or 0 <= value <= math.sqrt(2), key
    assert whole.metrics["shuffled/point_distance"] != whole.metrics["point_distance"]


def test_pictures_are_of_the_first_examples(predictor: Predictor, experiment: Experiment, whole: Result) -> None:
    assert whole.pictures is not None
    assert run(predictor, experiment, limit=2, pictures=0).pictures is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "synthetic_narrative"}, "Did you mean 'synthetic_narratives'"),
        ({"split": "test"}, r"split is 'test', expected one of \['train', 'validation'\]"),
        ({"mode": "draw"}, "mode is 'draw', expected one that is scored: trace, caption"),
        ({"mode": "refer"}, "task 'synthetic_narratives' has no region_id, expected a task that mode 'refer' reads"),
    ],
)
def test_what_cannot_be_evaluated(
    predictor: Predictor, experiment: Experiment, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(predictor, experiment, **changes)
    assert "\n" not in str(caught.value)


def test_no_example_is_no_score(predictor: Predictor, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "evaluation_batches", lambda *_: iter(()))
    with pytest.raises(ValueError, match="has no example in split 'validation', expected at least one"):
        run(predictor, experiment)


# ---- Other pictures


def one(image_id: str) -> evaluator._Seen:
    placement = geometry.Placement((4, 4), (0.0, 0.0, 4.0, 4.0), (4, 4), 4)
    return evaluator._Seen(image_id, np.zeros(1), np.zeros(1), placement)


def partners(ids: str) -> Iterator[str | None]:
    """Independent of the streaming rule: look back from each place."""
    for i, own in enumerate(ids):
        yield next((other for other in reversed(ids[:i]) if other != own), None)


@pytest.mark.parametrize("ids", ["abcdef", "aabbbcd", "aaaa", "a", "abab", "abba", "aabaac"])
def test_each_text_is_read_with_another_picture(ids: str) -> None:
    """Narratives of one picture lie side by side: none of them is given its own picture as another."""
    others = evaluator._Others()
    chosen = [others.of(one(name)) for name in ids]
    assert [other and other.image_id for other in chosen] == list(partners(ids))


def test_places_in_another_picture_become_the_same_fractions() -> None:
    placement = geometry.Placement((20, 40), (0.0, 0.0, 40.0, 20.0), (16, 32), 32)
    points = np.asarray([[0.25, 0.125], [1.0, 0.5]], np.float32)
    own, moved = placement.to_original(points), placement.of_size((100, 60)).to_original(points)
    np.testing.assert_allclose(moved / [60, 100], own / [40, 20], rtol=1e-6)


# ---- Pictures seen in training, captions


def test_unseen_pictures_have_figures_of_their_own(predictor: Predictor, experiment: Experiment) -> None:
    """Half of the scenes are said to have been trained on: the other half is scored as if it were alone."""
    names = seen.read(data.set_folder(experiment.data, tiny.TASK), "validation")
    assert names is not None and len(names) == UNSEEN
    ids = [line["image_id"] for line in run(predictor, experiment).targets]
    trained = Seen({"other/train": frozenset(names[i] for i in ids[: UNSEEN // 2])}, ("elsewhere",))
    asked = Eval(task=tiny.TASK, batch_size=8, pictures=0)
    result = evaluator.evaluate(experiment, asked, predictor.params, predictor.vocabulary, history=trained)
    assert result.metrics["images_seen_in_training"] == UNSEEN // 2 == result.metrics["unseen/images"]
    assert result.metrics["training_sets_unknown"] == 1
    rest = [line for line in result.targets if line["image_id"] in ids[UNSEEN // 2 :]]
    assert result.metrics["unseen/examples"] == len(rest)
    assert {f"unseen/{key}" for key in KEYS} <= result.metrics.keys()
    assert result.metrics["unseen/point_distance"] != result.metrics["point_distance"]


def test_captions_are_scored_against_all_of_a_picture(predictor: Predictor, experiment: Experiment) -> None:
    name = "tiny_captions"
    if name not in seqio.TaskRegistry.names():
        told = seqio.TaskRegistry.get(coco_captions.PICTURES)
        source = seqio.TaskRegistry.get(tiny.TASK).source
        seqio.TaskRegistry.add(
            name, source, told.output_features, [coco_captions.one_example_per_picture], metric_fns=told.metric_fns
        )
    figures = {}
    for transform in ("fit", "center_crop"):
        result = run(predictor, experiment, task=name, mode="caption", transform=transform, limit=4)
        figures[transform] = result.metrics
        assert result.metrics.keys() >= {"BLEU-4", "ROUGE-L", "CIDEr"} and result.examples == 4
        line = result.predictions[0]
        if transform == "fit":
            asks = dataclasses.replace(predictor.config, instruction=coco_captions.INSTRUCTIONS[0])
            alone = Predictor(asks, predictor.params, predictor.vocabulary)
            alone.set_image(tiny_picture(experiment))
            assert line["text"] == alone.caption().text
        assert line["target"] and line["words"][0].keys() == {"word", "score"}


def tiny_picture(experiment: Experiment) -> bytes:
    """The first unseen scene."""
    return next(data.dataset(experiment.data, tiny.TASK, "validation", (0, 1)).as_numpy_iterator())["image"]


# ---- On disk


def test_results_are_written_as_strict_json_lines_and_a_picture(whole: Result, tmp_path: Path) -> None:
    undefined = dataclasses.replace(whole, metrics=whole.metrics | {"inside_box": math.nan})
    for _ in range(2):  # again over what is there
        evaluator.write(undefined, tmp_path / "results")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "metrics.json",
        "pictures.png",
        "predictions.jsonl",
        "targets.jsonl",
    ]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    figures = json.loads((tmp_path / "results" / "metrics.json").read_text(), parse_constant=refuse)
    assert figures["examples"] == UNSEEN and figures["inside_box"] is None
    assert figures["point_distance"] == pytest.approx(whole.metrics["point_distance"])
    lines = (tmp_path / "results" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == whole.predictions
    with PIL.Image.open(tmp_path / "results" / "pictures.png") as sheet:
        assert sheet.width > sheet.height  # three beside each other


def test_the_checkpoint_on_disk_scores_what_the_run_said(
    tiny_run: Path, predictor: Predictor, experiment: Experiment
) -> None:
    assert store.find(tiny_run)[1] == 12
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    key = f"{tiny.TASK}-validation/point_distance"
    said = next(line[key] for line in reversed(lines) if key in line)
    assert run(predictor, experiment, limit=8).metrics["point_distance"] == pytest.approx(said, abs=1e-4)
