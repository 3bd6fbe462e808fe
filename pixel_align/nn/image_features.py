"""Pictures in bytes -> image features: each encoder's own colour normalisation, padding, and what the grid covers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.sam_vit import SamVit, SamVitConfig


def normalize(images: jax.Array, valid_size: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """UInt8[B, H, W, 3] -> Float32[B, H, W, 3]: (image - mean) / std, exactly 0 outside the picture.

    Args:
      images: RGB in 0..255. valid_size: Int[B, 2], (height, width) in pixels of the part that holds the picture.
      mean, std: of RGB in 0..255.
    """
    height, width = images.shape[1:3]
    inside = (jnp.arange(height)[None, :, None] < valid_size[:, 0, None, None]) & (
        jnp.arange(width)[None, None, :] < valid_size[:, 1, None, None]
    )
    x = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    return x * inside[..., None]


class ImageFeatures(nn.Module):
    """UInt8[B, H, W, 3] and valid size Int[B, 2] -> image features Float[B, h, w, D]."""

    config: SamVitConfig

    def setup(self) -> None:
        self.sam = SamVit(self.config)

    def __call__(self, images: jax.Array, valid_size: jax.Array) -> jax.Array:
        return self.sam(normalize(images, valid_size, self.config.mean, self.config.std))
