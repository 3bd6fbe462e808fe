"""Segment Anything's prompt encoder: boxes and points become tokens, masks a map; the grid gets its position code.

Source: Kirillov et al., Segment Anything (arXiv 2304.02643), prompt_encoder.py of the official release.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.batch import PromptPoints
from pixel_align.nn.blocks import LayerNorm
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least

_DRAWN_LOGIT = 10.0  # a drawn mask is the answer of a mask decoder that is sure


@dataclasses.dataclass(frozen=True)
class PromptEncoderConfig:
    """Attributes: see the comments. Segment Anything's values are the defaults."""

    width: int = 256  # of a prompt token, even
    points: bool = False  # prompts may be points, too: brings SAM's embedding of "no point"
    masks: bool = False  # prompts may be masks, or a mask decoder reads them: brings SAM's embedding of "no mask"
    padding_tokens: int = 0  # "nothing" tokens behind each box; the published PixelLLM carries 3 of them
    frozen: bool = False  # published: True, SAM's own weights

    def __post_init__(self) -> None:
        check_at_least("prompt", self, width=2, padding_tokens=0)
        if self.width % 2:
            raise ValueError(
                f"prompt.width is {self.width}, expected an even number (half sines, half cosines). Change it."
            )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        return cls(**{"width": 64, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """To measure speed: Segment Anything's size, 1,280 parameters, without the padding of PixelLLM."""
        return cls(**changes)

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """PixelLLM's: Segment Anything's, and three tokens of padding behind each box."""
        return cls(**{"padding_tokens": 3, **changes})


class RandomFourier(nn.Module):
    """Positions as sines and cosines of random projections: [..., 2] in [0, 1] -> [..., 2 * features].

    The matrix is drawn once and never trained: the projection is a basis, not a weight.
    """

    features: int

    @nn.compact
    def __call__(self, xy: jax.Array) -> jax.Array:
        matrix = self.param("gaussian", nn.initializers.normal(1.0), (2, self.features))
        angles = 2 * jnp.pi * ((2 * xy.astype(jnp.float32) - 1) @ jax.lax.stop_gradient(matrix))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class PromptEncoder(nn.Module):
    """Boxes and points -> prompt tokens; a grid -> its dense position code."""

    config: PromptEncoderConfig

    def setup(self) -> None:
        width = self.config.width
        self.positions = RandomFourier(width // 2)
        # 0 background point, 1 foreground point, 2 and 3 the two corners of a box: SAM's point_embeddings in order.
        self.point_embeddings = self.param("point_embeddings", nn.initializers.normal(1.0), (4, width))
        if self.config.padding_tokens or self.config.masks:
            self.no_mask = self.param("no_mask_embedding", nn.initializers.normal(1.0), (width,))
        if self.config.masks:
            self.mask_downscaling = MaskDownscaling(width)
        if self.config.points:
            self.no_point = self.param("no_point_embedding", nn.initializers.normal(1.0), (width,))

    def __call__(
        self, boxes: jax.Array, canvas: int, points: PromptPoints | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Boxes Float[B, M, 4] and points -> prompt tokens Float32[B, M, K', width] and which of them exist.

        Without points the mask is None: all exist. With K points, K' = K + 1 + 2 + padding_tokens: the points, one "no
        point" that stands for the box where there is none (as in SAM), the corners of the box.
        """
        tokens = self.boxes(boxes, canvas)
        if points is None:
            return tokens, None
        given = self.points(points.xy, points.foreground, canvas)
        no_point = jnp.broadcast_to(self.no_point, (*boxes.shape[:-1], 1, self.config.width))
        boxed = points.boxed[..., None]
        always = jnp.ones((*boxes.shape[:-1], self.config.padding_tokens), bool)
        mask = jnp.concatenate([points.mask, ~boxed, boxed, boxed, always], axis=-1)
        return jnp.concatenate([given, no_point, tokens], axis=-2), mask

    def boxes(self, boxes: jax.Array, canvas: int) -> jax.Array:
        """Float[..., 4] xyxy in [0, 1] of a canvas of `canvas` pixels -> tokens Float32[..., 2 + padding_tokens,
        width].

        Half a pixel is added as in SAM: a coordinate names the centre of its pixel.
        """
        corners = boxes.reshape(*boxes.shape[:-1], 2, 2) + 0.5 / canvas
        tokens = self.positions(corners) + self.point_embeddings[2:]
        if self.config.padding_tokens:
            padding = jnp.broadcast_to(self.no_mask, (*boxes.shape[:-1], self.config.padding_tokens, self.config.width))
            tokens = jnp.concatenate([tokens, padding], axis=-2)
        return tokens

    def points(self, points: jax.Array, foreground: jax.Array, canvas: int) -> jax.Array:
        """Float[..., K, 2] in [0, 1] and Bool[..., K] (True: the object, False: not the object) -> Float32[..., K,
        width].

        Which of the K points exist is the caller's mask: it goes to the attention of whoever reads the tokens.
        """
        kinds = jnp.where(foreground[..., None], self.point_embeddings[1], self.point_embeddings[0])
        return self.positions(points + 0.5 / canvas) + kinds

    def dense(self, masks: jax.Array | None = None, given: jax.Array | None = None) -> jax.Array:
        """What a prompt adds to every cell of SAM's image features.

        Args:
          masks: [B, M, 4h, 4w], four cells a side for each cell of the features: logits in Float, as the mask decoder
            answers them; or drawn masks in Bool. None: no prompt has a mask.
          given: Bool[B, M], which prompts have a mask; None for all.

        Returns:
          Float32[B, M, h, w, width], or Float32[width] without masks: broadcast it. The layers that read masks have
          parameters only where the model was initialised with masks.

        Raises:
          ValueError: the sides of the masks are not multiples of 4.
        """
        if masks is None:
            return self.no_mask
        if masks.shape[-2] % 4 or masks.shape[-1] % 4:
            raise ValueError(
                f"masks of prompts have {masks.shape[-2]} x {masks.shape[-1]} cells, expected four times the grid of "
                "the image features in both directions. Resize them."
            )
        if masks.dtype == jnp.bool_:
            masks = jnp.where(masks, _DRAWN_LOGIT, -_DRAWN_LOGIT)
        added = self.mask_downscaling(masks[..., None].astype(jnp.float32))
        return added if given is None else jnp.where(given[..., None, None, None], added, self.no_mask)

    def grid(self, height: int, width: int, extent: float = 1.0) -> jax.Array:
        """Float32[height, width, D]: the position code of the centre of each cell of a grid.

        extent: fraction of the canvas, from its top left corner, that the grid covers in each direction.
        """
        y = (jnp.arange(height) + 0.5) / height * extent
        x = (jnp.arange(width) + 0.5) / width * extent
        return self.positions(jnp.stack(jnp.meshgrid(x, y), axis=-1))


class MaskDownscaling(nn.Module):
    """Float[..., 4h, 4w, 1] -> Float32[..., h, w, features]."""

    features: int

    @nn.compact
    def __call__(self, masks: jax.Array) -> jax.Array:
        x = masks
        for i, width in enumerate((4, 16)):
            x = nn.Conv(width, (2, 2), strides=2, padding="VALID", name=f"conv_{i}")(x)
            x = nn.gelu(LayerNorm(1e-6, name=f"norm_{i}")(x), approximate=False)
        return nn.Dense(self.features, name="output")(x)


def rules(config: PromptEncoderConfig) -> PartRules:
    """Rules of a PromptEncoder's parameters: small tables, whole on every device; the random projection is a basis."""
    return PartRules(
        sharding=((r".*", ()),),
        weight_decay=((r".*", 0.0),),
        trainable=((r"positions/gaussian", False), (r".*", not config.frozen)),
    )
