"""Which of the extractor's queries a word means: the state that has read the word chooses among them.

A place says how far off an answer is, not which other thing it should have been: regressed alone, "the circle left of
the square" settles between all circles for a long time. A choice among the visual tokens, beside the place, says so.
Published models have no such head; it is off unless `enabled`.

Source: the contrastive alignment of words and objects of MDETR (Kamath et al., arXiv 2104.12763, section 2.2.2), from
words to queries only; which query holds an object is not said, see `losses.alignment`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.blocks import LayerNorm
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class AlignmentHeadConfig:
    """Off unless `enabled`."""

    enabled: bool = False
    width: int = 64
    frozen: bool = False

    def __post_init__(self) -> None:
        check_at_least("alignment", self, width=1)


class AlignmentHead(nn.Module):
    """Text features Float[B, N, T, D], visual tokens Float[B, 1, Q, E] of the whole picture -> logits
    Float32[B, N, T, Q] of the query that each word means.
    """

    config: AlignmentHeadConfig

    @nn.compact
    def __call__(self, text: jax.Array, visual: jax.Array) -> jax.Array:
        width = self.config.width
        asked = nn.Dense(width, name="text")(LayerNorm(1e-6, name="text_norm")(text))
        held = nn.Dense(width, name="visual")(LayerNorm(1e-6, name="visual_norm")(visual[:, 0]))
        return jnp.einsum("bntd,bqd->bntq", asked, held).astype(jnp.float32) / width**0.5


def rules(config: AlignmentHeadConfig) -> PartRules:
    """Rules of an AlignmentHead's parameters."""
    return PartRules(
        sharding=((r"(text|visual)/kernel", (..., "fsdp", "tensor")), (r".*(bias|scale)", ())),
        weight_decay=((r".*(bias|scale)", 0.0), (r".*/kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
