"""Pictures in bytes -> one map of image features: each encoder's own colours, and the maps of two laid on each other.

Who needs to know where a cell of the map lies asks `grid` and `extent`; the patch size of an encoder does not say it:
cell i of a side of n has its centre at (i + 0.5) / n * extent, in [0, 1] of the canvas.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.sam_vit import SamVit, SamVitConfig


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Two encoders, their channels in this order. The published pair is the default: EVA02-L, which reads whole patches
    of the canvas only (378 of 384 px), beside a frozen SAM ViT-H.
    """

    kind: str = "fusion"
    eva: EvaVitConfig = dataclasses.field(default_factory=lambda: EvaVitConfig.large(whole_canvas=False))
    sam: SamVitConfig = dataclasses.field(default_factory=lambda: SamVitConfig.vit_h(frozen=True))

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published sizes, for tests."""
        return cls(**{"eva": EvaVitConfig.tiny(), "sam": SamVitConfig.tiny(frozen=True), **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not the published sizes, to measure speed at 224 px: 10.6M parameters."""
        return cls(**{"eva": EvaVitConfig.bench(), "sam": SamVitConfig.bench(frozen=True), **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """940.3M parameters, 1,280 channels."""
        return cls(**changes)


EncoderConfig = SamVitConfig | EvaVitConfig
ImageConfig = SamVitConfig | EvaVitConfig | FusionConfig


def encoders(config: ImageConfig) -> dict[str, EncoderConfig]:
    """The encoders of a config by the names of their parameters' subtrees, in the order of their channels."""
    if isinstance(config, FusionConfig):
        return {"eva": config.eva, "sam": config.sam}
    return {"eva" if isinstance(config, EvaVitConfig) else "sam": config}


def grid(config: ImageConfig, canvas: int) -> tuple[int, int]:
    """(h, w) of the image features of a square canvas of so many pixels: the largest grid among the encoders.

    Raises ValueError where an encoder cannot read such a canvas.
    """
    side = max(encoder.grid(canvas) for encoder in encoders(config).values())
    return side, side


def extent(config: ImageConfig, canvas: int) -> float:
    """Fraction of the canvas, from its top left corner, that the map covers in each direction.

    1 for a pair: as published, its maps are laid on each other corner to corner and a cell is taken to stand for its
    part of the whole canvas, though the channels of EVA-02 come from 378 of 384 px there. At the far edge they are 6 px
    off.
    """
    return 1.0 if isinstance(config, FusionConfig) else config.extent(canvas)


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
