"""The contract between data and models: what a batch is and what a model answers.

Letters in shapes: B batch, N regions of a picture, M prompts (1 where all regions share one prompt, else N), T text,
C instruction, K points of a prompt, P points of a token, R ground-truth regions, L pieces of a region's phrase, H W
canvas, h w grid of the image features, Q queries, D width, V vocabulary.

Frames: every coordinate is xy in [0, 1] of the square canvas, boxes are xyxy. What is absent is said by boolean masks,
never by special coordinates or by the value zero.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from pixel_align.sizes import check_at_least

Array = Any  # numpy on the host, jax inside a step, jax.ShapeDtypeStruct in a spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """How much each example counts in each loss; 0 switches a loss off. All Float[B]."""

    text: Array
    point: Array
    region: Array  # the dense objective, the detector
    mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionTargets:
    """The objects of each picture: ground truth, never prompts.

    Attributes:
      boxes: Float32[B, R, 4]. mask: Bool[B, R], which of them exist.
      tokens: Int32[B, R, L], the distinct pieces of each object's phrase. token_mask: Bool[B, R, L].
    """

    boxes: Array
    mask: Array
    tokens: Array
    token_mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Described:
    """All that is described of each picture, ground truth of dense captioning, never prompts. None is left out.

    Attributes:
      boxes: Float32[B, R, 4]. mask: Bool[B, R], which of them exist.
      text_tokens: Int32[B, R, T], BOS w1 .. wn EOS and padding; text_mask: Bool[B, R, T] covers BOS to EOS.
    """

    boxes: Array
    mask: Array
    text_tokens: Array
    text_mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptPoints:
    """Points handed to the model, in place of the boxes of the prompts or beside them.

    Attributes:
      xy: Float32[B, M, K, 2]. mask: Bool[B, M, K], which of them exist.
      foreground: Bool[B, M, K], True: on what is meant, False: on what is not meant.
      boxed: Bool[B, M], which prompts have a box; False: prompt_boxes is ignored there.
    """

    xy: Array
    mask: Array
    foreground: Array
    boxed: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of the N regions, or of the M prompts.

    Attributes:
      cells: Bool[B, N, S, S], the canvas in S x S cells: which of them are more than half inside.
      given: Bool[B, N], which of them have a mask.
    """

    cells: Array
    given: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of pictures with their regions.

    Attributes:
      images: UInt8[B, H, W, 3], RGB, the picture in the top left corner of a square canvas, zeros elsewhere.
      valid_size: Int32[B, 2], (height, width) in canvas pixels of the part that holds the picture.
      prompt_boxes: Float32[B, M, 4], the location handed to the model; the whole picture where nothing is asked for.
      instruction_tokens: Int32[B, N, C], the words that ask; instruction_mask: Bool[B, N, C].
      text_tokens: Int32[B, N, T], BOS w1 .. wn EOS and padding; text_mask: Bool[B, N, T] covers BOS to EOS.
      token_points: Float32[B, N, T, P, 2], the place of each token; what it holds where `locate` is False is ignored.
      locate: Bool[B, N, T], the tokens that have a place.
      valid: Bool[B, N], which regions exist (False pads N, and pads the last batch of an evaluation).
      weights: per example, per loss.
      prompt_points: points of the prompts; None where the model reads boxes only.
      regions: the objects of the picture, for the dense first stage; None where the model reads none.
      masks: the masks of the regions; None where the model makes none.
      prompt_masks: the masks of the prompts, Bool[B, M, ...]; None where the model reads none.
      described: all that is described of the picture, for the detector, which then chooses what stands in the N
        regions; None where regions are given.
    """

    images: Array
    valid_size: Array
    prompt_boxes: Array
    instruction_tokens: Array
    instruction_mask: Array
    text_tokens: Array
    text_mask: Array
    token_points: Array
    locate: Array
    valid: Array
    weights: Weights
    prompt_points: PromptPoints | None = None
    regions: RegionTargets | None = None
    masks: Masks | None = None
    prompt_masks: Masks | None = None
    described: Described | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionOutputs:
    """What a place of the image (a grid cell, a query) says about the object it is responsible for.

    Attributes:
      objectness: Float[B, K], logit: an object covers this anchor.
      boxes: Float[B, K, 4], xyxy in [0, 1] of the canvas.
      pieces: Float[B, K, V], logits: this piece of the vocabulary occurs in the object's phrase.
    """

    objectness: Array
    boxes: Array
    pieces: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectorOutputs:
    """What the detector says of A locations, and of K samples of its proposals and the true boxes. Boxes are xyxy.

    Attributes:
      heat: Float32[B, A], logit: the middle of an object is here. boxes: Float32[B, A, 4], of that object.
      samples: Float32[B, K, 4], foreground first. drawn: Bool[B, K], which of them are more than fillers.
      matched: Int32[B, K], the true box that each overlaps most. foreground: Bool[B, K], it is drawn and stands for it.
      logits: Float32[B, K, 2], the sample is none, is an object. deltas: Float32[B, K, 4], how it has to move.
    """

    heat: Array
    boxes: Array
    samples: Array
    drawn: Array
    matched: Array
    foreground: Array
    logits: Array
    deltas: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What `PixelLLM.__call__` answers; None where a head is absent.

    Attributes:
      text_features: Float[B, N, T, D], last decoder states with the vocabulary layer's dropout applied.
      vocabulary_kernel: Float[D, V], text_features @ vocabulary_kernel are the logits, plus vocabulary_bias Float[V]
        where there is one. The loss multiplies in chunks, so that [B, N, T, V] never exists.
      points: Float32[B, N, T, P, 2], the place of each token that was read.
      text_tokens: Int32[B, N, T], what was read, text_mask: Bool[B, N, T], valid: Bool[B, N] and prompt_boxes:
        Float32[B, M, 4]: the batch's own, or those of the regions that the detector chose.
      presence: Float32[B, N, T], logit: the token that was read has a place at all.
      alignment: Float32[B, N, T, Q], logits of the query that the token that was read means.
      map_regions: one RegionOutputs for the cells of the image map, K = h * w, row by row.
      query_regions: one RegionOutputs for the queries of the prompt extractor, K = Q.
      prompt_regions: one RegionOutputs for the queries of each prompt, B * M of them, K = Q.
      masks: Float32[B, N, 1, S, S], logits, and iou Float32[B, N, 1], the IoU that the model expects of each.
      detector: what the detector says of a batch with `described`.
    """

    text_features: Array
    vocabulary_kernel: Array
    points: Array
    text_tokens: Array
    text_mask: Array
    valid: Array
    prompt_boxes: Array
    vocabulary_bias: Array | None = None
    presence: Array | None = None
    alignment: Array | None = None
    map_regions: RegionOutputs | None = None
    query_regions: RegionOutputs | None = None
    prompt_regions: RegionOutputs | None = None
    masks: Array | None = None
    iou: Array | None = None
    detector: DetectorOutputs | None = None


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of a batch, from which `spec` makes every array's shape.

    Attributes:
      canvas: side of the square canvas in pixels.
      regions: N. prompts: M, 1 or N.
      text: T, BOS and EOS included. instruction: C, 0 for none.
      points: P. point_grid: how a box becomes P points: "corner" (2), "solid" (k * k), "donut" (4 * (k - 1)).
      prompt_points: K, 0 for boxes only. objects: R, 0 for no region targets. phrase: L.
      mask: S, side of the masks of regions in cells, 0 for none: from that of predicted masks, a quarter of the canvas
        in published models, to the canvas (published). Finer ones teach edges inside a cell and cost memory.
      prompt_mask: side of the masks of prompts in cells, 0 for none; a multiple of 4.
      described: most descriptions of a picture in dense captioning, 0 for no such batch; N then is how many of the
        detector's finds are described in training. More descriptions than that are refused, none is left out.
    """

    canvas: int
    regions: int = 1
    prompts: int = 1
    text: int = 64
    instruction: int = 0
    points: int = 2
    point_grid: Literal["corner", "solid", "donut"] = "corner"
    prompt_points: int = 0
    objects: int = 0
    phrase: int = 8
    mask: int = 0
    prompt_mask: int = 0
    described: int = 0

    def __post_init__(self) -> None:
        check_at_least("shape", self, canvas=1, regions=1, text=2, instruction=0, points=1)
        check_at_least("shape", self, prompt_points=0, objects=0, phrase=1, mask=0, prompt_mask=0, described=0)
        if self.prompts not in (1, self.regions):
            raise ValueError(
                f"shape.prompts is {self.prompts}, expected 1, a prompt that all regions share, or {self.regions}, the "
                "number of regions. Set one of them."
            )
        if self.described and self.objects:
            raise ValueError(
                f"shape.objects is {self.objects} with shape.described {self.described}, expected one of them 0: the "
                "dense objective and the detector learn from batches of their own. Set one."
            )
        if self.described and self.prompts != self.regions:
            raise ValueError(
                f"shape.prompts is {self.prompts} with shape.described {self.described}, expected {self.regions}, the "
                "number of regions: each find of the detector is asked about by itself. Set it."
            )


def spec(shape: Shape, batch_size: int) -> Batch:
    """The abstract batch (jax.ShapeDtypeStruct leaves) of `batch_size` examples."""
    b, n, s = batch_size, shape.regions, shape.canvas

    def array(dtype: Any, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *dims), dtype)

    r, phrase = shape.objects, shape.phrase
    regions = RegionTargets(
        boxes=array(np.float32, r, 4),
        mask=array(np.bool_, r),
        tokens=array(np.int32, r, phrase),
        token_mask=array(np.bool_, r, phrase),
    )
    m, k = shape.prompts, shape.prompt_points
    prompt_points = PromptPoints(
        xy=array(np.float32, m, k, 2),
        mask=array(np.bool_, m, k),
        foreground=array(np.bool_, m, k),
        boxed=array(np.bool_, m),
    )
    described = Described(
        boxes=array(np.float32, shape.described, 4),
        mask=array(np.bool_, shape.described),
        text_tokens=array(np.int32, shape.described, shape.text),
        text_mask=array(np.bool_, shape.described, shape.text),
    )
    masks, prompt_masks = (
        Masks(cells=array(np.bool_, count, side, side), given=array(np.bool_, count)) if side else None
        for count, side in ((n, shape.mask), (m, shape.prompt_mask))
    )
    return Batch(
        images=array(np.uint8, s, s, 3),
        valid_size=array(np.int32, 2),
        prompt_boxes=array(np.float32, shape.prompts, 4),
        instruction_tokens=array(np.int32, n, shape.instruction),
        instruction_mask=array(np.bool_, n, shape.instruction),
        text_tokens=array(np.int32, n, shape.text),
        text_mask=array(np.bool_, n, shape.text),
        token_points=array(np.float32, n, shape.text, shape.points, 2),
        locate=array(np.bool_, n, shape.text),
        valid=array(np.bool_, n),
        weights=Weights(
            text=array(np.float32), point=array(np.float32), region=array(np.float32), mask=array(np.float32)
        ),
        prompt_points=prompt_points if k else None,
        regions=regions if r else None,
        masks=masks,
        prompt_masks=prompt_masks,
        described=described if shape.described else None,
    )


def zeros(shape: Shape, batch_size: int) -> Batch:
    """A batch of zeros (numpy), for initialisation and compilation."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec(shape, batch_size))


def check(batch: Batch, expected: Batch) -> None:
    """Raises ValueError that names every field of `batch` whose shape or dtype differs from `expected` (a `spec`)."""
    got_leaves = jax.tree_util.tree_leaves_with_path(batch)
    want_leaves = jax.tree_util.tree_leaves_with_path(expected)
    got = {jax.tree_util.keystr(k): (tuple(v.shape), np.dtype(v.dtype)) for k, v in got_leaves}
    want = {jax.tree_util.keystr(k): (tuple(v.shape), np.dtype(v.dtype)) for k, v in want_leaves}
    faults = [
        f"batch{k} is {got.get(k, 'absent')}, expected {want.get(k, 'absent')}"
        for k in sorted(got.keys() | want.keys())
        if got.get(k) != want.get(k)
    ]
    if faults:
        raise ValueError("; ".join(faults) + ". The data settings and the model's batch_spec disagree.")
