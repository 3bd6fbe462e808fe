"""Segment Anything's two-way transformer: tokens read the image, the image reads the tokens.

Source: Kirillov et al. (arXiv 2304.02643), transformer.py of the official release; post-norm, epsilon 1e-5. Differences
from a common decoder: the first layer's self-attention replaces its input and sees no positions, the image side is
updated too, and cross-attention runs at half the width. The first layer has the parameters of the others and differs by
a factor of zero, so that all of them make one stack.
"""

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import LayerNorm
from pixel_align.nn.partitioning import constrain
from pixel_align.nn.stack import run_stack, stack
from pixel_align.sizes import check_at_least, check_heads

_EPSILON = 1e-5  # torch's LayerNorm default, which the release uses


class TwoWaySizes(Protocol):
    """What the configs of parts that hold a two-way transformer have in common."""

    @property
    def width(self) -> int: ...

    @property
    def num_heads(self) -> int: ...


def check_sizes(part: str, config: TwoWaySizes) -> None:
    """Raises ValueError where a config with width, depth, num_heads and mlp_width makes no two-way transformer."""
    check_at_least(part, config, width=1, depth=1, num_heads=1, mlp_width=1)
    check_heads(part, config.width, config.num_heads, 2, "cross-attention runs at half the width")


class ProjectedAttention(nn.Module):
    """Multi-head attention with an inner width of D / narrowing: q [B, T, D], k and v [B, S, D] -> [B, T, D]."""

    narrowing: int
    num_heads: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = q.shape[-1] // self.narrowing
        head = width // self.num_heads

        def heads(x: jax.Array, name: str) -> jax.Array:
            x = nn.Dense(width, name=name, dtype=self.dtype)(x)
            return x.reshape(*x.shape[:-1], self.num_heads, head)

        out = attention(heads(q, "query"), heads(k, "key"), heads(v, "value"), mask=mask, scale=head**-0.5)
        return nn.Dense(q.shape[-1], name="out", dtype=self.dtype)(out.reshape(*out.shape[:-2], width))


class TwoWayBlock(nn.Module):
    """One layer. Form of a `stack` layer."""

    num_heads: int
    mlp_width: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(
        self,
        x: tuple[jax.Array, jax.Array],
        layer: jax.Array,
        shared: tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None],
        train: bool,
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """x: tokens [B, K, D] and image [B, S, D]; layer: scalar, 0 for the first layer and 1 for the others; shared:
        the codes of both, then Bool[B, K] and Bool[B, S], which of them exist, None for all.
        """
        (tokens, image), (token_code, image_code, token_mask, image_mask) = x, shared
        later, width = layer.astype(tokens.dtype), tokens.shape[-1]
        mask, seen = _as_keys(token_mask), _as_keys(image_mask)

        def attend(name: str, narrowing: int) -> ProjectedAttention:
            return ProjectedAttention(narrowing, self.num_heads, self.dtype, name=name)

        def norm(x: jax.Array, name: str) -> jax.Array:
            return LayerNorm(_EPSILON, name=name, dtype=self.dtype)(x)

        coded = tokens + later * token_code
        tokens = later * tokens + attend("self_attention", 1)(coded, coded, tokens, mask)
        tokens = norm(tokens, "self_attention_norm")

        coded, places = tokens + token_code, image + image_code
        tokens = norm(tokens + attend("token_to_image", 2)(coded, places, image, seen), "token_to_image_norm")

        hidden = nn.relu(nn.Dense(self.mlp_width, name="mlp_in", dtype=self.dtype)(tokens))
        tokens = norm(tokens + nn.Dense(width, name="mlp_out", dtype=self.dtype)(hidden), "mlp_norm")

        coded = tokens + token_code
        image = norm(image + attend("image_to_token", 2)(places, coded, tokens, mask), "image_to_token_norm")
        return (tokens, image), None


class TwoWayTransformer(nn.Module):
    """tokens [B, K, D] (they are their own position code), image and image_code [B, S, D] -> (tokens, image).

    token_mask Bool[B, K] and image_mask Bool[B, S]: which of them exist, None for all; the others are read by nobody.
    """

    depth: int
    num_heads: int
    mlp_width: int
    dtype: DTypeLike = jnp.float32  # of the computation
    scan: bool = True  # one compiled block for all layers
    remat: str = "none"  # what a backward pass computes again, see `stack`

    def setup(self) -> None:
        self.layers = stack(
            TwoWayBlock,
            self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_width=self.mlp_width,
            dtype=self.dtype,
        )
        self.final_token_to_image = ProjectedAttention(2, self.num_heads, self.dtype)
        self.final_norm = LayerNorm(_EPSILON, dtype=self.dtype)

    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        image_code: jax.Array,
        token_mask: jax.Array | None = None,
        image_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        tokens, image, image_code = (x.astype(self.dtype) for x in (tokens, image, image_code))
        tokens, image = (constrain(x, ("batch", None, None)) for x in (tokens, image))
        code = tokens
        later = (jnp.arange(self.depth) > 0).astype(jnp.float32)
        (tokens, image), _ = run_stack(self.layers, (tokens, image), later, (code, image_code, token_mask, image_mask))
        found = self.final_token_to_image(tokens + code, image + image_code, image, _as_keys(image_mask))
        return self.final_norm(tokens + found), image


def _as_keys(mask: jax.Array | None) -> jax.Array | None:
    """Bool[B, S] -> Bool[B, 1, 1, S]: the same for all heads and queries."""
    return None if mask is None else mask[:, None, None, :]
