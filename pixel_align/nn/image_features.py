"""Pictures in bytes -> one map of image features: each encoder's own colours, and the maps of two laid on each other.

Who needs to know where a cell of the map lies asks `grid` or `stride`; the patch size of an encoder does not say it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.sam_vit import SamVit, SamVitConfig


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Two encoders, their channels in this order. The published pair is the default: EVA02-L beside a frozen SAM."""

    kind: str = "fusion"
    eva: EvaVitConfig = dataclasses.field(default_factory=EvaVitConfig)
    sam: SamVitConfig = dataclasses.field(default_factory=lambda: SamVitConfig(frozen=True))


EncoderConfig = SamVitConfig | EvaVitConfig
ImageConfig = SamVitConfig | EvaVitConfig | FusionConfig


def encoders(config: ImageConfig) -> dict[str, EncoderConfig]:
    """The encoders of a config by the names of their parameters' subtrees, in the order of their channels."""
    if isinstance(config, FusionConfig):
        return {"eva": config.eva, "sam": config.sam}
    return {"eva" if isinstance(config, EvaVitConfig) else "sam": config}


def grid(config: ImageConfig, canvas: int) -> tuple[int, int]:
    """(h, w) of the image features of a square canvas of so many pixels: the largest grid among the encoders.

    Raises ValueError where the canvas is smaller than a patch.
    """
    side = max(encoder.grid(canvas) for encoder in encoders(config).values())
    if side < 1:
        raise ValueError(f"model.shape.canvas is {canvas}, expected at least one patch. Use a larger canvas.")
    return side, side


def stride(config: ImageConfig, canvas: int) -> float:
    """Canvas pixels between the centres of neighbouring cells: 14.2 for the published pair at 384 px, not 14 or 16."""
    return canvas / grid(config, canvas)[0]


def output_width(config: ImageConfig) -> int:
    """Channels of the image features."""
    return sum(encoder.output_width for encoder in encoders(config).values())


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
    """UInt8[B, H, W, 3] and valid size Int[B, 2] -> image features Float[B, h, w, D]. Parameters: eva, sam, or both."""

    config: ImageConfig

    def setup(self) -> None:
        parts = encoders(self.config)
        if isinstance(eva := parts.get("eva"), EvaVitConfig):
            self.eva = EvaVit(eva)
        if isinstance(sam := parts.get("sam"), SamVitConfig):
            self.sam = SamVit(sam)

    def __call__(self, images: jax.Array, valid_size: jax.Array, *, train: bool = False) -> jax.Array:
        """All maps laid on each other; see `maps`."""
        return fuse(list(self.maps(images, valid_size, train=train).values()))

    def maps(self, images: jax.Array, valid_size: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """The map of each encoder on its own grid, Float[B, h, w, its width].

        train: whether an encoder's drop-path runs; its random bits come from "dropout".
        """
        found = {}
        for name, config in encoders(self.config).items():
            x = normalize(images, valid_size, config.mean, config.std)
            found[name] = self.eva(x, train=train) if name == "eva" else self.sam(x)
        return found


def fuse(maps: list[jax.Array]) -> jax.Array:
    """Float[B, h, w, D] each -> Float[B, H, W, sum of D]: all on the largest grid, bicubic, channels side by side.

    As published. In float32: the kernel's negative lobes cancel badly at half precision.
    """
    height, width = (max(x.shape[axis] for x in maps) for axis in (1, 2))

    def on_largest(x: jax.Array) -> jax.Array:
        if x.shape[1:3] == (height, width):
            return x
        shape = (x.shape[0], height, width, x.shape[3])
        return jax.image.resize(x.astype(jnp.float32), shape, "cubic").astype(x.dtype)

    return jnp.concatenate([on_largest(x) for x in maps], axis=-1)
