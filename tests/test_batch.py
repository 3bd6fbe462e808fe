"""The batch: one description of its shapes, from which everything else is made and against which it is checked."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from pixel_align import batch
from pixel_align.batch import Shape

SHAPE = Shape(canvas=8, regions=3, prompts=3, text=5, instruction=2, points=4, objects=6, phrase=7)


def test_zeros_are_of_the_spec() -> None:
    zeros = batch.zeros(SHAPE, 2)
    batch.check(zeros, batch.spec(SHAPE, 2))
    assert all(isinstance(leaf, np.ndarray) and not leaf.any() for leaf in jax.tree.leaves(zeros))
    assert zeros.images.shape == (2, 8, 8, 3) and zeros.images.dtype == np.uint8
    assert zeros.token_points.shape == (2, 3, 5, 4, 2) and zeros.prompt_boxes.shape == (2, 3, 4)
    assert zeros.regions.tokens.shape == (2, 6, 7) and zeros.weights.point.shape == (2,)


def test_what_a_model_does_not_read_is_none() -> None:
    lean = batch.spec(Shape(canvas=8), 2)
    assert lean.regions is None and lean.prompt_points is None
    pointed = batch.spec(Shape(canvas=8, regions=2, prompts=2, prompt_points=3), 2).prompt_points
    assert pointed.xy.shape == (2, 2, 3, 2) and pointed.mask.shape == pointed.foreground.shape == (2, 2, 3)
    assert pointed.boxed.shape == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"canvas": -16}, "shape.canvas is -16, expected 1 or more. Set it higher."),
        ({"text": 0}, "shape.text is 0, expected 2 or more. Set it higher."),
        ({"objects": -1}, "shape.objects is -1, expected 0 or more. Set it higher."),
        ({"regions": 3, "prompts": 2}, "shape.prompts is 2, expected 1, a prompt that all regions share, or 3, the"),
    ],
)
def test_sizes_that_no_batch_has_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Shape(**{"canvas": 8, **sizes})


def test_every_difference_is_named_in_one_line() -> None:
    zeros = batch.zeros(SHAPE, 2)
    wrong = dataclasses.replace(
        zeros,
        valid=zeros.valid.astype(np.int32),
        text_tokens=zeros.text_tokens[:, :, :4],
        weights=dataclasses.replace(zeros.weights, region=np.zeros(3, np.float32)),
        regions=None,
    )
    with pytest.raises(ValueError, match=r"The data settings and the model's batch_spec disagree\.") as error:
        batch.check(wrong, batch.spec(SHAPE, 2))
    message = str(error.value)
    assert "\n" not in message and message.count(", expected ") == 3 + 4  # and the four parts of regions
    assert "batch.valid is ((2, 3), dtype('int32')), expected ((2, 3), dtype('bool'))" in message
    assert "batch.text_tokens is ((2, 3, 4), dtype('int32')), expected ((2, 3, 5), dtype('int32'))" in message
    assert "batch.weights.region is ((3,), dtype('float32'))" in message
    assert "batch.regions.mask is absent" in message
    with pytest.raises(ValueError, match=r"batch\.regions\.boxes is .*, expected absent"):
        batch.check(zeros, batch.spec(dataclasses.replace(SHAPE, objects=0), 2))


def test_batches_go_through_jax_as_they_are() -> None:
    zeros = batch.zeros(SHAPE, 2)
    doubled = jax.jit(lambda b: jax.tree.map(lambda x: x, b))(zeros)
    assert type(doubled) is batch.Batch
    batch.check(doubled, batch.spec(SHAPE, 2))
