"""Referring, segmenting and describing: from a built set through one step of training to scores and answers."""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines import regions
from pixel_align import config, data, geometry, image, models, optim, param_rules, sharding, state, text
from pixel_align.batch import Batch, Weights, spec
from pixel_align.converter import Augment, PixelFeatureConverter, names_a_side
from pixel_align.data import Group
from pixel_align.evaluation import evaluator, formats, scoring
from pixel_align.experiment import Eval, Experiment
from pixel_align.models.pixel_llm import last_word
from pixel_align.predict import Predictor
from pixel_align.state import TrainState
from pixel_align.train import make_train_step
from tests import tiny

N = 2  # regions of a batch; pictures have three to five
EXPRESSIONS, PHRASES = "tiny_expressions", "tiny_phrases"
CHANGES = [
    "model.prompt.masks=true",
    "model.masks.enabled=true",
    f"model.masks.decoder.width={tiny.WIDTH}",
    "model.masks.decoder.num_heads=2",
    "model.masks.decoder.mlp_width=16",
    f"model.masks.adapter.width={tiny.WIDTH}",
    "model.masks.adapter.num_heads=2",
    "model.masks.adapter.mlp_width=16",
    "model.shape.mask=16",
    "model.shape.text=16",
    f"model.shape.regions={N}",
    "model.text.dropout_rate=0",
    "data.modules=data_pipelines.localized_narratives,",
    "optim.average=0",
]


@pytest.fixture(scope="module")
def folder(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a set of expressions with masks over the unseen scenes."""
    raw = json.loads((tiny_world / "raw" / "validation" / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in raw["categories"]}
    found = []
    for picture in raw["images"]:
        own = [one for one in raw["annotations"] if one["image_id"] == picture["id"]]
        parts = [
            regions.Region.of_coco(f"{picture['id']}#{k}", names[one["category_id"]], one, str(one["id"]))
            for k, one in enumerate(own)
        ]
        size = (picture["height"], picture["width"])
        found.append(regions.Picture(str(picture["id"]), picture["file_name"], size, parts, "tiny"))
    out = tmp_path_factory.mktemp("regions")
    regions.build(out, "tiny_regions", "validation", found, [tiny_world / "raw" / "validation" / "images"])
    regions.register(EXPRESSIONS, "refer", "tiny_regions")
    regions.register(PHRASES, "describe", "tiny_regions")
    return out


@pytest.fixture(scope="module")
def experiment(folder: Path, tiny_world: Path) -> Experiment:
    told = config.load(tiny.__file__, [*tiny.in_world(tiny_world), *CHANGES])
    read = dataclasses.replace(told.data, dir=str(folder), mixture=EXPRESSIONS, split="validation", batch_size=4)
    apart = dataclasses.replace(told.model.shape, prompts=N)
    return dataclasses.replace(told, data=dataclasses.replace(read, further=(Group(PHRASES, 4, apart),)), evals=())


@pytest.fixture(scope="module")
def vocabulary(tiny_world: Path) -> text.Vocabulary:
    return text.load_vocabulary(tiny_world / "vocabulary.model")


@pytest.fixture(scope="module")
def examples(experiment: Experiment) -> list[dict[str, Any]]:
    return list(data.dataset(experiment.data, EXPRESSIONS, "validation", (0, 1), N).as_numpy_iterator())


def converter(experiment: Experiment, vocabulary: text.Vocabulary, group: int = 0, **augment: Any) -> Any:
    return PixelFeatureConverter(experiment.batches()[group][0].shape, vocabulary, Augment(**augment))


# ---- Data


def test_every_region_is_in_one_example_whatever_the_batch_holds(experiment: Experiment) -> None:
    whole = list(data.dataset(experiment.data, EXPRESSIONS, "validation", (0, 1)).as_numpy_iterator())
    every = [name for example in whole for name in example["region_id"]]
    assert len(whole) == tiny.SCENES["validation"] and max(len(e["region_id"]) for e in whole) > N
    for n in (1, 2, 3, 9):
        cut = list(data.dataset(experiment.data, EXPRESSIONS, "validation", (0, 1), n).as_numpy_iterator())
        assert [name for example in cut for name in example["region_id"]] == every
        assert max(len(example["region_text"]) for example in cut) <= n
        assert len({example["example_id"] for example in cut}) == len(cut)
        assert all(len(e["region_box"]) == len(e["region_mask"]) == len(e["object_id"]) for e in cut)


def test_a_referring_row_reads_the_expression_and_places_its_last_word(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]]
) -> None:
    example = examples[0]
    row, placement = converter(experiment, vocabulary)(example)
    for k, words in enumerate(example["region_text"]):
        ids = vocabulary.encode(words.decode())
        assert row.text_tokens[k].tolist()[: len(ids) + 2] == [0, *ids, 1]
        assert np.flatnonzero(row.locate[k]).tolist() == [len(ids)] == [int(last_word(row.text_tokens[k], 1))]
        box = placement.to_canvas(geometry.to_pixels(example["region_box"][k], placement.original_size))
        np.testing.assert_allclose(row.token_points[k, len(ids)].reshape(4), box, atol=1e-6)
        asked = vocabulary.encode(f"where is {words.decode()}")[: row.instruction_tokens.shape[1]]
        assert row.instruction_tokens[k].tolist()[: len(asked)] == asked.tolist()
        cells = image.mask_to_cells(image.read_mask(example["region_mask"][k]), placement, 16)
        np.testing.assert_array_equal(row.masks.cells[k], cells)
        assert cells.any() and row.masks.given[k]
    assert dataclasses.astuple(row.weights) == (0, 1, 0, 1)
    np.testing.assert_allclose(row.prompt_boxes, placement.valid_box[None])


def test_a_describing_row_asks_with_the_box_and_learns_the_words(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]]
) -> None:
    example = {**examples[0], "asks": b"describe"}
    row, placement = converter(experiment, vocabulary, 1)(example)
    boxes = placement.to_canvas(geometry.to_pixels(example["region_box"], placement.original_size))
    np.testing.assert_allclose(row.prompt_boxes, boxes, atol=1e-6)
    assert dataclasses.astuple(row.weights) == (1, 0, 0, 0) and not row.locate.any()
    with pytest.raises(ValueError, match=r"model.shape.prompts is 1, expected 2: each region is asked about by a box"):
        converter(experiment, vocabulary)(example)
    with pytest.raises(ValueError, match="asks is 'draw', expected 'refer', 'describe', 'answer' or 'densecap'"):
        converter(experiment, vocabulary)({**example, "asks": b"draw"})


def test_a_region_is_asked_about_by_points_or_its_mask_where_the_model_reads_them(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]]
) -> None:
    """In training at the rates that are set, in evaluation by the box; points lie on the mask."""
    shape = dataclasses.replace(experiment.batches()[1][0].shape, prompt_points=3, prompt_mask=16)
    rates = Augment(point_prompts=0.3, scribble_prompts=0.2, mask_prompts=0.3)
    convert = PixelFeatureConverter(shape, vocabulary, rates)
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(60):
        example = {**examples[seed % len(examples)], "asks": b"describe"}
        row, placement = convert(example, np.random.default_rng(seed))
        for k in range(len(example["region_text"])):
            points, mask = row.prompt_points, row.prompt_masks
            cells = image.mask_to_cells(image.read_mask(example["region_mask"][k]), placement, 16)
            kind = "box" if points.boxed[k] else "mask" if mask.given[k] else "points"
            corners = points.xy[k]
            if points.mask[k].all() and np.allclose(corners[0] + corners[2], 2 * corners[1], atol=1e-5):
                kind = "line"  # of two corners; three random points are not on one
            kinds[kind] += 1
            assert points.mask[k].any() == (kind in ("points", "line")) and mask.cells[k].any() == (kind == "mask")
            if kind == "mask":
                np.testing.assert_array_equal(mask.cells[k], cells)
            inside = image.mask_to_cells(image.read_mask(example["region_mask"][k]), placement, 32)
            for x, y in points.xy[k][points.mask[k]] * 32:
                assert points.foreground[k][points.mask[k]].all()
                assert inside[int(y), int(x)] or kind == "line" or points.mask[k].all()
    share = {kind: count / kinds.total() for kind, count in kinds.items()}
    # A third of the lines have two corners; the others pass for points here.
    assert share == pytest.approx({"points": 0.43, "line": 0.07, "mask": 0.3, "box": 0.2}, abs=0.12)
    assert 0 < share["line"] < 0.2
    row, _ = convert({**examples[0], "asks": b"describe"})
    assert row.prompt_points.boxed.all() and not row.prompt_masks.given.any()


def test_a_crop_takes_box_mask_words_and_question_away_together(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]]
) -> None:
    """In every random view: the regions that are left have the words, the box and the mask of the same thing."""
    convert = converter(experiment, vocabulary, scale=(0.7, 2.5), flip_rate=0.5)
    left, mirrored = set(), 0
    for seed in range(40):
        example = examples[seed % len(examples)]
        row, placement = convert(example, np.random.default_rng(seed))
        mirrored += placement.flip
        boxes = placement.to_canvas(geometry.to_pixels(example["region_box"], placement.original_size))
        kept = np.flatnonzero(geometry.visible_share(boxes, placement.valid_box) >= 0.5)
        assert row.valid.tolist() == [k < len(kept) for k in range(N)]
        left.add(len(kept))
        for place, k in enumerate(kept):
            words = example["region_text"][k].decode()
            assert vocabulary.decode_with_spans(row.text_tokens[place, 1:])[0] == words
            assert vocabulary.decode_with_spans(row.instruction_tokens[place])[0] in f"where is {words}"
            box = row.token_points[place][row.locate[place]].reshape(4)
            rows, columns = np.nonzero(row.masks.cells[place])
            if len(rows):  # a thin rest may fill no cell by half
                extent = np.asarray([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 16
                assert (extent[:2] >= box[:2] - 1.5 / 16).all() and (extent[2:] <= box[2:] + 1.5 / 16).all()
        assert not row.masks.cells[len(kept) :].any() and not row.masks.given[len(kept) :].any()
    assert left == {0, 1, 2} and 5 < mirrored < 35


@pytest.mark.parametrize(
    ("words", "side"),
    [
        ("the left cup", True),
        ("Right-most man", True),
        ("cup at the leftmost end", True),
        ("a bright, cleft rock", False),
    ],
)
def test_pictures_are_not_mirrored_where_words_name_a_side(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]], words: str, side: bool
) -> None:
    example = {**examples[0], "region_text": np.asarray([words.encode(), b"a cup"], object)}
    assert names_a_side(example) is side
    convert = converter(experiment, vocabulary, flip_rate=1.0)
    assert convert(example, np.random.default_rng(0))[1].flip is not side


# ---- The model


def test_the_last_word_stands_before_the_end_also_where_a_text_was_cut() -> None:
    tokens = np.asarray([[0, 7, 8, 1, 0], [0, 7, 8, 9, 4], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert last_word(tokens, 1).tolist() == [2, 4, 0, 4]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Steps of both batches, of one compiled program; the gradient of the last is kept beside the optimizer's state."""

    begun: TrainState
    batches: tuple[Batch, ...]
    step: Callable[[TrainState, tuple[Batch, ...]], tuple[TrainState, dict[str, jax.Array]]]

    def gradient(
        self, state: TrainState, only: dict[str, tuple[str, ...]]
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
        """Of the step from a state, by path, and its metrics; only: see `weighed`."""
        after, metrics = self.step(state, self.weighed(only))
        found = param_rules.paths(after.optimizer[1])
        return {path: np.asarray(leaf, np.float64) for path, leaf in found.items()}, metrics

    def weighed(self, only: dict[str, tuple[str, ...]]) -> tuple[Batch, ...]:
        """The batches with only these tasks and losses, {task: losses}; the others weigh nothing."""
        made = []
        for index, batch in enumerate(self.batches):
            weights = {loss: np.zeros(len(batch.images), np.float32) for loss in ("text", "point", "region", "mask")}
            for task, losses in only.items():
                group, rows, weight = TASKS[task]
                for loss in losses if group == index else ():
                    weights[loss][rows] = weight[loss]
            made.append(dataclasses.replace(batch, weights=Weights(**weights)))
        return tuple(made)

    def count(self, task: str, loss: str) -> float:
        """What the loss is divided by on behalf of the task alone: words but the first, places, masks."""
        group, rows, weight = TASKS[task]
        batch = self.batches[group]
        words = batch.text_mask & batch.valid[..., None]
        assert batch.masks is not None
        held = {"text": words[..., 1:], "point": words & batch.locate, "mask": batch.masks.given & batch.valid}
        return weight.get(loss, 0.0) * float(held[loss][rows].sum())


# Task -> (which batch, which rows of it, what they weigh in each loss). Two tasks share the first batch.
TASKS = {
    "trace": (0, slice(0, 1), {"text": 0.5, "point": 1.0}),
    "refer": (0, slice(1, 4), {"point": 1.0, "mask": 2.0}),
    "describe": (1, slice(0, 4), {"text": 1.0}),
}
ALL = {task: tuple(weight) for task, (_, _, weight) in TASKS.items()}


@pytest.fixture(scope="module")
def mixed(experiment: Experiment, vocabulary: text.Vocabulary) -> Mixed:
    streams = [
        (read, models.family_of(model).converter(model, vocabulary, read.augment))
        for model, read in experiment.batches()
    ]
    with data.Steps(streams, None) as steps:
        (first, second), _ = next(steps)
    locate = first.locate.copy()
    locate[0] = first.text_mask[0]  # a trace has a place for every word
    first = dataclasses.replace(first, locate=locate)
    # As they are, without cutting: else one task's gradient would change the size of another's step.
    config = dataclasses.replace(experiment.optim, warmup_steps=0, weight_decay=0.1, clip_norm=0)
    rules = models.family_of(experiment.model).rules(experiment.model)
    params = state.init_params(experiment)
    chosen = optim.optimizer(config, experiment.train.steps, params, rules)

    def update(gradient: Any, kept: Any, params: Any = None) -> tuple[Any, Any]:
        updates, now = chosen.update(gradient, kept[0], params)
        return updates, (now, gradient)

    keeping = optax.GradientTransformation(lambda p: (chosen.init(p), jax.tree.map(jnp.zeros_like, p)), update)
    begun = state.make_state(experiment, params, rules, keeping)
    return Mixed(begun, (first, second), jax.jit(make_train_step(experiment, keeping)))


@pytest.fixture(scope="module")
def moved(mixed: Mixed) -> TrainState:
    """The state behind two steps of all tasks, after which nothing is zero any more."""
    return mixed.step(mixed.step(mixed.begun, mixed.weighed(ALL))[0], mixed.weighed(ALL))[0]


def test_one_step_takes_both_tasks_and_moves_what_they_use(experiment: Experiment, mixed: Mixed) -> None:
    """Two batches of two shapes; the gradient of the step is finite and reaches masks, places and words."""
    for made, (model, _) in zip(mixed.batches, experiment.batches(), strict=True):
        assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, spec(model.shape, 4))
    # The gate of the mask adapter is closed before the first step.
    first, _ = mixed.step(mixed.begun, mixed.batches)
    after, metrics = mixed.step(first, mixed.batches)
    assert metrics.keys() >= {"loss_text", "loss_point", "loss_mask"}
    assert all(np.isfinite(value) for value in metrics.values())
    now = param_rules.paths(after.params)
    still = {path for path, leaf in param_rules.paths(mixed.begun.params).items() if (now[path] == leaf).all()}
    # Nothing asks by mask, nothing says presence; the other masks of the decoder answer other questions.
    idle = ("prompt/mask_downscaling", "prompt/positions", "mask_decoder/mask_vectors/", "prompt/point_embeddings")
    assert not {path for path in still if not path.startswith(idle)}, still


def test_the_gradient_of_a_mixed_step_is_the_weighted_sum_of_single_ones(mixed: Mixed, moved: TrainState) -> None:
    """A task weighs in a loss what it counts in it, as a share of its batch: no mean of means."""
    total: collections.Counter[tuple[int, str]] = collections.Counter()
    for task, losses in ALL.items():
        total.update({(TASKS[task][0], loss): mixed.count(task, loss) for loss in losses})
    found, metrics = mixed.gradient(moved, ALL)
    expected, shown = {path: np.zeros_like(leaf) for path, leaf in found.items()}, collections.Counter[str]()
    for task, losses in ALL.items():
        for loss in losses:
            share = mixed.count(task, loss) / total[TASKS[task][0], loss]
            assert min(abs(share - 1 / 2), abs(share - 1 / 3)) > 0.03  # or it could be that of a mean of means
            alone, said = mixed.gradient(moved, {task: (loss,)})
            assert float(said["loss"]) > 0
            expected = {path: expected[path] + share * leaf for path, leaf in alone.items()}
            of_all = sum(count for (_, name), count in total.items() if name == loss)
            shown[loss] += mixed.count(task, loss) / of_all * float(said[f"loss_{loss}"])
    for loss, mean in shown.items():
        np.testing.assert_allclose(metrics[f"loss_{loss}"], mean, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in found.values())
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-3, atol=1e-6 * largest, err_msg=path)


# What makes masks, places, words and nothing else.
MASKS, PLACES, WORDS = ("mask_decoder/", "mask_adapter/"), ("location/",), ("text/decoder/logits_dense/",)


@pytest.mark.parametrize(
    ("only", "idle"),
    [
        ({"describe": ("text",)}, (*MASKS, *PLACES)),
        ({"trace": ("text", "point")}, MASKS),
        ({"refer": ("point",)}, (*MASKS, *WORDS)),
        ({"refer": ("point", "mask")}, WORDS),
        ({}, ("",)),
    ],
    ids=["describe", "trace", "refer", "segment", "nothing"],
)
def test_a_task_moves_what_it_uses_and_nothing_else(
    mixed: Mixed, moved: TrainState, only: dict[str, tuple[str, ...]], idle: tuple[str, ...]
) -> None:
    """Though all tasks moved everything in steps before: neither momentum nor weight decay moves the rest."""
    then = param_rules.paths(moved.params)
    taught = {path for path, leaf in param_rules.paths(moved.optimizer[1]).items() if np.any(leaf)}
    assert all(any(path.startswith(part) for path in taught) for part in idle)
    after, _ = mixed.step(moved, mixed.weighed(only))
    now = param_rules.paths(after.params)
    assert {path for path in taught if not np.array_equal(now[path], then[path])} == {
        path for path in taught if not path.startswith(idle)
    }


@pytest.fixture(scope="module")
def predictor(experiment: Experiment, vocabulary: text.Vocabulary) -> Predictor:
    return Predictor(experiment, state.init_params(experiment), vocabulary)


@pytest.mark.parametrize(
    ("mode", "task", "keys"),
    [
        ("refer", EXPRESSIONS, {"P@0.5", "P@0.5:0.95"}),
        ("segment", EXPRESSIONS, {"P@0.5", "P@0.5:0.95", "cIoU", "gIoU"}),
        ("describe", PHRASES, {"exact"}),
    ],
)
def test_every_mode_is_scored_and_says_the_same_alone(
    experiment: Experiment,
    predictor: Predictor,
    examples: list[dict[str, Any]],
    mode: str,
    task: str,
    keys: set[str],
    tmp_path: Path,
) -> None:
    group = 1 if mode == "describe" else 0
    model, _ = experiment.batches()[group]
    asked = dataclasses.replace(experiment, model=model)
    result = evaluator.evaluate(
        asked, Eval(task=task, mode=mode, batch_size=5, pictures=2), predictor.params, predictor.vocabulary
    )
    assert result.metrics.keys() == keys and result.pictures is not None
    told = {
        name: one for line in result.predictions for name, one in zip(line["region_id"], line["regions"], strict=True)
    }
    assert len(told) == sum(len(line["region_id"]) for line in result.predictions)
    # What is written can be scored from the files alone, with the same figures.
    evaluator.write(result, tmp_path)
    read = formats.reader("our_descriptions" if mode == "describe" else "our_regions")
    cases = read.read(tmp_path / "predictions.jsonl", tmp_path / "targets.jsonl")
    assert [case.id for case in cases.cases] == list(told) and not cases.missing
    if mode != "describe":
        figures = scoring.score(cases, read.metrics, resamples=0).figures
        assert {key: figures[key] for key in keys} == pytest.approx(result.metrics, abs=2e-3)
    for example in examples[:2]:
        predictor.set_image(example["image"])
        for k, name in enumerate(example["region_id"]):
            words, size = example["region_text"][k].decode(), (64, 64)
            box = geometry.to_pixels(example["region_box"][k], size)
            said = {"box": box} if mode == "describe" else {"text": words}
            alone = predictor.predict(mode, **said).regions[0].to_json()
            together = told[name.decode()]
            assert alone["text"] == together["text"]
            np.testing.assert_allclose(alone["box"], together["box"], atol=0.03)
            x0, y0, x1, y1 = together["box"]
            assert 0 <= x0 <= x1 <= 64 and 0 <= y0 <= y1 <= 64
            if mode == "segment":
                assert alone["mask"]["size"] == [64, 64] and sum(alone["mask"]["counts"]) == 64 * 64


def region_ids(experiment: Experiment) -> list[str]:
    """Of every expression of the set, as it rests: whole pictures, in the order of the files."""
    whole = data.dataset(experiment.data, EXPRESSIONS, "validation", (0, 1)).as_numpy_iterator()
    return [name.decode() for example in whole for name in example["region_id"]]


@pytest.mark.parametrize(("batch_size", "processes", "seed"), [(1, 2, 0), (3, 1, 7), (4, 8, 7)])
def test_every_expression_reaches_one_row_whatever_batch_processes_and_shuffle(
    experiment: Experiment, vocabulary: text.Vocabulary, batch_size: int, processes: int, seed: int
) -> None:
    """What pads the last batch, and the further regions of a picture, are no rows of their own."""
    shuffled = dataclasses.replace(experiment.data, seed=seed, shuffle_buffer=2 + seed)
    convert, found, rows = converter(experiment, vocabulary), [], 0
    share = -(-batch_size // processes)
    for index in range(processes):
        own = range(share * index, share * (index + 1))
        for batch, group in data.evaluation_batches(shuffled, EXPRESSIONS, "validation", convert, batch_size, rows=own):
            found += [name.decode() for example, _ in group for name in example["region_id"]]
            rows += int(batch.valid[: len(group)].sum())
    assert rows == len(found) and sorted(found) == sorted(region_ids(experiment))


def test_every_expression_is_scored_once_whatever_the_batch_and_the_devices(
    experiment: Experiment, predictor: Predictor
) -> None:
    """With parameters on one device, and on a mesh of all eight: the same boxes, one for each expression."""
    everything = region_ids(experiment)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    assert mesh.size == 8 and len(everything) % 5  # the last batch is not full
    told = []
    for batch_size, params in (
        (5, predictor.params),
        (8, jax.device_put(predictor.params, sharding.replicated(mesh))),
    ):
        evaluation = Eval(task=EXPRESSIONS, mode="refer", batch_size=batch_size, pictures=0)
        with jax.set_mesh(mesh) if batch_size == 8 else contextlib.nullcontext():
            several = mesh if batch_size == 8 else None
            result = evaluator.evaluate(experiment, evaluation, params, predictor.vocabulary, mesh=several)
        names = [name for line in result.predictions for name in line["region_id"]]
        assert names == everything == [name for line in result.targets for name in line["region_id"]]
        boxes = [region["box"] for line in result.predictions for region in line["regions"]]
        told.append((result.metrics, np.asarray(boxes)))
    (one, here), (other, there) = told
    assert one == pytest.approx(other) and one.keys() == {"P@0.5", "P@0.5:0.95"}
    np.testing.assert_allclose(here, there, atol=0.02)  # pixels of 64


def test_what_cannot_be_referred_to(predictor: Predictor, examples: list[dict[str, Any]]) -> None:
    predictor.set_image(examples[0]["image"])
    for mode, said, message in (
        ("refer", {}, "text is empty, expected the words that name something"),
        ("describe", {}, "box, points, scribble and mask are missing, expected one of them"),
        ("refer", {"box": (0, 0, 9, 9)}, "box is given in mode 'refer', expected only text"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(mode, **said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.shape.prompt_mask=16"], "model.shape.prompt_mask is 16 with .* True and .*prompt_points 0, expected"),
        (["model.shape.mask=12"], "model.shape.mask is 12, expected 16, the side of predicted masks, to 32"),
        (["model.prompt.masks=false"], "model.prompt.masks False, expected sam among them and True"),
        (["model.masks.adapter.width=32"], r"widths .* are \(16, 16, 16, 32\), expected one value"),
    ],
)
def test_parts_that_do_not_fit_are_refused(experiment: Experiment, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.override(experiment, changes)


def test_masks_and_points_move_the_visual_tokens_and_no_mask_is_the_published_constant(
    experiment: Experiment, vocabulary: text.Vocabulary, examples: list[dict[str, Any]]
) -> None:
    """Boxes, points and masks of one picture in one request: each says something of its own."""
    changes = ["model.shape.prompt_mask=16", "model.shape.prompt_points=2", "model.prompt.points=true"]
    reads = config.override(experiment, changes)
    predictor = Predictor(reads, state.init_params(reads), vocabulary)
    predictor.set_image(examples[0]["image"])
    mask = image.read_mask(examples[0]["region_mask"][0])
    other = image.read_mask(examples[0]["region_mask"][1])
    asked: list[dict[str, Any]] = [{"mask": mask}, {"mask": other}, {"points": [[9, 9]]}, {"box": (4, 4, 40, 40)}]
    scores = [predictor.predict("describe", **said).logprob for said in asked]
    assert len({round(score, 5) for score in scores}) == len(scores)
    # A scribble is points along a line, as many as there is room for.
    line = predictor.predict("describe", scribble=[[5, 5], [25, 15]])
    assert line.logprob == predictor.predict("describe", points=[[5, 5], [25, 15]]).logprob
    with pytest.raises(ValueError, match=r"scribble is of shape \[1, 2\] beside other points, expected \[k, 2\] alone"):
        predictor.predict("describe", scribble=[[5, 5]], points=[[5, 5]])
    with pytest.raises(ValueError, match=r"mask is bool\[2, 2\] with 4 pixels inside, expected bool\[64, 64\]"):
        predictor.predict("describe", mask=np.ones((2, 2), bool))


def test_predicting_has_room_for_what_any_batch_has_room_for(experiment: Experiment) -> None:
    """Narratives are asked with few words, expressions with more: none is cut when it is predicted."""
    changes = ["model.shape.instruction=2", "model.shape.text=9"]
    asked = config.override(experiment, changes)
    shapes = [model.shape for model, _ in asked.batches()]
    shape = asked.widest().shape
    assert (shape.instruction, shape.text) == (shapes[1].instruction, shapes[1].text) == (4, 16)
    assert (shape.regions, shape.prompts) == (shapes[0].regions, shapes[0].prompts)
