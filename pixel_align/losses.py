"""Losses: pure functions of arrays; each returns (weighted sum, sum of weights), to be divided once over the global
batch.

So that examples, the tasks of a batch, chunks and devices join without a mean of means; batches of several tasks are
weighed by the experiment (`join`).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from pixel_align.batch import RegionOutputs, RegionTargets

Sums = tuple[jax.Array, jax.Array]
Terms = Mapping[str, tuple[float, Sums]]  # name -> (weight of the loss, (sum, count))

# The logits of one chunk of the text loss stay under this, whatever the vocabulary.
_CHUNK_BYTES = 16 * 2**20


def join(batches: Sequence[Terms], weights: Sequence[float] | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The terms of the batches of a step -> (loss, {name: mean over all batches}).

    Sums and counts of a batch, which holds the global batch, are divided once: a device with few words does not count
    more. The loss is the weighted mean of the batches' losses: what steps of one batch each come to on average where
    tasks are drawn by these weights, as published. A task with long texts does not count more.

    Args:
      weights: how much each batch counts beside the others, 1 for each by default.
    """
    weights = [1.0] * len(batches) if weights is None else weights
    loss, sums = jnp.zeros(()), dict[str, list[Sums]]()
    for terms, share in zip(batches, weights, strict=True):
        for name, (weight, (total, count)) in terms.items():
            loss += share / sum(weights) * weight * _mean(total, count)
            sums.setdefault(name, []).append((total, count))
    return loss, {name: _mean(*jax.tree.map(lambda *parts: sum(parts), *of_all)) for name, of_all in sums.items()}


def _mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """A count of nothing comes with a sum of nothing."""
    return total / jnp.where(count > 0, count, 1)


def text(
    features: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    smoothing: float = 0.0,
    bias: jax.Array | None = None,
    parts: int = 1,
) -> Sums:
    """Cross-entropy with label smoothing, in nats, from features and the vocabulary layer's kernel and bias.

    The logits are made chunk by chunk along N and T and made again in the backward pass: neither [B, N, T, V] nor a
    one-hot ever exists. B is not cut, as it is what devices share out: twice B * V * 4 bytes of a device's B is the
    least that is needed. Each chunk reads the whole kernel: where devices hold parts of it, gather it before.
    Smoothing spreads `smoothing` evenly over the V - 1 wrong labels, as GRiT and PixelLLM do.

    Args:
      features: Float[B, N, T, D]. kernel: Float[D, V].
      labels: Int[B, N, T], the piece that position t has to predict.
      weights: Float[B, N, T], 0 where there is nothing to predict.
      smoothing: in [0, 1).
      bias: Float32[V], None for none.
      parts: into how many B is split over devices: a chunk is as large as one of them can hold.
    """
    b, n, t, _ = features.shape
    vocabulary = kernel.shape[1]
    chunk = max(1, min(n * t, _CHUNK_BYTES * parts // (4 * b * vocabulary)))
    chunks = -(-n * t // chunk)
    padding = chunks * chunk - n * t

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(b, n * t, *x.shape[3:])
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk_loss(total: jax.Array, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, y, w = xs
        # The features take the kernel's dtype: the other way round a second kernel would be made.
        logits = jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
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


def alignment(
    logits: jax.Array, points: jax.Array, anchors: jax.Array, spacing: tuple[float, float], weights: jax.Array
) -> Sums:
    """Negative log-probability, in nats, that a word's choice among the queries falls on one that lies over its place.

    Which of those holds the object is left open, as in multiple-instance learning (MIL-NCE, arXiv 1912.06430): their
    probabilities add up. A query lies over a place if its anchor comes within half the anchors' spacing (Chebyshev) of
    the box of its points, as in `regions`, so each place has one.

    Args:
      logits: Float[B, N, T, Q]. points: Float[B, N, T, P, 2] in [0, 1] of the canvas.
      anchors: Float[Q, 2]; spacing: (x, y) distance between neighbours, in [0, 1] of the canvas.
      weights: Float[B, N, T], 0 for tokens without a place.
    """
    low, high = points.min(axis=-2)[..., None, :], points.max(axis=-2)[..., None, :]
    outside = jnp.maximum(jnp.maximum(low - anchors, anchors - high), 0) / jnp.asarray(spacing)
    # A place on the padding of the canvas, or on its edge, has the nearest anchors.
    outside = outside.max(axis=-1)
    over = outside <= jnp.maximum(0.5, outside.min(axis=-1, keepdims=True))
    missed = jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1, where=over)
    return jnp.sum(missed * weights), jnp.sum(weights)


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


def mask(
    logits: jax.Array,
    iou: jax.Array,
    targets: jax.Array,
    valid_size: jax.Array,
    canvas: int,
    weights: jax.Array,
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> Sums:
    """Segment Anything's loss of masks: focal and dice of the best of the predicted masks, and the error of each one's
    predicted IoU, squared.

    Logits of a smaller grid than the targets' are interpolated to it, linearly, as they are for the final mask. So the
    targets choose: on the canvas, as published, it sees edges inside a cell, and small things are taught; on the
    decoder's own grid it is cheaper, and no mask is taught better than to a cell. Cells whose centre lies on the
    padding of the canvas count nowhere (published code has them in dice). The arrays of one region of each picture
    exist at a time, and are made again in the backward pass.

    Args:
      logits: Float[B, N, K, h, w], K masks of each region. iou: Float[B, N, K], predicted.
      targets: Bool[B, N, H, W], H and W at least h and w.
      valid_size: Int[B, 2], (height, width) in canvas pixels of the part that holds the picture.
      canvas: side of the canvas in pixels.
      weights: Float[B, N], 0 for regions without a mask: what stands there is never read.
      focal_weight, dice_weight, iou_weight: published values are the defaults.

    Raises:
      ValueError: the targets are not Bool, or smaller than the logits.
    """
    height, width = targets.shape[2:]
    if targets.dtype != jnp.bool_ or height < logits.shape[3] or width < logits.shape[4]:
        raise ValueError(
            f"targets of the mask loss are {targets.dtype}{list(targets.shape)}, expected bool and at least the grid "
            f"of the logits, {logits.shape[3]} x {logits.shape[4]}. Make them on a finer grid."
        )
    rows = (jnp.arange(height) + 0.5) / height * canvas < valid_size[:, :1]
    columns = (jnp.arange(width) + 0.5) / width * canvas < valid_size[:, 1:]
    visible = (rows[:, :, None] & columns[:, None])[:, None]

    @jax.checkpoint
    def add_region(total: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, predicted, target, weight = xs
        asked = weight[:, None] > 0
        x = jnp.where(asked[..., None, None], x, 0).astype(jnp.float32)
        predicted = jnp.where(asked, predicted, 0).astype(jnp.float32)
        x = jax.image.resize(x, (*x.shape[:2], height, width), "linear")
        shapes = focal_weight * focal(x, target[:, None], visible) + dice_weight * dice(x, target[:, None], visible)
        both = jnp.sum((x > 0) & target[:, None] & visible, axis=(-2, -1))
        either = jnp.sum(((x > 0) | target[:, None]) & visible, axis=(-2, -1))
        quality = jnp.square(predicted - both / jnp.maximum(either, 1)).mean(axis=-1)
        return total + (shapes.min(axis=-1) + iou_weight * quality) * weight, None

    by_region = tuple(jnp.moveaxis(x, 1, 0) for x in (logits, iou, targets, weights))
    # One sum per example: devices that hold different ones meet once, after the loop.
    total, _ = jax.lax.scan(add_region, jnp.zeros(logits.shape[:1], jnp.float32), by_region)
    return jnp.sum(total), jnp.sum(weights)


def focal(
    logits: jax.Array, targets: jax.Array, visible: jax.Array, alpha: float = 0.5, gamma: float = 2.0
) -> jax.Array:
    """Focal loss (Lin et al., arXiv 1708.02002), the mean over the visible cells: Float[..., H, W] -> [...].

    alpha weighs the cells inside, 1 - alpha those outside; gamma is what an easy cell's ease is raised to. Float logits
    and Bool targets and visible broadcast against each other.
    """
    wrong = jnp.where(targets, -logits, logits)  # the logit of the wrong answer: nothing here can overflow
    cells = jnp.where(targets, alpha, 1 - alpha) * jax.nn.sigmoid(wrong) ** gamma * jax.nn.softplus(wrong)
    count = jnp.sum(jnp.broadcast_to(visible, cells.shape), axis=(-2, -1))
    return jnp.sum(jnp.where(visible, cells, 0), axis=(-2, -1)) / jnp.maximum(count, 1)


def dice(logits: jax.Array, targets: jax.Array, visible: jax.Array, epsilon: float = 1.0) -> jax.Array:
    """1 - (2 * overlap + epsilon) / (predicted + true area + epsilon) of the visible cells: Float[..., H, W] -> [...].

    Areas are sums of probabilities, in cells. Source: Milletari et al., V-Net (arXiv 1606.04797), without squares.
    """
    inside = jnp.where(visible, jax.nn.sigmoid(logits), 0)
    targets = targets & visible
    overlap = jnp.sum(jnp.where(targets, inside, 0), axis=(-2, -1))
    areas = jnp.sum(inside, axis=(-2, -1)) + jnp.sum(targets, axis=(-2, -1))
    return 1 - (2 * overlap + epsilon) / (areas + epsilon)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross-entropy from logits, elementwise; labels Bool or Float in [0, 1]."""
    return jax.nn.softplus(logits) - logits * labels
