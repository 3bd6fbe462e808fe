"""Segment Anything's two-way transformer: tokens read the image, the image reads the tokens.

Source: Kirillov et al. (arXiv 2304.02643), transformer.py of the official release; post-norm, epsilon 1e-5. Differences
from a common decoder: the first layer's self-attention replaces its input and sees no positions, the image side is
updated too, and cross-attention runs at half the width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import LayerNorm

_EPSILON = 1e-5  # torch's LayerNorm default, which the release uses


class ProjectedAttention(nn.Module):
    """Multi-head attention with its own inner width: q [B, T, D], k and v [B, S, D] -> [B, T, D]."""

    inner_width: int
    num_heads: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        def heads(x: jax.Array, name: str) -> jax.Array:
            x = nn.Dense(self.inner_width, name=name, dtype=self.dtype)(x)
            return x.reshape(*x.shape[:-1], self.num_heads, self.inner_width // self.num_heads)

        scale = (self.inner_width // self.num_heads) ** -0.5
        out = attention(heads(q, "query"), heads(k, "key"), heads(v, "value"), mask=mask, scale=scale)
        return nn.Dense(q.shape[-1], name="out", dtype=self.dtype)(out.reshape(*out.shape[:-2], self.inner_width))


class TwoWayBlock(nn.Module):
    """One layer. tokens and token_code [B, K, D], image and image_code [B, S, D]; token_mask Bool[B, K] and image_mask
    Bool[B, S]: which of them exist, None for all.
    """

    num_heads: int
    mlp_width: int
    first: bool
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        token_code: jax.Array,
        image_code: jax.Array,
        token_mask: jax.Array | None,
        image_mask: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        width = tokens.shape[-1]
        mask, seen = _as_keys(token_mask), _as_keys(image_mask)

        def norm(x: jax.Array, name: str) -> jax.Array:
            return LayerNorm(_EPSILON, name=name, dtype=self.dtype)(x)

        attend = ProjectedAttention(width, self.num_heads, self.dtype, name="self_attention")
        if self.first:
            tokens = attend(tokens, tokens, tokens, mask)
        else:
            coded = tokens + token_code
            tokens = tokens + attend(coded, coded, tokens, mask)
        tokens = norm(tokens, "self_attention_norm")

        cross = ProjectedAttention(width // 2, self.num_heads, self.dtype, name="token_to_image")
        tokens = norm(tokens + cross(tokens + token_code, image + image_code, image, seen), "token_to_image_norm")

        hidden = nn.relu(nn.Dense(self.mlp_width, name="mlp_in", dtype=self.dtype)(tokens))
        tokens = norm(tokens + nn.Dense(width, name="mlp_out", dtype=self.dtype)(hidden), "mlp_norm")

        cross = ProjectedAttention(width // 2, self.num_heads, self.dtype, name="image_to_token")
        image = norm(image + cross(image + image_code, tokens + token_code, tokens, mask), "image_to_token_norm")
        return tokens, image


class TwoWayTransformer(nn.Module):
    """tokens [B, K, D] (they are their own position code), image and image_code [B, S, D] -> (tokens, image).

    token_mask Bool[B, K] and image_mask Bool[B, S]: which of them exist, None for all; the others are read by nobody.
    """

    depth: int
    num_heads: int
    mlp_width: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        image_code: jax.Array,
        token_mask: jax.Array | None = None,
        image_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        code = tokens
        for i in range(self.depth):
            block = TwoWayBlock(self.num_heads, self.mlp_width, i == 0, self.dtype, name=f"layers_{i}")
            tokens, image = block(tokens, image, code, image_code, token_mask, image_mask)
        final = ProjectedAttention(tokens.shape[-1] // 2, self.num_heads, self.dtype, name="final_token_to_image")
        tokens = tokens + final(tokens + code, image + image_code, image, _as_keys(image_mask))
        return LayerNorm(_EPSILON, name="final_norm", dtype=self.dtype)(tokens), image


def _as_keys(mask: jax.Array | None) -> jax.Array | None:
    """Bool[B, S] -> Bool[B, 1, 1, S]: the same for all heads and queries."""
    return None if mask is None else mask[:, None, None, :]
