"""Padding is counted as it stands in batches: slots of text, of what asks, of prompts, of pixels."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_align import data, text
from pixel_align.batch import Batch, Shape, zeros
from pixel_align.benchmark import padding
from pixel_align.cli import main
from pixel_align.config import override
from tests import tiny

SHAPE = Shape(canvas=10, regions=2, prompts=2, text=6, instruction=4)


def batch(**changes: Any) -> Batch:
    """One of two regions exists, with 3 of 6 tokens and 1 of 4 that ask, on half of the canvas; of two pictures."""
    empty = zeros(SHAPE, 2)
    texts = np.zeros((2, 2, 6), bool)
    texts[:, 0, :3] = True
    texts[:, 1] = True  # of a region that does not exist
    asks = np.zeros((2, 2, 4), bool)
    asks[..., 0] = True
    given = {"valid": np.asarray([[True, False]] * 2), "text_mask": texts, "instruction_mask": asks}
    return dataclasses.replace(empty, valid_size=np.asarray([[10, 5]] * 2, np.int32), **{**given, **changes})


def test_slots_that_are_used_and_slots_that_there_are() -> None:
    assert padding.KINDS == ("text", "instruction", "prompts", "pixels")
    assert padding.slots(batch()).tolist() == [[6, 24], [2, 16], [2, 4], [100, 200]]


def test_finds_of_a_detector_are_taken_to_be_what_is_described() -> None:
    """Two descriptions of 2 and 4 tokens: each of two finds has 3. A picture without any uses no slot."""
    whole = zeros(dataclasses.replace(SHAPE, described=3), 2).described
    assert whole is not None
    lengths = np.asarray([[2, 4, 0], [0, 0, 0]])
    described = dataclasses.replace(whole, mask=lengths > 0, text_mask=np.arange(6) < lengths[..., None])
    found = padding.slots(batch(valid=np.ones((2, 2), bool), described=described))
    assert found.tolist() == [[6, 24], [2, 16], [2, 4], [100, 200]]


def test_rows_of_groups_and_their_sum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = []

    class Stream:
        def __init__(self, read: Any, converter: Any) -> None:
            opened.append((read.mixture, converter.shape))

        def __enter__(self) -> Any:
            return iter(lambda: (batch() if len(opened) == 1 else batch(valid=np.zeros((2, 2), bool)), {}), None)

        def __exit__(self, *_: object) -> None: ...

    text.train_sentencepiece(["a red circle"] * 3, tmp_path / "v.model", 20, model_type="bpe")
    monkeypatch.setattr(data, "Stream", Stream)
    told = tiny.get_config()
    further = (data.Group("others", 2, told.model.shape),)
    told = dataclasses.replace(told, data=dataclasses.replace(told.data, further=further))
    with pytest.raises(ValueError, match="data.vocabulary is '', expected a SentencePiece"):
        list(padding.run(told))
    told = override(told, [f"data.vocabulary={tmp_path / 'v.model'}", "model.text.vocab_size=128"])
    rows = list(padding.run(told, 3))
    assert [(row["name"], row["cases"]) for row in rows] == [(tiny.TASK, 3), ("others", 3), ("all", 6)]
    assert [name for name, _ in opened] == [tiny.TASK, "others"]
    assert [row["notes"]["text"] for row in rows] == [0.75, 1.0, 0.875]
    assert [row["notes"]["pixels"] for row in rows] == [0.5, 0.5, 0.5]


def test_the_command_asks_for_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "padding"])
    assert left.value.code == 2
    assert "experiment is" in capsys.readouterr().err
