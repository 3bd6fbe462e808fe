"""Segment Anything's prompt encoder: boxes and points become tokens; the image grid gets its position code.

Source: Kirillov et al., Segment Anything (arXiv 2304.02643), prompt_encoder.py of the official release.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.batch import PromptPoints
from pixel_align.param_rules import PartRules


@dataclasses.dataclass(frozen=True)
class PromptEncoderConfig:
    """Attributes: see the comments. Published values are the defaults."""

    width: int = 256  # of a prompt token
    points: bool = False  # prompts may be points, too: brings SAM's embedding of "no point"
    padding_tokens: int = 0  # "nothing" tokens behind each box; the published PixelLLM carries 3 of them
    frozen: bool = False  # published: True, SAM's own weights


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
        if self.config.padding_tokens:
            self.no_mask = self.param("no_mask_embedding", nn.initializers.normal(1.0), (width,))
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

    def grid(self, height: int, width: int) -> jax.Array:
        """Float32[height, width, D]: the position code of the centre of each cell of a grid over the canvas."""
        y = (jnp.arange(height) + 0.5) / height
        x = (jnp.arange(width) + 0.5) / width
        return self.positions(jnp.stack(jnp.meshgrid(x, y), axis=-1))


def rules(config: PromptEncoderConfig) -> PartRules:
    """Rules of a PromptEncoder's parameters: small tables, whole on every device; the random projection is a basis."""
    return PartRules(
        sharding=((r".*", ()),),
        weight_decay=((r".*", 0.0),),
        trainable=((r"positions/gaussian", False), (r".*", not config.frozen)),
    )
