"""Losses: pure functions of arrays; each returns (weighted sum, sum of weights), to be divided once over the global
batch.

So that examples, tasks, chunks and devices join without a mean of means.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from pixel_align.batch import RegionOutputs, RegionTargets

Sums = tuple[jax.Array, jax.Array]
Terms = Mapping[str, tuple[float, Sums]]  # name -> (weight of the loss, (sum, count))

# The logits of one chunk of the text loss stay under this, whatever the vocabulary.
_CHUNK_BYTES = 16 * 2**20


def join(batches: Sequence[Terms]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The terms of the batches of a step -> (loss, {name: mean}).

    Sums and counts are added over all batches, which hold the global batch, and divided once: a device, a batch or a
    task with few words does not count more.
    """
    weights = {name: weight for terms in batches for name, (weight, _) in terms.items()}
    means = {}
    for name in weights:
        sums = [terms[name][1] for terms in batches if name in terms]
        total, count = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
        means[name] = total / jnp.maximum(count, 1)
    loss = sum((weight * means[name] for name, weight in weights.items()), jnp.zeros(()))
    return loss, means


def text(features: jax.Array, kernel: jax.Array, labels: jax.Array, weights: jax.Array, smoothing: float = 0.0) -> Sums:
    """Cross-entropy with label smoothing, in nats, from features and the vocabulary layer's kernel.

    The logits are made chunk by chunk along N and T and made again in the backward pass: neither [B, N, T, V] nor a
    one-hot ever exists. B is not cut, as it is what devices share out. Smoothing spreads `smoothing` evenly over the
    V - 1 wrong labels, as GRiT and PixelLLM do.

    Args:
      features: Float[B, N, T, D]. kernel: Float[D, V].
      labels: Int[B, N, T], the piece that position t has to predict.
      weights: Float[B, N, T], 0 where there is nothing to predict.
      smoothing: in [0, 1).
    """
    b, n, t, _ = features.shape
    vocabulary = kernel.shape[1]
    chunk = max(1, min(n * t, _CHUNK_BYTES // (4 * b * vocabulary)))
    chunks = -(-n * t // chunk)
    padding = chunks * chunk - n * t

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(b, n * t, *x.shape[3:])
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk_loss(total: jax.Array, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, y, w = xs
        logits = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        right = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        wrong = (jnp.sum(logits, axis=-1) - right) / (vocabulary - 1)
        loss = log_z - (1 - smoothing) * right - smoothing * wrong
        return total + jnp.sum(loss * w), None

    total, _ = jax.lax.scan(chunk_loss, jnp.zeros((), jnp.float32), (split(features), split(labels), split(weights)))
    return total, jnp.sum(weights)


def point(points: jax.Array, targets: jax.Array, weights: jax.Array, canvas: int) -> Sums:
    """Mean absolute error over the coordinates of a token's points, in canvas pixels.

    Pixels, not fractions, so that the published loss weight of 0.1 keeps its meaning.

    Args:
      points, targets: Float[B, N, T, P, 2] in [0, 1] of the canvas.
      weights: Float[B, N, T], 0 for tokens without a place.
      canvas: side of the canvas in pixels.
    """
    # Double `where`: what stands at an unplaced token must not reach the gradient, whatever it is.
    placed = (weights > 0)[..., None, None]
    error = jnp.abs(jnp.where(placed, points, 0) - jnp.where(placed, targets, 0))
    return jnp.sum(error.mean(axis=(-2, -1)) * weights) * canvas, jnp.sum(weights)


def presence(logits: jax.Array, placed: jax.Array, weights: jax.Array) -> Sums:
    """Binary cross-entropy of "this token has a place", in nats.

    Args:
      logits: Float[B, N, T]. placed: Bool[B, N, T]. weights: Float[B, N, T].
    """
    return jnp.sum(binary_cross_entropy(logits, placed) * weights), jnp.sum(weights)


def regions(
    found: RegionOutputs,
    targets: RegionTargets,
    anchors: jax.Array,
    spacing: tuple[float, float],
    weights: jax.Array,
) -> Sums:
    """The dense first stage: each anchor answers for the object nearest to it.

    An anchor is positive if its nearest object comes within half the anchors' spacing (Chebyshev), so an object has one
    however small it is, unless another object lies over it. Per example: binary cross-entropy of objectness over all
    anchors, plus over the positive ones 5 * L1 of the box corners and the binary cross-entropy of the phrase's pieces,
    summed over V.

    Args:
      found: of K anchors.
      targets: R objects a picture; the pieces of a phrase are distinct.
      anchors: Float[K, 2]; spacing: (x, y) distance between neighbours, in [0, 1] of the canvas.
      weights: Float[B].
    """
    low, high = targets.boxes[:, None, :, :2], targets.boxes[:, None, :, 2:]
    at = anchors[None, :, None]
    outside = jnp.maximum(jnp.maximum(low - at, at - high), 0) / jnp.asarray(spacing)
    outside = outside.max(axis=-1)  # [B, K, R], in units of the spacing
    from_center = jnp.linalg.norm((low + high) / 2 - at, axis=-1)
    distance = jnp.where(targets.mask[:, None], outside + 1e-3 * from_center, jnp.inf)
    nearest = jnp.argmin(distance, axis=-1)  # [B, K]
    positive = jnp.take_along_axis(outside, nearest[..., None], axis=-1)[..., 0] <= 0.5
    positive &= targets.mask.any(axis=-1)[:, None]

    def of_nearest(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda rows, index: rows[index])(x, nearest)

    covered = binary_cross_entropy(found.objectness, positive)
    box_error = jnp.abs(found.boxes - of_nearest(targets.boxes)).sum(axis=-1)
    pieces = found.pieces.astype(jnp.float32)
    picked = jnp.take_along_axis(pieces, of_nearest(targets.tokens), axis=-1)
    said = jax.nn.softplus(pieces).sum(axis=-1) - jnp.where(of_nearest(targets.token_mask), picked, 0).sum(axis=-1)
    positives = jnp.maximum(positive.sum(axis=-1), 1)
    per_example = covered.mean(axis=-1) + jnp.where(positive, 5 * box_error + said, 0).sum(axis=-1) / positives
    return jnp.sum(per_example * weights), jnp.sum(weights)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross-entropy from logits, elementwise; labels Bool or Float in [0, 1]."""
    return jax.nn.softplus(logits) - logits * labels
