"""PixelLLM's prompt feature extractor: learned queries collect from the image what a prompt asks for.

Source: arXiv 2312.09237 section 3, and the published "prompt adapter": a SAM two-way transformer over
[learned queries, prompt tokens] and the image map; each query has an output layer of its own. The published module also
holds a dense output layer that nothing reads (0.5M parameters): it is left out here.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import ComputeDtype
from pixel_align.nn.stack import Remat
from pixel_align.nn.two_way import TwoWayTransformer, check_sizes
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class PromptExtractorConfig:
    """Published values are the defaults."""

    kind: str = "two_way"
    queries: int = 32  # Q, visual tokens that the language model gets per prompt
    width: int = 512  # of the two-way transformer
    depth: int = 6
    num_heads: int = 8
    mlp_width: int = 2048
    output_width: int = 1024  # of a visual token
    scan: bool = True  # one compiled block for all layers
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation
    frozen: bool = False

    def __post_init__(self) -> None:
        check_at_least("extractor", self, queries=1, output_width=1)
        check_sizes("extractor", self)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        sizes = {"queries": 4, "width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64, "output_width": 32}
        return cls(**{**sizes, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not the published size, to measure speed: 1.7M parameters."""
        return cls(**{"queries": 8, "width": 128, "depth": 2, "output_width": 256, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """43.5M parameters where it reads 1,280 channels."""
        return cls(**changes)


class PromptExtractor(nn.Module):
    """(image map, prompt tokens) -> visual tokens."""

    config: PromptExtractorConfig

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        image_code: jax.Array,
        prompt: jax.Array,
        prompt_mask: jax.Array | None = None,
        dense: jax.Array | None = None,
    ) -> jax.Array:
        """Collects Q visual tokens for each of M prompts.

        Args:
          image: Float[B, h, w, D], the image features.
          image_code: Float[h, w, E], the prompt encoder's code of the grid.
          prompt: Float[B, M, K, E], prompt tokens.
          prompt_mask: Bool[B, M, K], which prompt tokens exist; None for all.
          dense: Float[B, M, h, w, E], or Float[E] for all, what `PromptEncoder.dense` answers; None adds nothing.

        Returns:
          Float[B, M, Q, output_width].
        """
        c = self.config
        b, m, k, _ = prompt.shape
        prompt_projection = nn.Dense(c.width, name="prompt_projection", dtype=c.dtype)
        queries = self.param("queries", nn.initializers.normal(1.0), (c.queries, c.width))
        tokens = jnp.concatenate(
            [jnp.broadcast_to(queries.astype(c.dtype), (b, m, c.queries, c.width)), prompt_projection(prompt)], axis=2
        ).reshape(b * m, c.queries + k, c.width)
        token_mask = None
        if prompt_mask is not None:
            always = jnp.ones((b, m, c.queries), bool)
            token_mask = jnp.concatenate([always, prompt_mask], axis=2).reshape(b * m, c.queries + k)

        # Projected once per picture, then read by its M prompts.
        image = nn.Dense(c.width, name="image_projection", dtype=c.dtype)(image).reshape(b, 1, -1, c.width)
        image = jnp.broadcast_to(image, (b, m, *image.shape[2:]))
        if dense is not None:
            added = prompt_projection(dense)
            image = image + (added if added.ndim == 1 else added.reshape(b, m, -1, c.width))
        image = image.reshape(b * m, -1, c.width)
        code = nn.Dense(c.width, name="code_projection", dtype=c.dtype)(image_code).reshape(1, -1, c.width)

        tokens, _ = TwoWayTransformer(c.depth, c.num_heads, c.mlp_width, c.dtype, c.scan, c.remat, name="two_way")(
            tokens, image, jnp.broadcast_to(code, image.shape), token_mask
        )
        tokens = tokens[:, : c.queries].reshape(b, m, c.queries, c.width)
        kernel = self.param(
            "output_kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=2, batch_axis=0),
            (c.queries, c.width, c.output_width),
        )
        bias = self.param("output_bias", nn.initializers.zeros, (c.queries, c.output_width))
        return jnp.einsum("bmqd,qde->bmqe", tokens, kernel.astype(tokens.dtype)) + bias.astype(tokens.dtype)


def rules(config: PromptExtractorConfig) -> PartRules:
    """Rules of a PromptExtractor's parameters."""
    return PartRules(
        sharding=(
            (r".*/(query|key|value|mlp_in)/kernel", (..., "fsdp", "tensor")),
            (r".*/(out|mlp_out)/kernel", (..., "tensor", "fsdp")),
            (r"\w+_projection/kernel|output_kernel", (..., "fsdp")),
            (r".*(bias|scale)|queries", ()),
        ),
        weight_decay=((r".*(bias|scale)|queries", 0.0), (r".*kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
