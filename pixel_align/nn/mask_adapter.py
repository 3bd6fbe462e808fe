"""PixelLLM's mask adapter: what was seen and what was read correct the box with which the mask decoder is asked.

Source: arXiv 2312.09237 (referring segmentation) and the published "mask adapter": two learned queries, one for each
corner of the box, read visual tokens and text features through a two-way transformer of Segment Anything; the answer is
added to the corners' embeddings behind a gate that starts closed. The published adapter also reads the padding of the
text; here it does not.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import ComputeDtype, LayerNorm
from pixel_align.nn.stack import Remat
from pixel_align.nn.two_way import TwoWayTransformer, check_sizes
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class MaskAdapterConfig:
    """Published values are the defaults."""

    queries: int = 2  # prompt tokens that are corrected: the corners of the box
    width: int = 256  # of a prompt token
    depth: int = 2  # layers of the two-way transformer
    num_heads: int = 8
    mlp_width: int = 2048
    scan: bool = True  # one compiled block for all layers
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation
    lr_multiplier: float = 1.0  # on its learning rate; published: 10 in the stage that learns masks alone
    frozen: bool = False

    def __post_init__(self) -> None:
        check_at_least("masks.adapter", self, queries=1)
        check_sizes("masks.adapter", self)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        return cls(**{"width": 64, "num_heads": 2, "mlp_width": 64, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not the published size, to measure speed: 0.63M parameters where it reads 256 and 256 channels."""
        return cls(**{"width": 128, "num_heads": 4, "mlp_width": 512, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """4.35M parameters where it reads two times 2,048 channels."""
        return cls(**changes)


class MaskAdapter(nn.Module):
    """(visual tokens, text features) -> what to add to the prompt tokens of the predicted box."""

    config: MaskAdapterConfig

    @nn.compact
    def __call__(self, visual: jax.Array, text: jax.Array, text_mask: jax.Array | None = None) -> jax.Array:
        """The correction of each of N boxes.

        Args:
          visual: Float[B, M, Q, E], visual tokens; M is 1 where all regions share one prompt, else N.
          text: Float[B, N, T, D], text features.
          text_mask: Bool[B, N, T], which of them exist; None for all.

        Returns:
          Float32[B, N, queries, width]; zeros before training.
        """
        c = self.config
        b, n = text.shape[:2]

        def project(x: jax.Array, name: str) -> jax.Array:
            x = LayerNorm(1e-6, name=f"{name}_norm", dtype=c.dtype)(x)
            return nn.Dense(c.width, name=f"{name}_projection", dtype=c.dtype)(x)

        # Projected once per prompt, then read by all regions that share it.
        visual = project(visual, "visual")
        visual = jnp.broadcast_to(visual, (b, n, *visual.shape[2:]))
        read = jnp.concatenate([visual, project(text, "text")], axis=2).reshape(b * n, -1, c.width)
        exists = None
        if text_mask is not None:
            exists = jnp.pad(text_mask, [(0, 0), (0, 0), (visual.shape[2], 0)], constant_values=True)
            exists = exists.reshape(b * n, -1)

        queries = self.param("queries", nn.initializers.normal(1.0), (c.queries, c.width))
        tokens = jnp.broadcast_to(queries.astype(c.dtype), (b * n, c.queries, c.width))
        # What is read has no place of its own: the visual tokens are as unordered as the queries that made them.
        tokens, _ = TwoWayTransformer(c.depth, c.num_heads, c.mlp_width, c.dtype, c.scan, c.remat, name="two_way")(
            tokens, read, jnp.zeros_like(read), image_mask=exists
        )
        gate = self.param("gate", nn.initializers.zeros, (c.queries, c.width))
        return tokens.reshape(b, n, c.queries, c.width).astype(jnp.float32) * jnp.tanh(gate)


def rules(config: MaskAdapterConfig) -> PartRules:
    """Rules of a MaskAdapter's parameters."""
    return PartRules(
        sharding=(
            (r"two_way/.*/(query|key|value|mlp_in)/kernel", (..., "fsdp", "tensor")),
            (r"two_way/.*/(out|mlp_out)/kernel", (..., "tensor", "fsdp")),
            (r"\w+_projection/kernel", (..., "fsdp")),
            (r".*(bias|scale)|queries|gate", ()),
        ),
        weight_decay=((r".*(bias|scale)|queries|gate", 0.0), (r".*kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
        lr_multiplier=((r".*", config.lr_multiplier),),
    )
