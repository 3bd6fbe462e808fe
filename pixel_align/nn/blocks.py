"""Small parts that every transformer here is made of: norms, MLP, drop-path."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, ones, variance_scaling, zeros
from jax.typing import DTypeLike

from pixel_align.nn.lora import LoRADense

ComputeDtype = Literal["float32", "bfloat16"]  # of a part's computation, among its settings

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # by the error function: SAM, BERT
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # by tanh: T5 1.1
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function of that name. Raises ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, expected one of {sorted(ACTIVATIONS)}. Choose one of them.")
    return ACTIVATIONS[name]


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis; statistics in float32, variance around the mean."""

    epsilon: float  # no default: releases differ (SAM 1e-6, torch 1e-5, BERT 1e-12)
    use_bias: bool = True  # whether to add a bias
    dtype: DTypeLike = jnp.float32  # of the result; the parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D]. Returns the same shape in `dtype`."""
        # Not flax's own layer: its default variance, E[x^2] - E[x]^2, cancels where the mean is large.
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        y = y * self.param("scale", ones, (x.shape[-1],), jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", zeros, (x.shape[-1],), jnp.float32)
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """T5's normalisation over the last axis: no mean, no bias; statistics in float32."""

    epsilon: float = 1e-6  # added to the mean square
    dtype: DTypeLike = jnp.float32  # of the result; the parameter is float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D]. Returns the same shape in `dtype`."""
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        y = y.astype(self.dtype)  # T5X multiplies by the scale after the cast
        return y * self.param("scale", ones, (x.shape[-1],), jnp.float32).astype(self.dtype)


class MLP(nn.Module):
    """Two linear layers with an activation between: `wi` and `wo`, or gated `wi_0` (activated) * `wi_1`, then `wo`."""

    hidden: int  # width in between
    activation: str  # one of ACTIVATIONS
    features: int | None = None  # width of the output, None = that of the input
    gated: bool = False  # GEGLU, SwiGLU: two inner layers, the activated one multiplies the other
    use_bias: bool = True  # biases of all layers
    dropout_rate: float = 0.0  # on the hidden activations, one mask for all positions (T5)
    lora_wi: int = 0  # rank of an adapter on the inner layers, 0 = none
    lora_wo: int = 0  # rank of an adapter on the output layer, 0 = none
    lora_scale: float = 2.0  # factor on the adapters' outputs
    kernel_init: Initializer = variance_scaling(1.0, "fan_in", "truncated_normal")  # of all kernels
    dtype: DTypeLike = jnp.float32  # of the computation; the parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x: [..., T, D]; train: whether dropout runs. Returns [..., T, features]."""
        dense = functools.partial(
            LoRADense, use_bias=self.use_bias, scale=self.lora_scale, kernel_init=self.kernel_init, dtype=self.dtype
        )
        features = x.shape[-1] if self.features is None else self.features
        activate = activation(self.activation)
        if self.gated:
            gate = activate(dense(self.hidden, rank=self.lora_wi, name="wi_0")(x))
            hidden = gate * dense(self.hidden, rank=self.lora_wi, name="wi_1")(x)
        else:
            hidden = activate(dense(self.hidden, rank=self.lora_wi, name="wi")(x))
        hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=not train)
        return dense(features, rank=self.lora_wo, name="wo")(hidden)


class DropPath(nn.Module):
    """Stochastic depth: in training an example's branch is dropped, the others are scaled up (Huang et al. 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        """x: [B, ...]; rate: chance in [0, 1) to drop, a number or a scalar array (one of a stack's layers)."""
        if not train or (not isinstance(rate, jax.Array) and rate == 0.0):
            return x
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))
