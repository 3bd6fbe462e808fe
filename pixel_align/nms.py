"""Greedy non-maximum suppression with static shapes: what overlaps something better that is kept is dropped."""

import jax
import jax.numpy as jnp

from pixel_align import geometry


def nms(boxes: jax.Array, scores: jax.Array, iou: float) -> jax.Array:
    """Bool[K]: the boxes that are kept, from the best down: those that overlap no better kept one by more than `iou`.

    Exactly the greedy answer, by a fixpoint: start with all, and keep again and again what no kept better one
    suppresses. After t rounds all is decided that hangs on chains of t suppressions, so that a few rounds do, whatever
    K is. Of equal scores the first counts as the better. `jax.vmap` gives the batch.

    Args:
      boxes: Float[K, 4], xyxy in any frame. scores: Float[K], -inf for those that do not exist; they are never kept.
      iou: in [0, 1].
    """
    order = jnp.argsort(scores, descending=True, stable=True)
    kept = _sorted(boxes[order], scores[order] > -jnp.inf, iou)
    return jnp.zeros_like(kept).at[order].set(kept)


def select(
    boxes: jax.Array, scores: jax.Array, iou: float, keep: int, candidates: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best `keep` of what `nms` keeps, best first.

    Args:
      boxes, scores, iou: as for `nms`.
      candidates: how many of the best enter at all; None for all K.

    Returns:
      boxes Float[keep, 4], scores Float[keep] and valid Bool[keep]; boxes and scores are 0 where nothing is left.
    """
    scores, order = jax.lax.top_k(scores, min(candidates or len(scores), len(scores)))
    boxes = boxes[order]
    kept = _sorted(boxes, scores > -jnp.inf, iou)
    # They are sorted: the n-th that is kept goes to place n, the others out of bounds.
    place = jnp.where(kept, jnp.cumsum(kept) - 1, keep)
    valid = jnp.arange(keep) < jnp.sum(kept)

    def placed(x: jax.Array) -> jax.Array:
        return jnp.zeros((keep, *x.shape[1:]), x.dtype).at[place].set(x, mode="drop")

    return placed(boxes), placed(scores), valid


def _sorted(boxes: jax.Array, exists: jax.Array, iou: float) -> jax.Array:
    """`nms` of boxes that are sorted, best first."""
    better = jnp.triu(jnp.ones((len(boxes), len(boxes)), bool), k=1)
    suppresses = better & (geometry.box_iou(boxes[:, None], boxes[None]) > iou)

    def again(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = carry
        new = exists & ~jnp.any(suppresses & kept[:, None], axis=0)
        return new, jnp.any(new != kept)

    return jax.lax.while_loop(lambda carry: carry[1], again, (exists, jnp.any(exists)))[0]
