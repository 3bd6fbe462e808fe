"""Published stages as they stand, at a tiny size, three steps on drawn scenes: a sample of `make proof NAME=stages`."""

from pathlib import Path
from typing import Any

import pytest

from experiments import multitask_masks
from experiments.proofs import stages
from pixel_align import text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    stages.make_world(folder)
    return folder


@pytest.mark.parametrize(("stage", "words"), [(multitask_masks.bert, "bert.txt")], ids=["joint with masks, BERT"])
def test_three_steps_of_a_joint_stage(stage: Any, words: str, world: Path) -> None:
    """Every loss of every task is there and finite; what is to be trained has moved, and nothing else."""
    vocabulary = text.load_vocabulary(world / words)
    config = stages.at_tiny_size(stage(), world, vocabulary)
    before, after, said = stages.trained(config, vocabulary)
    assert stages.check(config, before, after, said) == ["mask_adapter"]
    assert {"loss_text", "loss_point", "loss_mask", "loss_detector_heat"} <= said[0].keys()
