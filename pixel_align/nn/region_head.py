"""A dense head: each anchor (a cell of the image map, or a query of the extractor) names the object nearest to it.

It is what the first stage learns by: where public weights are missing, object content has to get into the image map and
through the extractor's few queries before words can be placed. Boxes are said relative to the anchor, phrases as the
set of vocabulary pieces that occur in them, so that any data set with boxes and phrases can serve.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import LayerNorm
from pixel_align.param_rules import PartRules


@dataclasses.dataclass(frozen=True)
class RegionHeadConfig:
    """The dense first stage: off unless `enabled`."""

    enabled: bool = False
    hidden_width: int = 128
    on_map: bool = True  # ask the cells of the image map
    on_queries: bool = True  # ask the extractor's queries
    on_prompts: bool = False  # ask them also about each box that is a region's own prompt: what it holds, nothing else
    frozen: bool = False


def query_grid(queries: int) -> tuple[int, int]:
    """(rows, columns) of the grid that Q queries are laid out on, as square as Q allows.

    Raises:
      ValueError: Q is a prime above 3, so that no two-dimensional grid has Q cells.
    """
    rows = max(r for r in range(1, int(queries**0.5) + 1) if queries % r == 0)
    if rows == 1 and queries > 3:
        raise ValueError(
            f"extractor.queries is {queries}, expected a product of two numbers above 1. "
            "The dense first stage lays the queries out as a grid: take 16, 24, 32 or 36, or switch it off."
        )
    return rows, queries // rows


def query_anchors(queries: int) -> jax.Array:
    """Float32[Q, 2], xy in [0, 1] of the canvas: the anchor of each query."""
    return grid_anchors(*query_grid(queries))


def grid_anchors(height: int, width: int, extent: float = 1.0) -> jax.Array:
    """Float32[height * width, 2]: xy in [0, 1] of the centres of the cells of a grid, row by row.

    extent: fraction of the canvas, from its top left corner, that the grid covers in each direction.
    """
    y = (jnp.arange(height) + 0.5) / height * extent
    x = (jnp.arange(width) + 0.5) / width * extent
    return jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)


class RegionHead(nn.Module):
    """features Float[B, K, D], anchors Float[K, 2] -> (objectness [B, K], boxes [B, K, 4], pieces [B, K, V]).

    Objectness and pieces are logits; boxes are xyxy in [0, 1] of the canvas.
    """

    config: RegionHeadConfig
    vocabulary: int

    @nn.compact
    def __call__(self, features: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = LayerNorm(1e-6, name="norm")(features)
        x = nn.gelu(nn.Dense(self.config.hidden_width, name="hidden")(x))
        raw = nn.Dense(5, name="objectness_and_box")(x).astype(jnp.float32)
        pieces = nn.Dense(self.vocabulary, name="pieces")(x)
        center = anchors + raw[..., 1:3]
        half = nn.softplus(raw[..., 3:5] - 2)  # starts at 0.13 of the canvas: objects are smaller than the picture
        return raw[..., 0], jnp.concatenate([center - half, center + half], axis=-1), pieces


def rules(config: RegionHeadConfig) -> PartRules:
    """Rules of a RegionHead's parameters."""
    return PartRules(
        sharding=(
            (r"(hidden|pieces)/kernel", (..., "fsdp", "tensor")),
            (r".*(bias|scale)|objectness_and_box/kernel", ()),
        ),
        weight_decay=((r".*(bias|scale)", 0.0), (r".*/kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
