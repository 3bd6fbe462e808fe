"""Losses of the detector: pure functions; each returns (weighted sum, count), to be divided once over the global batch.

Source: Zhou et al., arXiv 2103.07461, with the published PixelLLM's weights and denominators. All take weights
Float[B]: a picture of weight 0 teaches nothing, whatever stands there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pixel_align import detection_targets, geometry, pyramid
from pixel_align.batch import Described, DetectorOutputs
from pixel_align.detection_targets import RANGES, HeatTargets
from pixel_align.losses import Sums, Terms


def terms(
    found: DetectorOutputs,
    described: Described,
    levels: Sequence[pyramid.Level],
    valid_size: jax.Array,
    canvas: int,
    weights: jax.Array,
    *,
    ranges: Sequence[tuple[float, float]] = RANGES,
    heat_weight: float = 0.5,
    box_weight: float = 1.0,
    foreground_weight: float = 1.0,
    refinement_weight: float = 1.0,
) -> Terms:
    """All losses of the detector: name -> (weight of the loss, (sum, count)). Published weights are the defaults.

    Args:
      levels: of the maps that the locations are of (`pyramid.pyramid_levels`).
      valid_size: Int[B, 2], (height, width) in canvas pixels of the part that holds the picture.
      ranges: half diagonals in pixels of the levels' objects.
    """
    cells = pyramid.cells_of(levels)
    targets = jax.vmap(lambda b, m: detection_targets.heat_map(cells, b, m, canvas, ranges))(
        described.boxes, described.mask
    )
    seen = pyramid.visible(cells, valid_size, canvas)
    true_boxes = jnp.take_along_axis(described.boxes, found.matched[..., None], axis=1)
    deltas = detection_targets.encode_deltas(true_boxes, found.samples)
    return {
        "heat": (heat_weight, heat(found.heat, targets, seen, weights)),
        "proposal_boxes": (box_weight, boxes(found.boxes, targets, seen, weights)),
        "foreground": (foreground_weight, foreground(found.logits, found.foreground, found.drawn, weights)),
        "refinement": (refinement_weight, refinement(found.deltas, deltas, found.foreground, weights)),
    }


def heat(
    logits: jax.Array,
    targets: HeatTargets,
    visible: jax.Array,
    weights: jax.Array,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 4.0,
    clip: float = 1e-4,
) -> Sums:
    """CenterNet's focal loss of the heat map; the count is that of peaks, at least one a picture.

    Args:
      logits: Float[B, A]. targets: of all cells, with a leading axis B.
      visible: Bool[B, A], the cells that hold a part of the picture. The others count nowhere.
      alpha: weight of the peaks, the other cells have 1 - alpha. gamma: what a cell's error is raised to.
      beta: how much less the cells near a peak count. clip: nearest that a probability comes to 0 and 1.
    """
    found = jnp.clip(jax.nn.sigmoid(logits.astype(jnp.float32)), clip, 1 - clip)
    peak = targets.peak & visible
    of_peaks = -alpha * jnp.log(found) * (1 - found) ** gamma
    of_others = -(1 - alpha) * jnp.log(1 - found) * found**gamma * (1 - targets.heat) ** beta
    per_picture = jnp.sum(jnp.where(visible, jnp.where(peak, of_peaks, of_others), 0), axis=-1)
    return _weighted(per_picture, jnp.maximum(peak.sum(axis=-1), 1), weights)


def boxes(found: jax.Array, targets: HeatTargets, visible: jax.Array, weights: jax.Array) -> Sums:
    """1 - GIoU of the boxes of the cells that answer for one; the count is that of these, at least one a picture.

    Args:
      found: Float[B, A, 4]. targets, visible: as for `heat`.
    """
    asked = targets.has_box & visible
    # Double `where`: what stands elsewhere must not reach the gradient.
    whole = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    error = 1 - giou(*(jnp.where(asked[..., None], x, whole) for x in (found, targets.boxes)))
    per_picture = jnp.sum(jnp.where(asked, error, 0), axis=-1)
    return _weighted(per_picture, jnp.maximum(asked.sum(axis=-1), 1), weights)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630) of boxes [..., 4], in [-1, 1]; -0 / 0 is 0."""
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = jnp.prod(high - low, axis=-1)
    union = geometry.box_area(a) + geometry.box_area(b) - geometry.box_intersection(a, b)
    return geometry.box_iou(a, b) - jnp.where(hull > 0, (hull - union) / jnp.where(hull > 0, hull, 1), 0)


def foreground(logits: jax.Array, targets: jax.Array, drawn: jax.Array, weights: jax.Array) -> Sums:
    """Cross-entropy of "this sample is an object", in nats; the count is that of samples that were drawn.

    Args:
      logits: Float[B, K, 2], of no and of yes. targets: Bool[B, K]. drawn: Bool[B, K].
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    wrong = -jnp.where(targets, logp[..., 1], logp[..., 0])
    return _weighted(jnp.sum(jnp.where(drawn, wrong, 0), axis=-1), drawn.sum(axis=-1), weights)


def refinement(deltas: jax.Array, targets: jax.Array, asked: jax.Array, weights: jax.Array) -> Sums:
    """L1 of the four deltas of the foreground samples; the count is that of all K samples, as published.

    Args:
      deltas, targets: Float[B, K, 4]. asked: Bool[B, K], the foreground samples.
    """
    asked = asked[..., None]
    error = jnp.abs(jnp.where(asked, deltas, 0) - jnp.where(asked, targets, 0))
    return _weighted(error.sum(axis=(-2, -1)), jnp.full(len(deltas), deltas.shape[1]), weights)


def _weighted(per_picture: jax.Array, count: jax.Array, weights: jax.Array) -> Sums:
    return jnp.sum(jnp.where(weights > 0, per_picture, 0) * weights), jnp.sum(count * weights)
