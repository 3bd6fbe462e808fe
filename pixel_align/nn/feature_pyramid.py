"""A pyramid of maps of one map of image features, for objects of all sizes.

Source: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527), the simple
feature pyramid, in the published PixelLLM with three of its levels and two coarser ones made by convolutions of stride
2. Where the cells lie: `pixel_align.pyramid`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pixel_align.nn.blocks import LayerNorm
from pixel_align.nn.mask_decoder import Upscale


class FeaturePyramid(nn.Module):
    """Float[B, h, w, D] -> five maps Float[B, ., ., width]: of twice as many cells, as many, 1/2, 1/4 and 1/8."""

    width: int = 256
    up_width: int = 384  # channels between the finer map's transposed convolution and its projection
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, ...]:
        x = features.astype(self.dtype)
        fine = self._project(Upscale(self.up_width, self.dtype, name="up")(x), "fine")
        same = self._project(x, "same")
        half = self._project(nn.max_pool(x, (2, 2), (2, 2)), "half")
        quarter = self._halve(half, "quarter")
        eighth = self._halve(nn.relu(quarter), "eighth")
        return fine, same, half, quarter, eighth

    def _project(self, x: jax.Array, name: str) -> jax.Array:
        for size in (1, 3):
            layer = f"{name}_{size}x{size}"
            x = nn.Conv(self.width, (size, size), padding=size // 2, use_bias=False, dtype=self.dtype, name=layer)(x)
            x = LayerNorm(1e-6, name=f"{layer}_norm", dtype=self.dtype)(x)
        return x

    def _halve(self, x: jax.Array, name: str) -> jax.Array:
        return nn.Conv(self.width, (3, 3), strides=2, padding=1, dtype=self.dtype, name=name)(x)
