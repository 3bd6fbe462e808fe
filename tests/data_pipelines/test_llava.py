"""Conversations become questions about pictures; what is none is named, what has no picture counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import DataError, llava, questions, synthetic, synthetic_regions
from data_pipelines.__main__ import main
from data_pipelines.narratives import BadRecord, Dropped
from pixel_align.evaluation import seen
from tests.data_pipelines.drawn import examples, save_gray, texts


def item(image: Any, *turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    found = {"id": "x", "image": image, "conversations": [{"from": who, "value": value} for who, value in turns]}
    return {key: value for key, value in found.items() if value is not None} | more


def asked(question: Any, answer: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("human", question), ("gpt", answer)


def write(folder: Path, content: Any, name: str = "items.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def parsed(path: Path) -> list[Any]:
    """Of each line (question, answer), what is wrong with it, or why it is dropped."""
    found: list[Any] = []
    for where, line in llava.read(path, "mine"):
        try:
            one = questions.QuestionSet.parse(line)
            found.append((one.image_id, one.question, one.answer))
        except (BadRecord, Dropped) as error:
            found.append(f"{where}: {error}")
    return found


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("Look at <image> here\nand say.", "Look at here\nand say."),
        ("What is <image>?", "What is ?"),
        ("<image><image>\n\nWhat?", "What?"),
        ("  What?\n", "What?"),
        ("In <images> and <image", "In <images> and <image"),
    ],
)
def test_the_word_for_the_picture_is_taken_out_and_nothing_else(tmp_path: Path, value: str, question: str) -> None:
    assert parsed(write(tmp_path, [item("a.jpg", *asked(value, "Yes\n<image>"))])) == [("a", question, "Yes\n<image>")]


WARTS: list[tuple[Any, list[str]]] = [
    ({"id": 3, "conversations": []}, ["item 1 (id 3): item without a picture dropped"]),
    (item(None, *asked("a", "b")), ["item 1 (id 'x'): item without a picture dropped"]),
    ({"id": 3, "image": None}, ["item 1 (id 3): item without a picture dropped"]),
    ([1], ["item 1: item is a list, expected an object"]),
    (item(["a.jpg", "b.jpg"]), ["image is ['a.jpg', 'b.jpg'], expected the path of one picture"]),
    (item(""), ["image is '', expected the path"]),
    (item(".."), ["image is '..', expected the path"]),
    (item("/"), ["image is '/', expected the path"]),
    (item(7), ["image is 7, expected the path"]),
    (item("a.jpg"), ["conversations is [], expected a list of turns"]),
    ({"image": "a.jpg"}, ["items.json: item 1: conversations is None, expected"]),
    (item("a.jpg", conversations="hi"), ["conversations is 'hi', expected"]),
    (item("a.jpg", *asked("a?", "")), ["(id 'x'), turn 1: answer is '', expected 1 to 20,000 characters"]),
    (item("a.jpg", *asked("<image>\n", "b")), ["turn 1: question is '', expected 1"]),
    (item("a.jpg", *asked("a?", 2)), ["turn 1: answer is 2, expected"]),
    (item("a.jpg", *asked(["a"], "b")), ["turn 1: question is ['a'], expected"]),
    (item("a.jpg", *asked("a?", "b" * 20_001)), [f"turn 1: answer is '{'b' * 99}, expected"]),
    (item("a.jpg", *asked("a?", "\ud800")), ["turn 1: answer holds half of a surrogate pair"]),
    (item("\ud800.jpg", *asked("a?", "b")), ["turn 1: image_id holds half of a surrogate pair"]),
    (item("a.jpg", ("human", "a?")), ["turn 1: question has no answer behind it"]),
    (item("a.jpg", ("gpt", "b")), ["turn 1: answer has no question before it"]),
    (item("a.jpg", ("system", "be kind")), ["turn 1: turn is {'from': 'system', 'value': 'be kind'}, expected one"]),
    (item("a.jpg", conversations=["a?"]), ["turn 1: turn is 'a?', expected one from human or gpt"]),
    (item("a.jpg", conversations=[{"from": "human"}, {"from": "gpt", "value": "b"}]), ["question is None"]),
]


@pytest.mark.parametrize(("wart", "messages"), WARTS, ids=lambda value: str(value)[:40])
def test_what_is_no_question_is_named(tmp_path: Path, wart: Any, messages: list[str]) -> None:
    found = parsed(write(tmp_path, [wart]))
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert message in line and line.startswith("items.json: item 1")


def test_odd_turns_cost_no_more_than_themselves(tmp_path: Path) -> None:
    turns = [("gpt", "Hello."), ("human", "lost?"), *asked("a?", "b"), ("gpt", "more"), *asked("c?", "d")]
    turns += [("human", "lost too?"), ("system", "s"), ("human", "last?")]
    found = parsed(write(tmp_path, [item("a.jpg", *turns)]))
    assert [line for line in found if isinstance(line, tuple)] == [("a", "a?", "b"), ("a", "c?", "d")]
    named = [line.partition("turn ")[2] for line in found if isinstance(line, str)]
    assert [int(line.partition(":")[0]) for line in named] == [1, 2, 5, 8, 9, 10]
    assert [line.split()[1] for line in named] == ["answer", "question", "answer", "question", "turn", "question"]


def test_two_files_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    found = parsed(write(tmp_path, [item(name, *asked("a?", "b")) for name in ("a.jpg", "b/a.jpg", "a.png", "a.jpg")]))
    assert [line[0] for line in found if isinstance(line, tuple)] == ["a", "b/a", "a"]
    assert "image is 'a.png' beside 'a.jpg', expected one of them" in found[2]


@pytest.mark.parametrize("content", ["", "{}", "[{}", '[{"id": 1},]', "[" * 100_000, '[{"a": 1}] x'])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="conversation file .* is broken .*, expected a whole JSON list"):
        list(llava.read(write(tmp_path, content), "mine"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several collections, some of them in two items, with warts; built by the command line."""
    folder = tmp_path_factory.mktemp("llava")
    for name in (
        "coco/train2017/000000000009.jpg",
        "elsewhere/VG_100K/2.jpg",
        "ocr/2.png",
        "textvqa/train_images/00ff.jpg",
    ):
        save_gray(folder / "pictures" / name)
    many = [
        turn
        for k in range(5)
        for turn in asked(f"Number {k}?", "one" if k % 2 else f"It is {k}: " + "\u00e9" * (32 - k // 2))
    ]
    items = [
        item("coco/train2017/000000000009.jpg", *many),
        item("ocr/2.jpg", *asked("<image>\nWho?", "Ann")),
        item("textvqa/train_images/00ff.jpg", *asked("What is left of it?", "{question}{text}")),
        item(None, *asked("a?", "b")),
        item("coco/train2017/000000000009.jpg", *asked("Again?", "yes")),
        item("vg/VG_100K/2.jpg", *asked("Region?", "[0.1, 0.2]")),
        item("ocr/3.jpg", *asked("On disk?", "no")),
        item("a.jpg", *asked("a?", "")),
        item(None),
    ]
    path = folder / "items.json"
    path.write_bytes(gzip.compress(json.dumps(items).encode()))
    image_data = [{"image_id": 2, "width": 9, "height": 9, "coco_id": 77}]
    write(folder, image_data, "image_data.json")
    return folder


def build(folder: Path, *more: str) -> int:
    images = [folder / "pictures", folder / "pictures" / "elsewhere"]
    paths = ["--annotations", folder / "items.json", "--images", *images, "--out", folder / "data"]
    return main(["build", "llava", *map(str, paths), "--image-data", str(folder / "image_data.json"), *more])


def test_a_set_with_warts_is_built_within_its_limit(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(mixed) == 2
    error = capsys.readouterr().err
    assert "number of questions to leave out is 2 of 11 (1 bad record, 1 missing picture), expected at most 1" in error
    assert not list(mixed.glob("data/*/[!.]*"))
    assert build(mixed, "--max-skipped", "2") == 0
    said = capsys.readouterr().out
    for line in (
        "item without a picture dropped: 2",
        "bad record: 1",
        "missing picture: 1",
        "pictures               4",
    ):
        assert line in said, said
    assert "item 8 (id 'x'), turn 1: answer is ''" in said
    found = examples(mixed / "data", llava.NAME)
    assert set(found) == {"coco/train2017/000000000009", "ocr/2", "textvqa/train_images/00ff", "vg/VG_100K/2"}
    one = found["coco/train2017/000000000009"]
    assert texts(one["region_question"]) == [*(f"Number {k}?" for k in range(5)), "Again?"]
    assert texts(one["region_text"])[-1] == "yes" and one["asks"] == b"answer"
    assert texts(one["region_id"]) == [f"coco/train2017/000000000009#{k}" for k in range(6)]
    assert one["region_box"].tolist() == [[0, 0, 1, 1]] * 6 and set(one["region_mask"]) == {b""}
    # Whose pictures they are, so that a score on pictures not seen in training knows them.
    names = seen.read(mixed / "data" / llava.NAME / "1.0.0", "train")
    assert names == {
        "coco/train2017/000000000009": "coco:9",
        "ocr/2": f"{llava.NAME}:ocr/2",
        "textvqa/train_images/00ff": "open_images:00ff",
        "vg/VG_100K/2": "coco:77",
    }
    assert build(mixed, "--max-skipped", "2") == 0
    said = capsys.readouterr().out
    assert "already built" in said and "item without a picture dropped: 2" in said


def test_short_and_long_answers_are_two_tasks_over_one_set(mixed: Path) -> None:
    build(mixed, "--max-skipped", "2")
    found = {part: examples(mixed / "data", f"{llava.NAME}_{part}") for part in ("short", "long")}
    every = examples(mixed / "data", llava.NAME)
    for image_id, example in every.items():
        parts = [list(found[part][image_id]["region_id"]) for part in found if image_id in found[part]]
        assert sorted(name for part in parts for name in part) == sorted(example["region_id"])
    assert list(found["long"]) == ["coco/train2017/000000000009"]
    told = {part: texts(found[part]["coco/train2017/000000000009"]["region_text"]) for part in found}
    assert [len(text) for text in told["short"]] == [3, 40, 3, 39, 3] and [len(text) for text in told["long"]] == [41]


def test_a_bare_number_in_another_folder_is_another_picture(tmp_path: Path) -> None:
    """ocr/2 is not there: vg's picture 2 must not stand in for it."""
    save_gray(tmp_path / "pictures" / "vg" / "2.jpg")
    path = write(tmp_path, [item("vg/2.jpg", *asked("a?", "b")), item("ocr/2.jpg", *asked("a?", "b"))])
    with pytest.raises(DataError, match="1 of 2 .1 missing picture"):
        llava.build(tmp_path / "data", "mine", "train", [path], images=[tmp_path / "pictures"], max_skipped="0")


def test_questions_of_the_synthetic_world_are_a_set(tmp_path: Path) -> None:
    files = synthetic.write(synthetic.easy(), tmp_path / "raw", 3, seed=0, split="validation", also=("questions",))
    built = synthetic_regions.build(tmp_path / "data", files, "validation")
    assert set(built) == {synthetic_regions.QUESTIONS}
    found = examples(tmp_path / "data", synthetic_regions.QUESTIONS, "validation")
    assert files.questions is not None
    for entry in json.loads(files.questions.read_text()):
        one = found[entry["image"].partition(".")[0]]
        turns = [turn["value"].removeprefix("<image>\n") for turn in entry["conversations"]]
        assert [turns[::2], turns[1::2]] == [texts(one[key]) for key in ("region_question", "region_text")]
    names = seen.read(built[synthetic_regions.QUESTIONS].folder, "validation")
    assert names is not None and set(names.values()) == {
        seen.canonical("synthetic", entry["id"]) for entry in json.loads(files.questions.read_text())
    }
