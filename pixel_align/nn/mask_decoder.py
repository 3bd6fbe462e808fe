"""Segment Anything's mask decoder: prompt tokens and image features become masks, each with a guess of its own quality.

Source: Kirillov et al., Segment Anything (arXiv 2304.02643), appendix A, and mask_decoder.py of the official release. A
two-way transformer lets [one quality token, the mask tokens, the prompt tokens] and the image read each other. The
image then grows four times in each direction; a mask is its dot product with a vector that a small network makes from
the mask's token.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pixel_align.nn.blocks import ComputeDtype, LayerNorm
from pixel_align.nn.stack import Remat
from pixel_align.nn.two_way import TwoWayTransformer, check_sizes
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """Published values are the defaults."""

    width: int = 256  # of image features and prompt tokens
    depth: int = 2  # layers of the two-way transformer
    num_heads: int = 8
    mlp_width: int = 2048
    alternatives: int = 3  # masks of an answer with several: a point can mean a whole, a part and a part of that
    quality_width: int = 256  # hidden width of the network that predicts the IoU
    scan: bool = True  # one compiled block for all layers
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation
    frozen: bool = False  # published: True, SAM's own weights

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not the published size, for tests."""
        return cls(**{"width": 64, "num_heads": 2, "mlp_width": 64, "quality_width": 32, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not the published size, to measure speed: 0.76M parameters."""
        return cls(**{"width": 128, "num_heads": 4, "mlp_width": 512, "quality_width": 128, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """4.06M parameters."""
        return cls(**changes)

    def __post_init__(self) -> None:
        check_at_least("masks.decoder", self, alternatives=0, quality_width=1)
        check_sizes("masks.decoder", self)
        if self.width % 8:
            raise ValueError(
                f"masks.decoder.width is {self.width}, expected a multiple of 8 (the image grows four times and keeps "
                "an eighth of its channels). Change it."
            )


class MaskDecoder(nn.Module):
    """(image features, prompt tokens) -> (mask logits, predicted IoU)."""

    config: MaskDecoderConfig

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        image_code: jax.Array,
        prompt: jax.Array,
        prompt_mask: jax.Array | None = None,
        dense: jax.Array | None = None,
        *,
        several: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Masks of N prompts on each of B pictures, whose features are computed once.

        Args:
          image: Float[B, h, w, width], the features of SAM's image encoder; any grid.
          image_code: Float[h, w, width], the prompt encoder's code of the grid.
          prompt: Float[B, N, K, width], prompt tokens; K may be 0, where a mask alone is the prompt.
          prompt_mask: Bool[B, N, K], which prompt tokens exist; None for all.
          dense: Float, broadcastable to [B, N, h, w, width], what `PromptEncoder.dense` answers; None adds nothing.
          several: False: one mask a prompt, by the token that learned to answer alone. True: `alternatives` masks.

        Returns:
          Logits Float32[B, N, masks, 4h, 4w], inside where above 0, and predicted IoU Float32[B, N, masks].

        Raises:
          ValueError: image, code or prompt do not have `width` channels.
        """
        c = self.config
        for name, array in (("image", image), ("image_code", image_code), ("prompt", prompt)):
            if array.shape[-1] != c.width:
                raise ValueError(
                    f"width of {name} is {array.shape[-1]}, expected {c.width}, that of the mask decoder. "
                    "Set the widths of image encoder, prompt encoder and mask decoder to the same value."
                )
        b, h, w, _ = image.shape
        n, k = prompt.shape[1:3]
        masks = c.alternatives + 1
        quality_token = self.param("quality_token", nn.initializers.normal(1.0), (1, c.width))
        mask_tokens = self.param("mask_tokens", nn.initializers.normal(1.0), (masks, c.width))
        own = jnp.concatenate([quality_token, mask_tokens]).astype(c.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, n, *own.shape)), prompt.astype(c.dtype)], axis=2)
        token_mask = None
        if prompt_mask is not None:
            token_mask = jnp.pad(prompt_mask, [(0, 0), (0, 0), (1 + masks, 0)], constant_values=True)
            token_mask = token_mask.reshape(b * n, 1 + masks + k)

        x = image.astype(c.dtype)[:, None]
        if dense is not None:
            x = x + dense.astype(c.dtype)
        x = jnp.broadcast_to(x, (b, n, h, w, c.width)).reshape(b * n, h * w, c.width)
        code = jnp.broadcast_to(image_code.astype(c.dtype).reshape(1, h * w, c.width), x.shape)
        tokens, x = TwoWayTransformer(c.depth, c.num_heads, c.mlp_width, c.dtype, c.scan, c.remat, name="two_way")(
            tokens.reshape(b * n, 1 + masks + k, c.width), x, code, token_mask
        )
        tokens = tokens.reshape(b, n, 1 + masks + k, c.width)

        x = Upscale(c.width // 4, c.dtype, name="upscale_0")(x.reshape(b, n, h, w, c.width))
        x = nn.gelu(LayerNorm(1e-6, name="upscale_norm", dtype=c.dtype)(x), approximate=False)
        x = nn.gelu(Upscale(c.width // 8, c.dtype, name="upscale_1")(x), approximate=False)

        # One network per mask token, their parameters stacked.
        each_its_own = nn.vmap(Network, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=2, out_axes=2)
        vectors = each_its_own(c.width, c.width // 8, c.dtype, name="mask_vectors")(tokens[:, :, 1 : 1 + masks])
        iou = Network(c.quality_width, masks, c.dtype, name="quality")(tokens[:, :, 0])
        asked = slice(1, None) if several else slice(0, 1)
        logits = jnp.einsum("bnmd,bnyxd->bnmyx", vectors[:, :, asked], x, preferred_element_type=jnp.float32)
        return logits, iou[:, :, asked].astype(jnp.float32)


def best(logits: jax.Array, iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of several masks the one with the highest predicted IoU: [B, N, masks, h, w] and [B, N, masks] -> [B, N, h, w]
    and [B, N].
    """
    chosen = jnp.argmax(iou, axis=-1, keepdims=True)
    logits = jnp.take_along_axis(logits, chosen[..., None, None], axis=2)[:, :, 0]
    return logits, jnp.take_along_axis(iou, chosen, axis=2)[..., 0]


class Upscale(nn.Module):
    """A transposed convolution of kernel 2 and stride 2, each cell becomes four: [..., h, w, D] -> [..., 2h, 2w,
    features].
    """

    features: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Kernel and stride are the same, so cells do not overlap: one product, then the four are laid out.
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=2, out_axis=3, batch_axis=(0, 1)
        )
        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        *lead, h, w, _ = x.shape
        cells = jnp.einsum("...ijd,yxde->...iyjxe", x.astype(self.dtype), kernel) + bias
        return cells.reshape(*lead, 2 * h, 2 * w, self.features)


class Network(nn.Module):
    """Three linear layers with ReLU between: [..., D] -> [..., features]."""

    hidden_width: int
    features: int
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = nn.relu(nn.Dense(self.hidden_width, name=f"hidden_{i}", dtype=self.dtype)(x))
        return nn.Dense(self.features, name="output", dtype=self.dtype)(x)


def rules(config: MaskDecoderConfig) -> PartRules:
    """Rules of a MaskDecoder's parameters."""
    return PartRules(
        sharding=(
            (r"two_way/.*/(query|key|value|mlp_in)/kernel|\w+/hidden_\d/kernel", (..., "fsdp", "tensor")),
            (r"two_way/.*/(out|mlp_out)/kernel", (..., "tensor", "fsdp")),
            (r".*(bias|scale)|(quality|mask)_tokens?|upscale_\d/kernel|\w+/output/kernel", ()),
        ),
        weight_decay=((r".*(bias|scale)|(quality|mask)_tokens?", 0.0), (r".*kernel", 1.0)),
        trainable=((r".*", not config.frozen),),
    )
