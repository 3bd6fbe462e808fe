"""PixelLLM's location head: the state that has read a word says where the word is.

Source: arXiv 2312.09237 section 3.2 and the published point predictor: LayerNorm, three GELU layers, one linear layer.
The published head has two more outputs per point that nothing reads; they are left out.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import LayerNorm
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class LocationHeadConfig:
    """Published values are the defaults."""

    points: int = 2  # P, points per token: two corners of the word's box
    hidden_width: int = 512
    hidden_layers: int = 3
    presence: bool = False  # also say whether a word has a place at all; not published, where every word gets one
    frozen: bool = False

    def __post_init__(self) -> None:
        check_at_least("location", self, points=1, hidden_width=1, hidden_layers=0)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        return cls(**{"hidden_width": 32, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """To measure speed: the published size, 0.7M parameters where it reads 256 channels."""
        return cls(**changes)

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """1.58M parameters where it reads 2,048 channels."""
        return cls(**changes)


class LocationHead(nn.Module):
    """Text features Float[..., D] -> points Float32[..., P, 2], xy where [0, 1] spans the picture."""

    config: LocationHeadConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        c = self.config
        x = LayerNorm(1e-6, name="norm")(features)
        for i in range(c.hidden_layers):
            x = nn.gelu(nn.Dense(c.hidden_width, name=f"hidden_{i}")(x), approximate=False)
        raw = nn.Dense(c.points * 2, name="output")(x).astype(jnp.float32)
        # The raw output is centred: 0 is the middle of the picture. Nothing is clamped, so the gradient never dies.
        return ((raw + 1) / 2).reshape(*features.shape[:-1], c.points, 2)


def rules(config: LocationHeadConfig) -> PartRules:
    """Rules of a LocationHead's parameters."""
    return PartRules(
        sharding=((r"hidden_\d+/kernel", (..., "fsdp", "tensor")), (r".*(bias|scale)|output/kernel", ())),
        weight_decay=((r".*(bias|scale)", 0.0), (r".*/kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
