"""What the detector is taught: pure functions of one picture's true boxes, for `jax.vmap`.

Source: Zhou et al., Probabilistic two-stage detection (arXiv 2103.07461): a class-agnostic CenterNet proposes, one
R-CNN head refines. Boxes are xyxy in [0, 1] of the canvas; thresholds of size are in canvas pixels.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pixel_align import geometry
from pixel_align.pyramid import Cells

# Half diagonals in pixels of the objects of each level. They overlap: what lies between two belongs to both.
RANGES = ((0.0, 40.0), (32.0, 80.0), (64.0, 160.0), (128.0, 320.0), (256.0, 50_000.0))
_DELTA_SCALE = (10.0, 10.0, 5.0, 5.0)  # of x, y, log width, log height
_LARGEST_GROWTH = math.log(1000 / 16)  # of a side in one refinement, as in R-CNN
_SMALLEST_SIDE = 1e-6  # of the canvas; keeps what is said of empty boxes finite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeatTargets:
    """What the proposal head has to say at each of the A cells of all levels.

    Attributes:
      heat: Float32[A] in [0, 1], nearness to the middle of an object.
      peak: Bool[A], the cells that hold the middle of an object of their level; their heat is 1.
      boxes: Float32[A, 4], the box of the object that the cell answers for.
      has_box: Bool[A], whether it answers for one.
    """

    heat: jax.Array
    peak: jax.Array
    boxes: jax.Array
    has_box: jax.Array


def heat_map(
    cells: Cells,
    boxes: jax.Array,
    mask: jax.Array,
    canvas: int,
    ranges: Sequence[tuple[float, float]] = RANGES,
    overlap: float = 0.8,
    least_radius: float = 4.0,
) -> HeatTargets:
    """Targets of the proposal head.

    On every level an object warms the cells around its middle by exp(-distance^2 / radius^2), radius^2 being
    max(2 * area * ((1 - overlap) / (1 + overlap))^2, least_radius^2); where several do, the warmest counts. On the
    levels of its size the cell that holds its middle is a peak, and of the 3 x 3 cells around it those whose middle is
    inside the box answer for the box. A cell that could answer for several does for the one whose middle is nearest,
    in radii, a peak always for its own; of objects with the same peak, for the smallest.

    Args:
      boxes: Float[R, 4]. mask: Bool[R], which of them exist; those without area teach nothing.
      canvas: side of the canvas in pixels.
      ranges: of half diagonals in pixels, ends included, for each level.
    """
    areas = geometry.box_area(boxes)
    mask = mask & (areas > 0)
    order = jnp.argsort(jnp.where(mask, areas, jnp.inf))  # argmin answers with the first: the smallest
    boxes, areas, mask = boxes[order], areas[order] * canvas**2, mask[order]
    centers = geometry.box_centers(boxes)

    # Whole numbers decide what is a peak: no two roundings of the same middle meet. Objects of a level whose cells end
    # before the canvas does belong to its last ones.
    center_index = jnp.floor(centers / cells.size[:, None]).astype(jnp.int32)  # [A, R, 2]
    center_index = jnp.minimum(center_index, cells.last[:, None])
    away = jnp.abs(cells.index[:, None] - center_index).max(axis=-1)

    low, high = jnp.asarray(ranges).T[:, cells.level, None]
    half_diagonal = jnp.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=-1) * canvas / 2
    of_level = mask & (low <= half_diagonal) & (half_diagonal <= high)  # [A, R]
    is_peak = of_level & (away == 0)

    narrow = (1 - overlap) / (1 + overlap)
    radius2 = jnp.maximum(2 * narrow**2 * areas, least_radius**2)
    distance2 = jnp.square((cells.center[:, None] - centers) * canvas).sum(axis=-1)
    nearness = jnp.where(mask, distance2 / radius2, jnp.inf)
    peak = is_peak.any(axis=-1)
    heat = jnp.where(peak, 1.0, jnp.exp(-nearness.min(axis=-1)))

    inside = jnp.all((cells.center[:, None] > boxes[:, :2]) & (cells.center[:, None] < boxes[:, 2:]), axis=-1)
    answers = of_level & (away <= 1) & inside
    nearest = jnp.argmin(jnp.where(answers, jnp.where(is_peak, -1.0, nearness), jnp.inf), axis=-1)
    return HeatTargets(heat, peak, boxes[nearest], answers.any(axis=-1))


def match(
    proposals: jax.Array, valid: jax.Array, boxes: jax.Array, mask: jax.Array, iou: float
) -> tuple[jax.Array, jax.Array]:
    """The true box that each proposal overlaps most; of several alike, proposals take turns.

    Data sets describe the same box in several phrases, and the first must not be the only one that is ever learned.

    Args:
      proposals: Float[K, 4]. valid: Bool[K], which of them exist.
      boxes: Float[R, 4]. mask: Bool[R], which of them exist.
      iou: from which overlap on a proposal is foreground.

    Returns:
      Int32[K], an index into boxes, 0 where none exists, and Bool[K]: it is foreground.
    """
    overlaps = jnp.where(mask, geometry.box_iou(proposals[:, None], boxes[None]), -1.0)
    most = overlaps.max(axis=-1, keepdims=True)
    alike = overlaps == most
    # Turns are counted among those that stand for the same boxes; true boxes, which stand last, so get one turn each.
    same = jax.nn.one_hot(jnp.argmax(alike, axis=-1), len(boxes), dtype=jnp.int32)
    turn = jnp.sum(same * (jnp.cumsum(same, axis=0) - 1), axis=-1) % alike.sum(axis=-1)
    chosen = jnp.argmax(alike & (jnp.cumsum(alike, axis=-1) == turn[:, None] + 1), axis=-1)
    return jnp.where(mask.any(), chosen, 0), valid & (most[:, 0] >= iou)


def sample(
    foreground: jax.Array, valid: jax.Array, rng: jax.Array, samples: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """A draw of proposals to learn from: foreground up to its share, background for the rest.

    Proposals that were not drawn are not filled up with: what is foreground beyond its share never stands in as
    background where that runs short, as it does in published code.

    Args:
      foreground, valid: Bool[K].

    Returns:
      Int32[samples], indices into the K, foreground first, each at most once, in random order; and Bool[samples], which
      of them were drawn: the others are fillers.
    """
    count = len(valid)
    luck = jax.random.uniform(rng, (count,))
    share = min(int(samples * positive_fraction), count)
    lucky = jnp.full((count,), -1.0)
    if share:
        best, winners = jax.lax.top_k(jnp.where(foreground & valid, luck, -1.0), share)
        lucky = lucky.at[winners].set(jnp.where(best >= 0, 2 + best, -1.0))
    rank = jnp.where(valid & ~foreground, luck, lucky)
    rank, indices = jax.lax.top_k(rank, min(samples, count))
    missing = samples - len(indices)
    return jnp.pad(indices, (0, missing)), jnp.pad(rank >= 0, (0, missing))


def encode_deltas(boxes: jax.Array, proposals: jax.Array) -> jax.Array:
    """How proposals [..., 4] have to move to become boxes [..., 4]: R-CNN's four numbers, Float[..., 4].

    Differences of the middles in sides of the proposal, and logarithms of the ratios of the sides; times 10, 10, 5, 5.
    """
    side, true_side = (jnp.maximum(x[..., 2:] - x[..., :2], _SMALLEST_SIDE) for x in (proposals, boxes))
    moved = (geometry.box_centers(boxes) - geometry.box_centers(proposals)) / side
    return jnp.concatenate([moved, jnp.log(true_side / side)], axis=-1) * jnp.asarray(_DELTA_SCALE)


def decode_deltas(deltas: jax.Array, proposals: jax.Array) -> jax.Array:
    """The inverse of `encode_deltas`: deltas [..., 4] and proposals [..., 4] -> boxes [..., 4], unclipped."""
    deltas = deltas / jnp.asarray(_DELTA_SCALE)
    side = proposals[..., 2:] - proposals[..., :2]
    center = geometry.box_centers(proposals) + deltas[..., :2] * side
    half = side * jnp.exp(jnp.minimum(deltas[..., 2:], _LARGEST_GROWTH)) / 2
    return jnp.concatenate([center - half, center + half], axis=-1)
