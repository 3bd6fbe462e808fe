"""Segment Anything's image encoder: a plain ViT with windowed and global attention and a convolutional neck.

Source: Kirillov et al. (arXiv 2304.02643), image_encoder.py of the official release; ViTDet (arXiv 2203.16527) for the
windows and the decomposed relative positions. Positions rest as pretrained and are resized in the forward pass.
"""

import dataclasses
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import MLP, ComputeDtype, LayerNorm
from pixel_align.nn.partitioning import constrain
from pixel_align.nn.positions import resize_positions, resize_relative
from pixel_align.nn.stack import Remat, run_stack, stack
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least, check_heads

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class SamVitConfig:
    """Published ViT-H is the default."""

    kind: str = "sam_vit"
    patch_size: int = 16
    stem: Literal["patch", "conv"] = (
        "patch"  # "patch": one linear layer (published); "conv": overlapping convolutions, easier to learn from nothing
    )
    width: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: int = 4
    window: int = 14  # side of an attention window in patches
    global_blocks: tuple[int, ...] = (
        7,
        15,
        23,
        31,
    )  # blocks that see the whole picture; evenly spaced, the last included
    pretrain_grid: int = 64  # side of the grid that the position tables were learned on
    antialias: bool = True  # how these are resized: jax's antialiased way (published), or torch's
    output_width: int = 256  # of the neck
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of RGB in 0..255 (ImageNet)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    frozen: bool = False  # published: True
    scan: bool = True  # one compiled block for all layers that are alike
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation

    def __post_init__(self) -> None:
        check_at_least("sam_vit", self, patch_size=1, width=1, depth=1, num_heads=1, mlp_ratio=1)
        check_at_least("sam_vit", self, window=0, pretrain_grid=1, output_width=1)
        check_heads("sam_vit", self.width, self.num_heads, 1, "each head has as many channels")
        if self.stem not in ("patch", "conv") or (self.stem == "conv" and self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                f"sam_vit.stem is {self.stem!r} with patch_size {self.patch_size}, expected 'patch', or 'conv' with a "
                "power of two. Change one of them."
            )
        every = max(self.depth // max(len(self.global_blocks), 1), 1)
        # Counted from the last block: a depth that the groups do not divide would leave blocks out.
        expected = tuple(range(self.depth - 1, -1, -every))[::-1]
        if self.global_blocks != expected:
            raise ValueError(
                f"sam_vit.global_blocks is {self.global_blocks} at depth {self.depth}, expected evenly spaced blocks "
                f"that end with the last one, for example {expected}. Change depth or global_blocks."
            )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not a published size, for tests: 0.2M parameters."""
        sizes = {"width": 64, "depth": 2, "num_heads": 4, "window": 4, "global_blocks": (1,), "pretrain_grid": 8}
        return cls(**{**sizes, "output_width": 64, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not a published size, to measure speed at 224 px: 5.7M parameters."""
        sizes = {"width": 256, "depth": 6, "num_heads": 4, "window": 7, "global_blocks": (2, 5), "pretrain_grid": 14}
        return cls(**{**sizes, **changes})

    @classmethod
    def vit_b(cls, **changes: Any) -> Self:
        """SAM ViT-B: 89.7M parameters."""
        return cls(**{"width": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11), **changes})

    @classmethod
    def vit_l(cls, **changes: Any) -> Self:
        """SAM ViT-L: 308.3M parameters."""
        return cls(**{"width": 1024, "depth": 24, "num_heads": 16, "global_blocks": (5, 11, 17, 23), **changes})

    @classmethod
    def vit_h(cls, **changes: Any) -> Self:
        """SAM ViT-H, the published PixelLLM's: 637.03M parameters."""
        return cls(**changes)

    def grid(self, canvas: int) -> int:
        """Side of the grid of image features of a canvas of so many pixels: it covers all of it.

        Raises ValueError where whole patches do not.
        """
        patch = self.patch_size
        if canvas < patch or canvas % patch:
            near = [str(side) for side in (canvas // patch * patch, (canvas // patch + 1) * patch) if side > 0]
            raise ValueError(
                f"canvas is {canvas}, expected a multiple of {patch}, the patch of sam_vit. "
                f"Set model.shape.canvas to {' or '.join(near)}."
            )
        return canvas // patch

    def extent(self, canvas: int) -> float:
        """Fraction of the canvas, from its top left corner, that the map covers in each direction."""
        return 1.0


def relative_positions(table: jax.Array, size: int, antialias: bool = False) -> jax.Array:
    """Table Float[2 * S - 1, d] of a pretrained side S -> Float[size, size, d]: entry (query, key), linearly
    resized.
    """
    table = resize_relative(table, 2 * size - 1, antialias)
    index = jnp.arange(size)[:, None] - jnp.arange(size)[None, :] + size - 1
    return table[index]


class RelativeAttention(nn.Module):
    """Self-attention over a grid with decomposed relative positions: Float[B, h, w, D] -> the same."""

    num_heads: int
    table_side: int
    antialias: bool = False  # how the tables are resized

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, width = x.shape
        head = width // self.num_heads
        qkv = nn.Dense(3 * width, name="qkv", dtype=x.dtype)(x).reshape(b, h * w, 3, self.num_heads, head)
        q, k, v = (constrain(qkv[:, :, i], ("batch", None, "heads", None)) for i in range(3))
        tables = [
            self.param(f"relative_{axis}", nn.initializers.zeros, (2 * self.table_side - 1, head)) for axis in "hw"
        ]
        grid = q.reshape(b, h, w, self.num_heads, head).astype(jnp.float32)
        rows = jnp.einsum("bhwnd,hkd->bnhwk", grid, relative_positions(tables[0], h, self.antialias))
        columns = jnp.einsum("bhwnd,wkd->bnhwk", grid, relative_positions(tables[1], w, self.antialias))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(b, self.num_heads, h * w, h * w)
        out = attention(q, k, v, bias=bias, scale=head**-0.5)
        return nn.Dense(width, name="out", dtype=x.dtype)(out.reshape(b, h, w, width))


class SamBlock(nn.Module):
    """One pre-norm layer, Float[B, h, w, D] -> the same; window 0 means global attention. Form of a `stack` layer."""

    config: SamVitConfig
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, layer: None, shared: None, train: bool) -> tuple[jax.Array, None]:
        c = self.config
        b, h, w, _ = x.shape
        y = LayerNorm(_EPSILON, name="attention_norm", dtype=x.dtype)(x)
        attend = RelativeAttention(c.num_heads, self.window or c.pretrain_grid, c.antialias, name="attention")
        if self.window:
            y = merge_windows(attend(split_windows(y, self.window)), self.window, b, h, w)
        else:
            y = attend(y)
        x = x + y
        y = LayerNorm(_EPSILON, name="mlp_norm", dtype=x.dtype)(x)
        return x + MLP(c.mlp_ratio * c.width, "gelu", name="mlp", dtype=x.dtype)(y), None


class SamGroup(nn.Module):
    """Windowed blocks followed by one global block: what repeats in every published SAM. Form of a `stack` layer."""

    config: SamVitConfig

    def setup(self) -> None:
        c = self.config
        windowed = c.depth // len(c.global_blocks) - 1
        if windowed:
            self.windowed = stack(SamBlock, windowed, scan=c.scan, remat=c.remat, config=c, window=c.window)
        # One block, but rematerialised as the others are: its logits are the largest arrays of the model.
        alone = stack(SamBlock, 1, scan=False, remat=c.remat, config=c, window=0)
        assert isinstance(alone, list)
        self.whole = alone[0]

    def __call__(self, x: jax.Array, layer: None, shared: None, train: bool) -> tuple[jax.Array, None]:
        if self.config.depth > len(self.config.global_blocks):
            x, _ = run_stack(self.windowed, x, train=train)
        return self.whole(x, None, None, train)


def split_windows(x: jax.Array, window: int) -> jax.Array:
    """Float[B, h, w, D] -> Float[B * windows, window, window, D], zeros behind the right and bottom edges.

    As published, the zeros take part in the attention.
    """
    b, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, d).swapaxes(2, 3)
    return x.reshape(b * rows * columns, window, window, d)


def merge_windows(x: jax.Array, window: int, batch: int, height: int, width: int) -> jax.Array:
    """The inverse of `split_windows`: Float[B * windows, window, window, D] -> Float[batch, height, width, D]."""
    rows, columns = -(-height // window), -(-width // window)
    x = x.reshape(batch, rows, columns, window, window, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(batch, rows * window, columns * window, x.shape[-1])[:, :height, :width]


class ConvStem(nn.Module):
    """Overlapping 3x3 convolutions of stride 2 in place of the patch layer: Float[B, H, W, 3] -> [B, H / p, W / p, D].

    Source: Xiao et al., Early Convolutions Help Transformers See Better (arXiv 2106.14881).
    """

    config: SamVitConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        halvings = c.patch_size.bit_length() - 1
        for i in range(halvings):
            width = max(8, c.width >> (halvings - 1 - i))
            x = nn.Conv(width, (3, 3), strides=(2, 2), name=f"conv_{i}", dtype=x.dtype)(x)
            x = nn.gelu(LayerNorm(_EPSILON, name=f"norm_{i}", dtype=x.dtype)(x))
        return nn.Conv(c.width, (1, 1), name="output", dtype=x.dtype)(x)


class SamVit(nn.Module):
    """Normalised pictures Float[B, H, W, 3] -> image features Float[B, H / patch, W / patch, output_width]."""

    config: SamVitConfig

    def setup(self) -> None:
        c = self.config
        patch = (c.patch_size, c.patch_size)
        linear = nn.Conv(c.width, patch, strides=patch, padding="VALID", dtype=c.dtype)
        self.patch_embedding = ConvStem(c) if c.stem == "conv" else linear
        self.positions = self.param(
            "positions", nn.initializers.normal(0.02), (c.pretrain_grid, c.pretrain_grid, c.width)
        )
        # The blocks inside a group are rematerialised there: nesting it would compute them three times.
        self.groups = stack(SamGroup, len(c.global_blocks), scan=c.scan, config=c)
        self.neck_in = nn.Conv(c.output_width, (1, 1), use_bias=False, dtype=c.dtype)
        self.neck_in_norm = LayerNorm(_EPSILON, dtype=c.dtype)
        self.neck_out = nn.Conv(c.output_width, (3, 3), use_bias=False, dtype=c.dtype)
        self.neck_out_norm = LayerNorm(_EPSILON, dtype=c.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        c = self.config
        for side in images.shape[1:3]:
            c.grid(side)
        x = self.patch_embedding(images.astype(c.dtype))
        x = x + resize_positions(self.positions, x.shape[1], x.shape[2], c.antialias).astype(x.dtype)
        x = constrain(x, ("batch", None, None, None))  # pictures are shared out; left open, channels would be
        x, _ = run_stack(self.groups, x)
        x = self.neck_in_norm(self.neck_in(x))
        return self.neck_out_norm(self.neck_out(x))


def rules(config: SamVitConfig) -> PartRules:
    """Rules of a SamVit's parameters."""
    return PartRules(
        sharding=(
            (r".*/(qkv|wi)/kernel", (..., "fsdp", "tensor")),
            (r".*/(out|wo)/kernel", (..., "tensor", "fsdp")),
            (r"(patch_embedding|neck)\S*/kernel", (..., "fsdp")),
            (r".*(bias|scale|positions|relative_[hw])", ()),
        ),
        weight_decay=((r".*(bias|scale|positions|relative_[hw])", 0.0), (r".*/kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
