"""The detector: image features -> boxes of everything that can be described.

Source: Zhou et al., Probabilistic two-stage detection (arXiv 2103.07461), as the "box decoder" of the published
PixelLLM: a simple feature pyramid, a class-agnostic CenterNet that proposes, one R-CNN head that refines, and a score
that is the geometric mean of both. What differs from the published one, and why: docs/differences.md.
"""

import dataclasses
import functools
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, normal, ones, variance_scaling

from pixel_align import detection_targets, geometry, nms
from pixel_align.batch import DetectorOutputs
from pixel_align.nn.blocks import ComputeDtype
from pixel_align.nn.feature_pyramid import FeaturePyramid
from pixel_align.nn.roi_align import roi_align_levels
from pixel_align.param_rules import PartRules
from pixel_align.pyramid import Level, cells_of, pyramid_levels, visible
from pixel_align.sizes import check_at_least

_LEVELS = 5


@dataclasses.dataclass(frozen=True)
class BoxDecoderConfig:
    """The detector: off unless `enabled`. Published values are the defaults."""

    enabled: bool = False
    width: int = 256  # channels of all levels
    up_width: int = 384  # channels of the transposed convolution
    tower_layers: int = 4  # of the proposal head
    groups: int = 32  # of its norms
    hidden_width: int = 1024  # of the refinement head
    ranges: tuple[tuple[float, float], ...] = detection_targets.RANGES  # half diagonals in px of the levels' objects
    proposals_train: int = 1000  # of peaks_train
    peaks_train: int = 2000
    proposals: int = 256  # of peaks
    peaks: int = 1000
    proposal_nms: float = 0.9  # IoU
    samples: int = 512  # proposals of a picture that the refinement learns from
    positive_fraction: float = 0.25  # of the samples at most
    match_iou: float = 0.6  # from which a proposal stands for an object
    detections: int = 100  # published joint stages: 32
    score_threshold: float = 0.05
    nms: float = 0.5  # IoU
    dtype: ComputeDtype = "float32"  # of the computation; boxes are float32 throughout
    frozen: bool = False

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        sizes = {"width": 32, "up_width": 16, "tower_layers": 2, "groups": 4, "hidden_width": 64}
        numbers = {"proposals_train": 48, "peaks_train": 96, "proposals": 24, "peaks": 48, "samples": 24}
        return cls(**{**sizes, **numbers, "detections": 8, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not the published size, to measure speed: 3.22M parameters where it reads 256 channels."""
        sizes = {"width": 128, "up_width": 128, "hidden_width": 256}
        numbers = {"proposals_train": 256, "peaks_train": 512, "proposals": 128, "peaks": 256, "samples": 128}
        return cls(**{**sizes, **numbers, "detections": 32, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """21.95M parameters where it reads 1,280 channels."""
        return cls(**changes)

    def __post_init__(self) -> None:
        least = {"samples": 1, "detections": 1, "proposals": 1, "proposals_train": 1, "tower_layers": 1, "groups": 1}
        check_at_least("detector", self, hidden_width=1, up_width=1, **least)
        check_at_least("detector", self, peaks=self.proposals, peaks_train=self.proposals_train)
        if self.width < 1 or self.width % self.groups:
            raise ValueError(
                f"detector.width is {self.width} with groups {self.groups}, expected a multiple of groups (its norms "
                "are over groups of channels). Change one of them."
            )
        if len(self.ranges) != _LEVELS or any(len(r) != 2 or r[0] >= r[1] for r in self.ranges):
            raise ValueError(
                f"detector.ranges is {self.ranges}, expected {_LEVELS} pairs (from, to), one for each level. "
                "Set them in canvas pixels."
            )


class BoxDecoder(nn.Module):
    """The detector as methods; `__call__` joins them for training, `detect` for use.

    canvas: its side in pixels. covered: fraction of it, from its top left corner, that the image features cover in each
    direction (`image_features.extent`).
    """

    config: BoxDecoderConfig
    canvas: int
    covered: float = 1.0

    def setup(self) -> None:
        c = self.config
        self.feature_pyramid = FeaturePyramid(c.width, c.up_width, c.dtype)
        self.proposal_head = ProposalHead(c.width, c.tower_layers, c.groups, c.dtype)
        self.refinement_head = RefinementHead(c.hidden_width, c.dtype)

    def pyramid(self, features: jax.Array) -> tuple[jax.Array, ...]:
        """Image features Float[B, h, w, D] -> maps Float[B, ., ., width] of all levels, fine to coarse."""
        return self.feature_pyramid(features)

    def levels(self, maps: tuple[jax.Array, ...]) -> tuple[Level, ...]:
        """Where the cells of the maps lie."""
        _, height, width, _ = maps[1].shape
        return pyramid_levels(height, width, self.covered)

    def locations(self, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """Maps -> what the A cells of all levels say: heat logits Float32[B, A], boxes Float32[B, A, 4], unclipped."""
        logits, sides = self.proposal_head(maps)
        cells = cells_of(self.levels(maps))
        low = cells.center - sides[..., :2] * cells.size
        high = cells.center + sides[..., 2:] * cells.size
        return logits, jnp.concatenate([low, high], axis=-1)

    def propose(
        self,
        maps: tuple[jax.Array, ...],
        logits: jax.Array,
        boxes: jax.Array,
        valid_size: jax.Array,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The warmest locations, each thing once, cut to the picture.

        Args:
          maps: only to know where the cells lie. logits, boxes: of their `locations`.
          valid_size: Int[B, 2], (height, width) in canvas pixels of the part that holds the picture.

        Returns:
          boxes Float32[B, P, 4], heat Float32[B, P] and valid Bool[B, P]; no gradient passes. P is `proposals_train`
          or `proposals`.
        """
        c = self.config
        logits, boxes = jax.lax.stop_gradient((logits, boxes))
        boxes = self._cut(boxes, valid_size)
        seen = visible(cells_of(self.levels(maps)), valid_size, self.canvas)
        heat = jnp.where(seen & (geometry.box_area(boxes) > 0), jax.nn.sigmoid(logits), -jnp.inf)
        keep, peaks = (c.proposals_train, c.peaks_train) if train else (c.proposals, c.peaks)
        choose = functools.partial(nms.select, iou=c.proposal_nms, keep=keep, candidates=peaks)
        return jax.vmap(choose)(boxes, heat)

    def refine(self, maps: tuple[jax.Array, ...], boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Boxes Float[B, K, 4] -> logits Float32[B, K, 2] (background, an object) and deltas Float32[B, K, 4]."""
        return self.refinement_head(roi_align_levels(maps, boxes, self.levels(maps), self.canvas))

    def __call__(
        self, features: jax.Array, valid_size: jax.Array, boxes: jax.Array, mask: jax.Array, rng: jax.Array
    ) -> DetectorOutputs:
        """The training pass: true boxes Float[B, R, 4], of which mask Bool[B, R] exist, join the proposals.

        Args:
          features: Float[B, h, w, D]. valid_size: Int[B, 2], (height, width) in canvas pixels.
          rng: a key, what the samples are drawn with.
        """
        c = self.config
        maps = self.pyramid(features)
        heat, found = self.locations(maps)
        proposals, _, valid = self.propose(maps, heat, found, valid_size, train=True)
        proposals = jnp.concatenate([proposals, boxes], axis=1)
        valid = jnp.concatenate([valid, mask & (geometry.box_area(boxes) > 0)], axis=1)
        match = functools.partial(detection_targets.match, iou=c.match_iou)
        draw = functools.partial(detection_targets.sample, samples=c.samples, positive_fraction=c.positive_fraction)
        matched, foreground = jax.vmap(match)(proposals, valid, boxes, mask)
        index, drawn = jax.vmap(draw)(foreground, valid, jax.random.split(rng, len(features)))
        samples = jnp.take_along_axis(proposals, index[..., None], axis=1)
        logits, deltas = self.refine(maps, samples)
        return DetectorOutputs(
            heat=heat,
            boxes=found,
            samples=samples,
            drawn=drawn,
            matched=jnp.take_along_axis(matched, index, axis=1),
            foreground=jnp.take_along_axis(foreground, index, axis=1) & drawn,
            logits=logits,
            deltas=deltas,
        )

    def detect(self, features: jax.Array, valid_size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Image features Float[B, h, w, D] -> what is in the pictures, best first.

        Returns:
          boxes Float32[B, detections, 4], scores Float32[B, detections] in [0, 1] and valid Bool[B, detections]; boxes
          and scores are 0 where there is nothing more.
        """
        c = self.config
        maps = self.pyramid(features)
        heat, found = self.locations(maps)
        proposals, heat, valid = self.propose(maps, heat, found, valid_size)
        logits, deltas = self.refine(maps, proposals)
        boxes = self._cut(detection_targets.decode_deltas(deltas, proposals), valid_size)
        scores = jnp.sqrt(jax.nn.softmax(logits)[..., 1] * heat)
        valid &= (scores > c.score_threshold) & (geometry.box_area(boxes) > 0)
        choose = functools.partial(nms.select, iou=c.nms, keep=c.detections)
        return jax.vmap(choose)(boxes, jnp.where(valid, scores, -jnp.inf))

    def _cut(self, boxes: jax.Array, valid_size: jax.Array) -> jax.Array:
        """Boxes [B, K, 4] cut to the picture."""
        corner = valid_size[:, None, ::-1] / self.canvas
        return jnp.clip(boxes, 0, jnp.concatenate([corner, corner], axis=-1))


class ProposalHead(nn.Module):
    """CenterNet's head, one for all levels: maps [B, ., ., D] -> heat logits Float32[B, A], sides Float32[B, A, 4].

    Sides are what lies left, above, right and below of the middle of a cell, in cells of its level, 0 or more.
    """

    width: int
    layers: int
    groups: int
    dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        def conv(features: int, bias: float, name: str) -> nn.Conv:
            return nn.Conv(
                features,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                kernel_init=normal(0.01),
                bias_init=constant(bias),
                name=name,
            )

        def norm(name: str) -> nn.GroupNorm:
            # The default variance, E[x^2] - E[x]^2, cancels where the mean is large.
            return nn.GroupNorm(self.groups, use_fast_variance=False, dtype=self.dtype, name=name)

        tower = [(conv(self.width, 0.0, f"tower_{i}"), norm(f"tower_{i}_norm")) for i in range(self.layers)]
        heat = conv(1, -4.6, "heat")  # one cell in a hundred is a peak
        sides = conv(4, 8.0, "sides")
        scales = self.param("level_scales", ones, (len(maps),))
        logits, distances = [], []
        for x, scale in zip(maps, scales, strict=True):
            for convolve, normalize in tower:
                x = nn.relu(normalize(convolve(x)))
            logits.append(heat(x).astype(jnp.float32).reshape(len(x), -1))
            distances.append(nn.relu(sides(x).astype(jnp.float32) * scale).reshape(len(x), -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(distances, axis=1)


class RefinementHead(nn.Module):
    """R-CNN's head: features [B, K, s, s, D] -> logits Float32[B, K, 2], deltas Float32[B, K, 4]."""

    hidden_width: int
    dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.reshape(*x.shape[:2], -1)
        init = variance_scaling(1.0, "fan_in", "uniform")
        for i in range(2):
            x = nn.relu(nn.Dense(self.hidden_width, kernel_init=init, dtype=self.dtype, name=f"hidden_{i}")(x))
        x = x.astype(jnp.float32)
        return nn.Dense(2, kernel_init=normal(0.01), name="foreground")(x), nn.Dense(
            4, kernel_init=normal(0.001), name="deltas"
        )(x)


def rules(config: BoxDecoderConfig) -> PartRules:
    """Rules of a BoxDecoder's parameters."""
    return PartRules(
        sharding=(
            (r"feature_pyramid/.*kernel|proposal_head/tower_\d+/kernel", (..., "fsdp", "tensor")),
            (r"refinement_head/hidden_0/kernel", ("fsdp", "tensor")),
            (r"refinement_head/hidden_1/kernel", ("tensor", "fsdp")),
            (r".*(bias|scales?)|.*/(heat|sides|foreground|deltas)/kernel", ()),
        ),
        weight_decay=((r".*(bias|scales?)", 0.0), (r".*kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
