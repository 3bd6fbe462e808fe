"""The products of a program as it was traced: for all chips together, every scan times its length, before any compiler.

Between the formula (`model_flops`), which knows no rematerialisation, and what is compiled (`counter`), which knows the
mesh: the first step shows what is computed again or wasted in the program, the second what its partition costs.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval

from pixel_align.plan.counter import met_pairs


def flops(jaxpr: Any) -> int:
    """Floating-point operations of the products of a jaxpr that its results hang on, two for each product and sum.

    Of a `while` loop, whose trips are not known, the body counts once; of a `cond` the dearest branch.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops(needed)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        if kind == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif kind == "conv_general_dilated":
            total += _convolution(equation)
        else:
            inner = [_flops(part) for part in _inside(equation.params)]
            once = (max(inner) if kind == "cond" else sum(inner)) if inner else 0
            total += once * (equation.params["length"] if kind == "scan" else 1)
    return total


def _convolution(equation: Any) -> int:
    at, settings = equation.params["dimension_numbers"], equation.params
    left, right, out = (x.aval.shape for x in (*equation.invars, *equation.outvars))
    pairs = 1
    for axis, (i, k, o) in enumerate(zip(at.lhs_spec[2:], at.rhs_spec[2:], at.out_spec[2:], strict=True)):
        pairs *= met_pairs(
            left[i],
            right[k],
            out[o],
            settings["window_strides"][axis],
            settings["padding"][axis][0],
            settings["lhs_dilation"][axis],
            settings["rhs_dilation"][axis],
        )
    features = left[at.lhs_spec[1]] // settings["feature_group_count"]
    return 2 * features * left[at.lhs_spec[0]] // settings["batch_group_count"] * out[at.out_spec[1]] * pairs


def _inside(params: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "eqns"):
                yield one
            elif hasattr(one, "jaxpr"):
                yield one.jaxpr
