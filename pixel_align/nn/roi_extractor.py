"""What RoIAlign gives in place of the prompt extractor: the image features inside the prompt's box, bin by bin.

The comparison of Pixel Aligned Language Models (arXiv 2312.09237), whose published code holds the extractor alone: how
bins become visual tokens is ours. A bin does not know where its box lies, so what the prompt encoder says is added.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import ComputeDtype
from pixel_align.nn.roi_align import roi_align
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class RoiExtractorConfig:
    """36 bins stand for the 32 queries of the published extractor."""

    kind: str = "roi"
    side: int = 6  # bins of a side of a box; side * side visual tokens
    output_width: int = 1024  # of a visual token
    dtype: ComputeDtype = "float32"  # of the computation
    frozen: bool = False

    def __post_init__(self) -> None:
        check_at_least("extractor", self, side=1, output_width=1)

    @property
    def queries(self) -> int:
        """Q, visual tokens that the language model gets per prompt."""
        return self.side**2

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """For tests."""
        return cls(**{"side": 2, "output_width": 32, **changes})


class RoiExtractor(nn.Module):
    """(image map, boxes, prompt tokens) -> visual tokens."""

    config: RoiExtractorConfig

    @nn.compact
    def __call__(self, image: jax.Array, boxes: jax.Array, prompt: jax.Array, covered: float = 1.0) -> jax.Array:
        """The inside of each of M boxes.

        Args:
          image: Float[B, h, w, D], the image features.
          boxes: Float[B, M, 4], xyxy in [0, 1] of the canvas. They get no gradient from what lies inside.
          prompt: Float[B, M, K, E], prompt tokens.
          covered: fraction of the canvas, from its top left corner, that the map covers in each direction.

        Returns:
          Float[B, M, Q, output_width], bins row by row.
        """
        c = self.config
        bins = roi_align(image.astype(c.dtype), boxes, covered, size=c.side)
        bins = bins.reshape(*boxes.shape[:2], c.queries, image.shape[-1])
        said = nn.Dense(c.output_width, use_bias=False, name="prompt_projection", dtype=c.dtype)(prompt.sum(axis=2))
        code = self.param("positions", nn.initializers.normal(0.02), (c.queries, c.output_width))
        inside = nn.Dense(c.output_width, name="image_projection", dtype=c.dtype)(bins)
        return inside + said[:, :, None] + jnp.asarray(code, inside.dtype)


def rules(config: RoiExtractorConfig) -> PartRules:
    """Rules of a RoiExtractor's parameters."""
    return PartRules(
        sharding=((r"\w+_projection/kernel", (..., "fsdp")), (r".*bias|positions", ())),
        weight_decay=((r".*bias|positions", 0.0), (r".*kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
