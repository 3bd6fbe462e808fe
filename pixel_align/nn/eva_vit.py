"""EVA-02's image encoder: a plain ViT with rotary positions, SwiGLU with a norm inside, and no key bias.

Source: Fang et al., EVA-02 (arXiv 2303.11331), as the published PixelLLM runs it. The absolute position table rests as
pretrained (class token first) and is resized in the forward pass. The class token takes part and is dropped at the end.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import ComputeDtype, DropPath, LayerNorm
from pixel_align.nn.partitioning import constrain
from pixel_align.nn.positions import resize_positions
from pixel_align.nn.rotary import rotary_angles, rotate
from pixel_align.nn.stack import Remat, run_stack, stack
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least, check_heads

_EPSILON = 1e-6
_MLP_EPSILON = 1e-5  # of the norm inside the SwiGLU


@dataclasses.dataclass(frozen=True)
class EvaVitConfig:
    """The published EVA02-L is the default."""

    kind: str = "eva_vit"
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_width: int = 2730  # hidden width of the SwiGLU, 8 / 3 of the width
    attention_norm: bool = False  # a norm between attention and its output layer: the CLIP variants of EVA-02 have it
    drop_path: float = 0.1  # of the last layer, from 0 at the first; none where the encoder is frozen
    pretrain_grid: int = 16  # side of the grid that the position table was learned on
    rotary_grid: int = (
        0  # side of the grid that rotary positions are counted on; 0: the grid at hand (published); EVA: 16
    )
    antialias: bool = True  # how the position table is resized: jax's antialiased way (published), or torch's
    whole_canvas: bool = (
        True  # fit the picture to whole patches; False: the rest is not seen (published: 378 of 384 px)
    )
    mean: tuple[float, float, float] = (122.7709383, 116.7460125, 104.09373615)  # of RGB in 0..255 (CLIP)
    std: tuple[float, float, float] = (68.5005327, 66.6321579, 70.32316305)
    layer_decay: float = 1.0  # learning rate of layer i times layer_decay ** (depth - i); published: 0.8 for some tasks
    frozen: bool = False
    scan: bool = True  # one compiled block for all layers
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation

    def __post_init__(self) -> None:
        check_at_least("eva_vit", self, patch_size=1, width=1, depth=1, num_heads=1, mlp_width=1)
        check_at_least("eva_vit", self, pretrain_grid=1, rotary_grid=0)
        check_heads("eva_vit", self.width, self.num_heads, 4, "rotary positions turn pairs of channels along two axes")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"eva_vit.drop_path is {self.drop_path}, expected 0 to below 1. Set it to 0 for none.")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not a published size, for tests: 0.1M parameters."""
        sizes = {"width": 48, "depth": 2, "num_heads": 4, "mlp_width": 128, "pretrain_grid": 4}
        return cls(**{**sizes, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not a published size, to measure speed at 224 px: 5.0M parameters."""
        return cls(**{"width": 256, "depth": 6, "num_heads": 4, "mlp_width": 682, **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """EVA02-B/14: 85.8M parameters."""
        return cls(**{"width": 768, "depth": 12, "num_heads": 12, "mlp_width": 2048, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """EVA02-L/14, the published PixelLLM's: 303.27M parameters."""
        return cls(**changes)

    @property
    def output_width(self) -> int:
        """Channels of the image features."""
        return self.width

    def grid(self, canvas: int) -> int:
        """Side of the grid of image features that a canvas of so many pixels gives.

        Raises ValueError where the canvas is smaller than a patch.
        """
        if canvas < self.patch_size:
            raise ValueError(
                f"canvas is {canvas}, expected {self.patch_size} or more, the patch of eva_vit. "
                "Set model.shape.canvas higher."
            )
        return canvas // self.patch_size

    def extent(self, canvas: int) -> float:
        """Fraction of the canvas, from its top left corner, that the map covers in each direction."""
        return 1.0 if self.whole_canvas else self.grid(canvas) * self.patch_size / canvas


class EvaAttention(nn.Module):
    """Self-attention, Float[B, 1 + S, D] -> the same; all but the first token have rotary positions."""

    num_heads: int
    inner_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array) -> jax.Array:
        """angles: Float32[S, head / 2], of `rotary_angles`."""
        width = x.shape[-1]
        head = width // self.num_heads

        def heads(name: str, bias: bool) -> jax.Array:
            y = nn.Dense(width, use_bias=bias, name=name, dtype=x.dtype)(x)
            return constrain(y.reshape(*y.shape[:-1], self.num_heads, head), ("batch", None, "heads", None))

        def turned(y: jax.Array) -> jax.Array:
            return jnp.concatenate([y[:, :1], rotate(y[:, 1:], angles)], axis=1)

        # A bias of the keys would add the same to all logits of a query: softmax would not see it.
        query, key, value = heads("query", True), heads("key", False), heads("value", True)
        out = attention(turned(query), turned(key), value, scale=head**-0.5).reshape(x.shape)
        if self.inner_norm:
            out = LayerNorm(_EPSILON, name="norm", dtype=x.dtype)(out)
        return nn.Dense(width, name="out", dtype=x.dtype)(out)


class SwiGLU(nn.Module):
    """silu(x W0) * x W1, a norm, and back: Float[..., D] -> the same."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.silu(nn.Dense(self.hidden, name="wi_0", dtype=x.dtype)(x))
        hidden = gate * nn.Dense(self.hidden, name="wi_1", dtype=x.dtype)(x)
        hidden = LayerNorm(_MLP_EPSILON, name="norm", dtype=x.dtype)(hidden)
        return nn.Dense(x.shape[-1], name="wo", dtype=x.dtype)(hidden)


class EvaBlock(nn.Module):
    """One pre-norm layer, Float[B, 1 + S, D] -> the same. Form of a `stack` layer; layer: the drop-path rate."""

    config: EvaVitConfig

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, shared: jax.Array, train: bool) -> tuple[jax.Array, None]:
        c = self.config
        y = LayerNorm(_EPSILON, name="attention_norm", dtype=x.dtype)(x)
        y = EvaAttention(c.num_heads, c.attention_norm, name="attention")(y, shared)
        x = x + DropPath()(y, layer, train)
        y = LayerNorm(_EPSILON, name="mlp_norm", dtype=x.dtype)(x)
        return x + DropPath()(SwiGLU(c.mlp_width, name="mlp")(y), layer, train), None


class EvaVit(nn.Module):
    """Normalised pictures Float[B, H, W, 3] -> image features Float[B, H // patch, W // patch, width]."""

    config: EvaVitConfig

    def setup(self) -> None:
        c = self.config
        patch = (c.patch_size, c.patch_size)
        self.patch_embedding = nn.Conv(c.width, patch, strides=patch, padding="VALID", dtype=c.dtype)
        small = nn.initializers.normal(0.02)
        self.class_token = self.param("class_token", small, (c.width,))
        self.positions = self.param("positions", small, (1 + c.pretrain_grid**2, c.width))
        self.layers = stack(EvaBlock, c.depth, scan=c.scan, remat=c.remat, config=c)
        self.norm = LayerNorm(_EPSILON, dtype=c.dtype)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """train: whether drop-path runs; its random bits come from "dropout"."""
        c = self.config
        x = self.patch_embedding(self._fitted(images).astype(c.dtype))
        b, h, w, d = x.shape
        table = self.positions[1:].reshape(c.pretrain_grid, c.pretrain_grid, d)
        x = x + resize_positions(table, h, w, c.antialias).astype(x.dtype)
        first = jnp.broadcast_to((self.class_token + self.positions[0]).astype(x.dtype), (b, 1, d))
        angles = rotary_angles(h, w, d // c.num_heads, c.rotary_grid)
        x = jnp.concatenate([first, x.reshape(b, h * w, d)], axis=1)
        x, _ = run_stack(
            self.layers,
            constrain(x, ("batch", None, None)),  # pictures are shared out; left open, channels would be
            jnp.linspace(0.0, c.drop_path, c.depth),
            angles,
            train=train and not c.frozen and c.drop_path > 0,
        )
        return self.norm(x[:, 1:]).reshape(b, h, w, d)

    def _fitted(self, images: jax.Array) -> jax.Array:
        """The pictures at the nearest smaller size that whole patches cover, so that the grid spans the canvas."""
        patch = self.config.patch_size
        height, width = (side // patch * patch for side in images.shape[1:3])
        if not self.config.whole_canvas or (height, width) == images.shape[1:3]:
            return images
        return jax.image.resize(images, (images.shape[0], height, width, 3), "linear")


def rules(config: EvaVitConfig) -> PartRules:
    """Rules of an EvaVit's parameters.

    Layer decay: block i of L learns at decay^(L - i), what lies before the blocks at decay^(L + 1).
    """
    decay, depth = config.layer_decay, config.depth
    layered = (
        (r"patch_embedding/.*|positions", decay ** (depth + 1)),
        (r"layers.*", lambda layer: decay ** (depth - layer)),
    )
    return PartRules(
        sharding=(
            (r".*/(query|key|value|wi_0|wi_1)/kernel", (..., "fsdp", "tensor")),
            (r".*/(out|wo)/kernel", (..., "tensor", "fsdp")),
            (r"patch_embedding/kernel", (..., "fsdp")),
            (r".*(bias|scale)|positions|class_token", ()),
        ),
        weight_decay=((r".*(bias|scale)|positions|class_token", 0.0), (r".*/kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
        lr_multiplier=(*(layered if decay != 1.0 else ()), (r".*", 1.0)),
    )
