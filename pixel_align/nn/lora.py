"""Linear layers with an optional low-rank adapter beside the base weight (LoRA, Hu et al. 2021).

The base keeps its name and path (`query/kernel`), the adapter lies under it (`query/lora/a`, `query/lora/b`): foreign
weights load as if there were no adapter, and one rule, `.*/lora/.*`, names everything that an adapter owns.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jax.typing import DTypeLike

TARGETS = ("query", "key", "value", "out", "wi", "wo")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which linear layers of a transformer carry an adapter, and of what size."""

    rank: int = 0  # inner width of the adapter; 0 = no adapter (PixelLLM: 32)
    scale: float = 2.0  # factor on the adapter's output (PixelLLM: 2.0)
    targets: tuple[str, ...] = ("query", "value")  # any of query, key, value, out (attention), wi, wo (MLP)
    frozen: bool = False  # the adapters stand still, too, as in the stage that learns masks alone

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown:
            raise ValueError(f"lora.targets has {unknown}, expected names among {list(TARGETS)}. Remove the others.")
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}, expected 0 (no adapter) or more. Set it to 0 to switch off.")

    def rank_of(self, target: str) -> int:
        """The adapter's rank on one kind of layer, 0 where it has none."""
        return self.rank if target in self.targets else 0


class LoRA(nn.Module):
    """x -> scale * (x @ a) @ b, as two small products: the delta of the weight is never formed."""

    features: int  # width of the output
    rank: int  # width in between
    scale: float  # factor on the output
    kernel_init: Initializer  # of a; b starts at zero, so that the adapted layer starts as the layer without
    dtype: DTypeLike  # of the computation; the parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., in]. Returns [..., features]."""
        a = self.param("a", self.kernel_init, (x.shape[-1], self.rank), jnp.float32)
        b = self.param("b", zeros, (self.rank, self.features), jnp.float32)
        x = x.astype(self.dtype)
        return ((x @ a.astype(self.dtype)) @ b.astype(self.dtype)) * self.scale


class LoRADense(nn.Module):
    """A linear layer, y = x @ kernel (+ bias), with a LoRA adapter added to it where rank > 0."""

    features: int  # width of the output
    use_bias: bool = True  # whether to add a bias
    rank: int = 0  # rank of the adapter, 0 = none
    scale: float = 2.0  # factor on the adapter's output
    kernel_init: Initializer = variance_scaling(1.0, "fan_in", "truncated_normal")  # of the kernel and of lora/a
    bias_init: Initializer = zeros  # of the bias
    dtype: DTypeLike = jnp.float32  # of the computation; the parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., in]. Returns [..., features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        if self.rank:
            y = y + LoRA(self.features, self.rank, self.scale, self.kernel_init, self.dtype, name="lora")(x)
        return y
