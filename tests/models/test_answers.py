"""Questions: from a built set through training to answers, alone and together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines import llava, questions
from pixel_align import cli, config, data, models, optim, state, text
from pixel_align.converter import Augment, PixelFeatureConverter, names_a_side
from pixel_align.evaluation import evaluator
from pixel_align.experiment import Eval, Experiment
from pixel_align.predict import Predictor
from pixel_align.text import INSTRUCTIONS
from pixel_align.text_alignment import words_of
from pixel_align.train import make_train_step
from tests import tiny
from tests.data_pipelines.drawn import save_gray

TASK = "tiny_questions"
N = 2  # questions of a batch; pictures have four, three and none
FOUR = {"How many circles are there?": "two", "Is there a star?": "no", "What colour is it?": "blue {text}",
        "Is it left of the star?": "yes"}  # fmt: skip
OTHERS = {"What is {question}?": "a star", "{text}?": "no", "Which side?": "left"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with questions, of which one is asked in two items, and a vocabulary of their words."""
    folder, items = tmp_path_factory.mktemp("answers"), []
    for name, size, asked in (("a", (64, 48), FOUR), ("b", (30, 64), OTHERS)):
        save_gray(folder / "pictures" / f"{name}.png", size)
        for k, (question, answer) in enumerate(asked.items()):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            items.append({"id": f"{name}{k}", "image": f"{name}.png", "conversations": turns})
    (folder / "items.json").write_text(json.dumps(items))
    llava.build(folder / "data", TASK, "train", [folder / "items.json"], images=[folder / "pictures"])
    questions.register(TASK)
    words = [*FOUR, *FOUR.values(), *OTHERS, *OTHERS.values(), INSTRUCTIONS["answer"]]
    text.train_sentencepiece(words, folder / "vocabulary.model", 90, model_type="bpe")
    return folder


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    changes = [
        f"data.dir={folder / 'data'}",
        f"data.vocabulary={folder / 'vocabulary.model'}",
        f"data.mixture={TASK}",
        "data.modules=data_pipelines.questions,",
        "data.batch_size=8",
        "data.shuffle_buffer=1",
        "model.shape.text=12",
        f"model.shape.regions={N}",
        "model.shape.instruction=40",
        "model.text.dropout_rate=0",
        "optim.average=0",
        "optim.peak_lr=2e-2",
        "optim.warmup_steps=5",
        "train.steps=150",
        "evals=",
    ]
    return config.load(tiny.__file__, changes)


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> text.Vocabulary:
    return text.load_vocabulary(folder / "vocabulary.model")


def examples(experiment: Experiment, regions: int = 0) -> list[dict[str, Any]]:
    return list(data.dataset(experiment.data, TASK, "train", (0, 1), regions).as_numpy_iterator())


def told(row: Any, k: int, vocabulary: text.Vocabulary) -> tuple[str, str]:
    """(what is asked, what is to be said) of region k of a row."""
    return vocabulary.decode(row.instruction_tokens[k]), vocabulary.decode(row.text_tokens[k, 1:])


def test_each_question_asks_for_its_own_answer_about_the_whole_picture(
    experiment: Experiment, vocabulary: text.Vocabulary
) -> None:
    """Also where a question or an answer spells a slot of the instruction: no answer is told in its question."""
    convert = PixelFeatureConverter(experiment.model.shape, vocabulary)
    seen: list[tuple[str, str]] = []
    for example in examples(experiment, N):
        row, placement = convert(example)
        assert row.prompt_boxes.shape == (1, 4) and (row.prompt_boxes == placement.valid_box).all()
        assert dataclasses.astuple(row.weights) == (1, 0, 0, 0) and not row.locate.any()
        assert row.valid.tolist() == [k < len(example["region_id"]) for k in range(N)]
        seen += [told(row, int(k), vocabulary) for k in np.flatnonzero(row.valid)]
    assert seen == [(f"Question: {asked} Answer:", answer) for asked, answer in {**FOUR, **OTHERS}.items()]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_every_question_is_in_one_example_whatever_the_batch_holds(experiment: Experiment, n: int) -> None:
    cut = examples(experiment, n)
    assert [name.decode() for example in cut for name in example["region_id"]] == [
        *(f"a#{k}" for k in range(4)), *(f"b#{k}" for k in range(3))
    ]  # fmt: skip
    assert all(0 < len(example["region_question"]) == len(example["region_text"]) <= n for example in cut)
    assert len({example["example_id"] for example in cut}) == len(cut) == -(-4 // n) + -(-3 // n)


def test_a_view_that_shows_too_little_asks_nothing_and_a_side_is_never_mirrored(
    experiment: Experiment, vocabulary: text.Vocabulary
) -> None:
    whole, other = examples(experiment)
    assert names_a_side(whole) and names_a_side(other)  # in a question, in an answer
    assert not names_a_side({**whole, "region_question": whole["region_question"][:3]})
    shape = dataclasses.replace(experiment.model.shape, regions=4)
    convert = PixelFeatureConverter(shape, vocabulary, Augment(scale=(1.0, 2.5), flip_rate=1.0))
    kept = set()
    for seed in range(20):
        row, placement = convert(whole, np.random.default_rng(seed))
        assert not placement.flip
        kept.add(int(row.valid.sum()))
    assert kept == {0, 4}


@pytest.fixture(scope="module")
def predictor(experiment: Experiment, vocabulary: text.Vocabulary) -> Predictor:
    """Has learned the questions by heart: one batch of all of them, again and again."""
    family = models.family_of(experiment.model)
    convert = family.converter(experiment.model, vocabulary, experiment.data.augment)
    batch = data.stack([convert(example)[0] for example in examples(experiment, N)])
    rng, rules = np.random.default_rng(0), family.rules(experiment.model)

    def begun(path: Any, leaf: Any) -> np.ndarray:
        norm = "scale" in jax.tree_util.keystr(path[-1:])
        return np.asarray(np.ones(leaf.shape) if norm else 0.2 * rng.normal(size=leaf.shape), np.float32)

    # Any small numbers do, at a fraction of what compiling the real beginning costs.
    params = jax.tree.map_with_path(begun, jax.eval_shape(lambda: family.init(experiment.model)))
    chosen = optim.optimizer(experiment.optim, experiment.train.steps, params, rules)
    learner = state.make_state(experiment, params, rules, chosen)
    step = jax.jit(make_train_step(experiment, chosen))
    for _ in range(experiment.train.steps):
        learner, metrics = step(learner, (batch,))
    assert metrics["loss_text"] < 0.1
    return Predictor(experiment, learner.params, vocabulary)


def test_learned_answers_are_said_alone(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, asked in (("a", FOUR), ("b", OTHERS)):
        predictor.set_image(folder / "pictures" / f"{name}.png")
        for question, answer in asked.items():
            said = predictor.predict("answer", text=f" {question}\n")
            assert said.text == answer and not len(said.points) and said.words == words_of(answer)
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda path: predictor)
    picture, (question, answer) = str(folder / "pictures" / "a.png"), next(iter(FOUR.items()))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["predict", picture, "--checkpoint", "", "--mode", "answer", "--text", question, "--json", "-"])
    assert json.loads(capsys.readouterr().out)["text"] == answer


@pytest.mark.parametrize(("batch_size", "n", "prompts"), [(1, 2, 1), (3, 4, 4)])
def test_learned_answers_are_scored_once_each(
    predictor: Predictor, experiment: Experiment, batch_size: int, n: int, prompts: int, tmp_path: Path
) -> None:
    """Whatever the batch: also where each question has a prompt of its own instead of one that all share."""
    shape = dataclasses.replace(experiment.model.shape, regions=n, prompts=prompts)
    result = evaluator.evaluate(
        experiment,
        Eval(task=TASK, split="train", mode="answer", batch_size=batch_size, shape=shape, pictures=2),
        predictor.params,
        predictor.vocabulary,
        controls=True,
    )
    assert (result.metrics["exact"], result.metrics["VQA_style"]) == (1.0, 1.0)
    # Gray pictures say nothing: what is asked is enough here.
    assert result.metrics["shuffled/exact"] >= 0.5 and result.pictures is not None
    lines = [
        line
        for one in result.predictions
        for line in zip(
            one["region_question"], [region["text"] for region in one["regions"]], one["region_id"], strict=True
        )
    ]
    assert {question: answer for question, answer, _ in lines} == {**FOUR, **OTHERS}
    assert len({name for *_, name in lines}) == len(lines) == 7
    evaluator.write(result, tmp_path)
    target = json.loads((tmp_path / "targets.jsonl").read_text().splitlines()[0])
    assert target["region_question"] == list(FOUR)[:n] and target["region_text"] == list(FOUR.values())[:n]


def test_a_turned_answer_is_a_wrong_one(predictor: Predictor, experiment: Experiment) -> None:
    """The metric of the Task reads what the mode says, in order."""
    score = data.scorer(TASK)
    right = [{"region_text": ["two", "no"]}, {"region_text": ["yes"]}]
    assert score(right, [{"texts": ["Two.", "no"]}, {"texts": ["yes"]}]) == {"exact": 1.0, "VQA_style": 1.0}
    assert score(right, [{"texts": ["no", "2"]}, {"texts": ["yes"]}])["exact"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "text is empty, expected a question. Give it."),
        ({"text": " \n"}, "text is empty, expected a question"),
        ({"text": "Is it blue? " * 30}, "text has .* tokens with the words around it, expected at most 40. Shorten it"),
        ({"text": "a?", "box": (0, 0, 9, 9)}, "box is given in mode 'answer', expected only text"),
        ({"text": "a?", "instruction": "b"}, "instruction is given in mode 'answer', expected only text"),
    ],
)
def test_what_cannot_be_answered(predictor: Predictor, folder: Path, said: dict[str, Any], message: str) -> None:
    predictor.set_image(folder / "pictures" / "a.png")
    with pytest.raises(ValueError, match=message):
        predictor.predict("answer", **said)


def test_a_task_without_questions_is_not_answered(experiment: Experiment, tiny_world: Path) -> None:
    asked = config.override(experiment, [f"data.dir={tiny_world / 'data'}", "data.modules=data_pipelines.own_data,"])
    with pytest.raises(
        ValueError, match=f"task '{tiny.TASK}' has no region_id, expected a task that mode 'answer' reads"
    ):
        evaluator.check(asked, Eval(task=tiny.TASK, mode="answer"))
