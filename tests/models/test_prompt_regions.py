"""The dense objective on the queries of each prompt: what its box holds, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixel_align import losses
from pixel_align.batch import Outputs, RegionOutputs, Shape, zeros
from pixel_align.models import pixel_llm
from pixel_align.models.pixel_llm import LossConfig, PixelLLMConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.region_head import RegionHeadConfig

B, N, T, Q, V, END = 2, 3, 6, 4, 11, 1
TOKENS = np.zeros((B, N, T), np.int32)
TOKENS[:, :] = [0, 5, 6, 5, END, 0]  # a piece that comes twice
MASK = np.broadcast_to(np.arange(T) < 5, (B, N, T))
BOXES = np.sort(np.random.default_rng(0).uniform(size=(B, N, 2, 2)), axis=2).reshape(B, N, 4).astype(np.float32)
CONFIG = PixelLLMConfig.tiny(
    shape=Shape(canvas=112, text=T, instruction=4, regions=N, prompts=N),
    extractor=PromptExtractorConfig.tiny(queries=Q),
    regions=RegionHeadConfig(enabled=True, on_prompts=True),
    loss=LossConfig(text=0, point=0, presence=0, query_regions=0.5),
)


def outputs(found: RegionOutputs | None, valid: np.ndarray) -> Outputs:
    empty = jnp.zeros((B, N, T, 2))
    return Outputs(empty, jnp.zeros((2, V)), empty[..., None], TOKENS, MASK, valid, BOXES, prompt_regions=found)


def test_each_prompt_holds_one_thing_in_its_box_and_each_piece_counts_once() -> None:
    held = pixel_llm._held(outputs(None, np.ones((B, N), bool)), END)
    np.testing.assert_array_equal(held.boxes, BOXES.reshape(B * N, 1, 4))
    assert held.mask.shape == (B * N, 1) and held.mask.all()
    for row in range(B * N):
        assert np.asarray(held.tokens)[row, 0][np.asarray(held.token_mask)[row, 0]].tolist() == [5, 6]


def test_only_regions_that_are_described_and_asked_about_by_a_box_are_taught() -> None:
    valid = np.asarray([[True, True, False], [True, False, False]])
    batch = zeros(dataclasses.replace(CONFIG.shape, prompt_points=2), B)
    weights = dataclasses.replace(batch.weights, text=np.asarray([1.0, 1.0], np.float32))
    boxed = np.asarray([[True, False, True], [True, True, True]])
    assert batch.prompt_points is not None
    points = dataclasses.replace(batch.prompt_points, boxed=boxed)
    batch = dataclasses.replace(batch, weights=weights, prompt_points=points)

    def loss(boxes: jax.Array) -> jax.Array:
        found = RegionOutputs(jnp.zeros((B * N, Q)), boxes, jnp.zeros((B * N, Q, V)))
        terms = pixel_llm.loss(outputs(found, valid), batch, CONFIG)
        assert list(terms) == ["prompt_regions"] and terms["prompt_regions"][0] == 0.5
        assert float(terms["prompt_regions"][1][1]) == 2
        return losses.join([terms])[0]

    taught = np.abs(np.asarray(jax.grad(loss)(jnp.full((B * N, Q, 4), 0.5)))).sum(axis=(1, 2)) > 0
    assert taught.tolist() == [True, False, False, True, False, False]


def test_a_prompt_of_the_whole_picture_is_not_one_thing() -> None:
    boxes = BOXES.copy()
    boxes[0, 1], boxes[1, 2] = (0, 0, 0.5, 1), (0, 0, 0.5, 0.9)  # all of the picture, nearly all of it
    batch = zeros(CONFIG.shape, B)
    size = np.asarray([[CONFIG.shape.canvas, CONFIG.shape.canvas // 2]] * B, np.int32)
    batch = dataclasses.replace(
        batch, valid_size=size, weights=dataclasses.replace(batch.weights, text=np.ones(B, np.float32))
    )
    found = RegionOutputs(jnp.zeros((B * N, Q)), jnp.full((B * N, Q, 4), 0.5), jnp.zeros((B * N, Q, V)))
    asked = dataclasses.replace(outputs(found, np.ones((B, N), bool)), prompt_boxes=boxes)
    assert float(pixel_llm.loss(asked, batch, CONFIG)["prompt_regions"][1][1]) == B * N - 1
