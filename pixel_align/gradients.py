"""The loss of a step and its gradient, from the sums and counts of its batches: at once, or in parts.

The parts of a batch follow each other, so that the activations of one part are all that is held. Sums and counts of all
parts are added before any division: the loss and its gradient are those of the whole batch, not a mean of means.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pixel_align import losses
from pixel_align.nn.partitioning import constrain

TermsOf = Callable[[Any, Any, jax.Array], losses.Terms]  # (trained parameters, batch, key) -> the terms of its loss
Found = tuple[tuple[jax.Array, dict[str, jax.Array]], Any]  # (loss, means by name), gradient


def at_once(
    terms_of: Sequence[TermsOf], weights: Sequence[float], trainable: Any, batches: Sequence[Any], key: jax.Array
) -> Found:
    """The loss of a step's batches, as `losses.join` weights them, its means and its gradient.

    Args:
      terms_of: for each batch. weights: of each batch.
    """

    def loss(trainable: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        groups = enumerate(zip(terms_of, batches, strict=True))
        return losses.join(
            [terms(trainable, batch, jax.random.fold_in(key, i)) for i, (terms, batch) in groups], weights
        )

    return jax.value_and_grad(loss, has_aux=True)(trainable)


def in_parts(
    terms_of: Sequence[TermsOf],
    weights: Sequence[float],
    trainable: Any,
    batches: Sequence[Any],
    key: jax.Array,
    parts: int,
) -> Found:
    """The same, each batch in so many parts. What is drawn at random in a part is drawn for it alone.

    Raises:
      ValueError: a batch that the parts do not divide.
    """
    gradient, whole = jax.tree.map(jnp.zeros_like, trainable), []
    for index, (terms, weight, batch) in enumerate(zip(terms_of, weights, batches, strict=True)):
        share = weight / sum(weights)
        sums, gradient = _add(gradient, terms, share, trainable, batch, jax.random.fold_in(key, index), parts)
        whole.append(sums)
    return losses.join(whole, weights), gradient


def _add(
    gradient: Any, terms_of: TermsOf, share: float, trainable: Any, batch: Any, key: jax.Array, parts: int
) -> tuple[losses.Terms, Any]:
    """The terms of a whole batch, and `gradient` with that of its share of the loss added.

    The loss divides by the counts of the whole batch, so a pass without gradient counts first. Nearly all counts are
    sums of what the batch says, and the compiler leaves the model out of that pass. What the detector is asked about
    depends on what it finds: its batches go through the image encoder and the detector once more.
    """
    numbered = jnp.arange(parts), split(batch, parts)

    def terms_of_part(trainable: Any, part: Any) -> losses.Terms:
        number, rows = part
        return terms_of(trainable, rows, jax.random.fold_in(key, number))

    def count(nothing: None, part: Any) -> tuple[None, dict[str, jax.Array]]:
        return nothing, {name: counted for name, (_, (_, counted)) in terms_of_part(trainable, part).items()}

    counts = jax.tree.map(lambda of_parts: of_parts.sum(axis=0), jax.lax.scan(count, None, numbered)[1])

    def add_part(gradient: Any, part: Any) -> tuple[Any, Any]:
        def loss(trainable: Any) -> tuple[jax.Array, losses.Terms]:
            found = terms_of_part(trainable, part)
            terms = {name: (weight, (total, counts[name])) for name, (weight, (total, _)) in found.items()}
            return share * losses.join([terms])[0], terms

        of_part, terms = jax.grad(loss, has_aux=True)(trainable)
        return jax.tree.map(jnp.add, gradient, of_part), terms

    gradient, terms = jax.lax.scan(add_part, gradient, numbered)
    return {name: (weight[0], (total.sum(), counts[name])) for name, (weight, (total, _)) in terms.items()}, gradient


def split(batch: Any, parts: int) -> Any:
    """A batch [B, ...] as parts [parts, B / parts, ...], on a mesh without moving an example to another device.

    Part p holds the rows p, p + parts, ...: each device's own rows are dealt out.

    Raises:
      ValueError: the parts do not divide B.
    """

    def deal(x: jax.Array) -> jax.Array:
        if len(x) % parts:
            raise ValueError(
                f"a batch has {len(x)} examples, expected a multiple of {parts}, the parts of a step. "
                "Change data.batch_size or train.accumulate."
            )
        x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
        return constrain(x, (None, "batch", *[None] * (x.ndim - 2)))

    return jax.tree.map(deal, batch)
