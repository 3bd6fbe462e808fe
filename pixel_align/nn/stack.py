"""Identical layers one after the other: as one scanned block, or written out.

A scanned stack compiles one layer, whatever their number, and holds its parameters with a leading layer axis under
`layers`; written out they are `layers_0`, `layers_1`, ... as in T5X. Both compute the same, and `stack_params` and
`unstack_params` go between the two layouts.

A block is a Linen module whose methods have one form,

    method(x, layer, shared, train) -> (x, out)

x: what flows from layer to layer; layer: what differs by layer (its cache, its drop-path rate), a pytree whose leaves
have a leading layer axis outside; shared: arrays that all layers read (masks, biases), or None; train: a Python bool;
out: what each layer gives back, stacked along a leading layer axis, or None. Random bits come from "dropout".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# What a backward pass computes again: nothing; all but products with weights; all but what flows between layers.
Remat = Literal["none", "dots", "full"]

_REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "full": None,  # keep only what flows between layers, compute the rest again in the backward pass
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # also keep what weights were multiplied with
}
_TRAIN_ARGUMENT = 4  # position of `train` in a block's method, self included


def stack(
    block: type[nn.Module],
    length: int,
    *,
    scan: bool = True,
    remat: str = "none",
    methods: Sequence[str] = ("__call__",),
    **fields: Any,
) -> nn.Module | list[nn.Module]:
    """Layers to be assigned in a module's setup, `self.layers = stack(...)`, and run by `run_stack`.

    block: the class of a layer, see the file's docstring; fields: its fields, the same for all layers. length: number
    of layers. scan: one compiled block with stacked parameters, else a list of blocks. remat: what is computed again in
    the backward pass: "none", "full" or "dots" (all but products with weights). methods: the block's methods that
    `run_stack` may call; only `__call__` is rematerialised, the others are for inference.
    Raises ValueError for an unknown remat.
    """
    block = _rematerialised(block, remat, scan)
    if not scan:
        return [block(**fields) for _ in range(length)]
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=length,
        methods=list(methods),
    )
    return scanned(**fields)


def run_stack(
    layers: nn.Module | Sequence[nn.Module],
    x: Any,
    layer: Any = None,
    shared: Any = None,
    train: bool = False,
    *,
    method: str = "__call__",
) -> tuple[Any, Any]:
    """Runs what `stack` made. layer: pytree with leading layer axes. Returns (x, out stacked along the layer axis)."""
    if isinstance(layers, nn.Module):
        return getattr(layers, method)(x, layer, shared, train)
    outs = []
    for index, block in enumerate(layers):
        x, out = getattr(block, method)(x, jax.tree.map(lambda leaf, index=index: leaf[index], layer), shared, train)
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def _rematerialised(block: type[nn.Module], remat: str, scan: bool) -> type[nn.Module]:
    if remat == "none":
        return block
    if remat not in _REMAT_POLICIES:
        raise ValueError(f"remat is {remat!r}, expected one of {['none', *_REMAT_POLICIES]}. Choose one of them.")
    # Inside a scan nothing can merge the two computations of a layer, so the barrier against it is not needed.
    policy = _REMAT_POLICIES[remat]
    return nn.remat(block, policy=policy, prevent_cse=not scan, static_argnums=(_TRAIN_ARGUMENT,))


def stack_params(params: Mapping[str, Any], name: str = "layers") -> dict[str, Any]:
    """Parameters of written-out stacks (`layers_0`, ...) -> of scanned ones (`layers`, leading axis), at any depth.

    params: nested dict of arrays, NumPy or JAX. Raises ValueError where the layers of a stack are not 0..L-1.
    """
    numbered = {key: int(match[1]) for key in params if (match := re.fullmatch(rf"{re.escape(name)}_(\d+)", key))}
    result = {key: _descend(value, name, stack_params) for key, value in params.items() if key not in numbered}
    if numbered:
        ordered = sorted(numbered, key=numbered.__getitem__)
        if sorted(numbered.values()) != list(range(len(ordered))):
            raise ValueError(
                f"The layers of a stack are {ordered}, expected {name}_0 to {name}_{len(ordered) - 1}. "
                "Add the missing layers."
            )
        result[name] = jax.tree.map(_join, *(_descend(params[key], name, stack_params) for key in ordered))
    return result


def unstack_params(params: Mapping[str, Any], name: str = "layers") -> dict[str, Any]:
    """The inverse of `stack_params`: `layers` with a leading axis -> `layers_0`, `layers_1`, ..., at any depth."""
    result: dict[str, Any] = {}
    for key, value in params.items():
        if key != name:
            result[key] = _descend(value, name, unstack_params)
            continue
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(value)}
        if len(lengths) != 1:
            raise ValueError(
                f"The leading axes of a stack's parameters are {sorted(lengths)}, expected one length. "
                "Check that all of them are stacked."
            )
        for index in range(lengths.pop()):
            layer = jax.tree.map(lambda leaf, index=index: leaf[index], value)
            result[f"{name}_{index}"] = _descend(layer, name, unstack_params)  # an inner stack's axis is now the first
    return result


def _descend(value: Any, name: str, change: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> Any:
    return change(value, name) if isinstance(value, Mapping) else value


def _join(*leaves: Any) -> Any:
    # Weights read from a file stay on the host.
    return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)
