"""Attention: the one function through which every query meets every key."""

import jax
import jax.numpy as jnp


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """Multi-head attention. Logits and softmax are float32; a query that may attend to nothing gets zeros, never NaN.

    query: [B, T, H, D]; key: [B, S, H, D]; value: [B, S, H, D or another width]. All of one dtype.
    bias: float, broadcastable to [B, H, T, S], added to the scaled logits. mask: bool, broadcastable to [B, H, T, S],
    True where the query may attend. scale: factor on the logits, None = 1 / sqrt(D) (T5 passes 1.0).
    dropout_rate: share of attention weights to drop, one mask for all queries as in Mesh TensorFlow's T5; runs only
    where dropout_rng is given.
    Returns [B, T, H, value width] in the dtype of value.
    Raises ValueError for inputs that are not four-dimensional or a mask that is not boolean.
    """
    for name, array in (("query", query), ("key", key), ("value", value), ("bias", bias), ("mask", mask)):
        if array is not None and array.ndim != 4:
            raise ValueError(
                f"The {name} of attention has shape {array.shape}, expected four axes. Add the missing axes."
            )
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(
            f"The mask of attention is {mask.dtype}, expected bool (True = may attend). Pass an additive mask as bias."
        )
    drop = dropout_rng is not None and dropout_rate > 0.0
    if drop or query.shape[-1] != value.shape[-1]:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        rng = dropout_rng if drop else None
        output = _einsum_attention(query, key, value, bias, mask, scale, dropout_rate, rng)
    else:
        output = jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale)
    if mask is not None:
        # Masked logits are finite, so softmax spreads evenly over a row without any key: say zero instead.
        attends = jnp.swapaxes(mask.any(axis=-1), 1, 2)[..., None]
        output = jnp.where(attends, output, jnp.zeros_like(output))
    return output


def _einsum_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    scale: float,
    dropout_rate: float,
    dropout_rng: jax.Array | None,
) -> jax.Array:
    """The same sum written out, for what jax.nn.dot_product_attention lacks: dropout, values of another width."""
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout_rng is not None:
        batch, heads, _, keys = weights.shape
        keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, (batch, heads, 1, keys))
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("bhts,bshd->bthd", weights.astype(value.dtype), value)
