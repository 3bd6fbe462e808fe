"""The counter: loops times their trips, traffic by hand, convolutions as XLA counts them."""

import gzip
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pixel_align.plan import counter, traced
from tests.goldens.plan import EXAMPLES, HIDDEN, LAYERS, WIDTH

GOLDENS = Path(__file__).parents[1] / "goldens"
CHIPS = 4


def golden(name: str) -> counter.Counts:
    with gzip.open(GOLDENS / f"plan_{name}.txt.gz", "rt") as file:
        return counter.count(file.read())


def test_a_scanned_stack_counts_as_one_that_is_written_out() -> None:
    scanned, unrolled = golden("scanned"), golden("unrolled")
    # Two products forwards, two for each backwards, on a quarter of the examples.
    expected = LAYERS * 6 * 2 * (EXAMPLES // CHIPS) * WIDTH * HIDDEN
    assert sum(scanned.flops.values()) == expected
    assert sum(unrolled.flops.values()) == pytest.approx(expected, rel=0.02)
    assert not scanned.assumed and not unrolled.assumed
    # Gradients are added up once: 2 n - 1 of n parts of all parameters, whatever the loop.
    kinds = ("all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    both = [sum(counts.collective_bytes[kind] for kind in kinds) for counts in (scanned, unrolled)]
    assert both[0] == pytest.approx(both[1], rel=0.2)


def test_what_is_gathered_is_the_parameters() -> None:
    gathered = golden("scanned").collective_bytes["all-gather"]
    # Three quarters of each bfloat16 kernel reach a chip forwards, and again backwards.
    once = 2 * LAYERS * 2 * WIDTH * HIDDEN * (CHIPS - 1) // CHIPS
    assert once <= gathered <= 2.5 * once


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions_count_what_falls_on_the_input(stride: int) -> None:
    for size, kernel, low, high, dilate, spread in itertools.product((1, 5, 8), (1, 3), (0, 2), (0, 1), (1, 2), (1, 2)):
        width = (size - 1) * dilate + 1
        out = (low + width + high - (kernel - 1) * spread - 1) // stride + 1
        if out < 1:
            continue
        slow = sum(
            0 <= (at := o * stride + k * spread - low) < width and at % dilate == 0
            for o in range(out)
            for k in range(kernel)
        )
        assert counter.met_pairs(size, kernel, out, stride, low, dilate, spread) == slow


def test_the_text_of_any_backend_is_read() -> None:
    kernels = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)

    def apply(kernels: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(x, jnp.ones((3, 3, 4, 8)), (2, 2), "SAME", dimension_numbers=_NHWC)
        x = x.reshape(-1, 16)
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    traced_step = jax.jit(apply).trace(kernels, jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32))
    expected = 2 * 2 * 11**2 * 4 * 8 + 5 * 2 * 16 * 16 * 16
    assert traced.flops(traced_step.jaxpr.jaxpr) == expected
    text = traced_step.lower().compile().as_text()
    assert sum(counter.count(text).flops.values()) == expected


_NHWC = ("NHWC", "HWIO", "NHWC")


def test_a_loop_that_may_end_earlier_counts_in_full_and_says_so() -> None:
    def write(x: jax.Array) -> jax.Array:
        def more(state: tuple[jax.Array, jax.Array]) -> jax.Array:
            return (state[0] <= 6) & (state[1].sum() > 0)

        return jax.lax.while_loop(more, lambda s: (s[0] + 1, s[1] @ s[1]), (jnp.zeros((), jnp.int32), x))[1]

    text = jax.jit(write).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
    counts = counter.count(text)
    assert list(counts.assumed.values()) == [7]
    assert sum(counts.flops.values()) == 7 * 2 * 8**3


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
        ("replica_groups=[4,2]<=[8], dimensions={0}", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=1] {'b'}, dimensions={3}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", 4),
        ("replica_groups={}, to_apply=%add", 16),
    ],
)
def test_groups_of_chips(attributes: str, size: int) -> None:
    assert counter.group_size(attributes, 16) == size


MODULE = """HloModule jit_f, num_partitions=4
%started (p: bf16[8,4]) -> (bf16[8,4], bf16[32,4]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %gathered = bf16[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begin = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}
%ended (q: bf16[8,4]) -> bf16[32,4] {
  %q = bf16[8,4]{1,0} parameter(0)
  %gathered.1 = bf16[32,4]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %end = bf16[32,4]{1,0} custom-call(%gathered.1), custom_call_target="AsyncCollectiveDone"
}
%cut (stack: f32[10,8], index: s32[]) -> f32[1,8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %layer = f32[1,8]{1,0} dynamic-slice(%stack, %index, %zero), dynamic_slice_sizes={1,8}
}
%body (state: (s32[], f32[10,8])) -> (s32[], f32[10,8]) {
  %state = (s32[], f32[10,8]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %layers = f32[10,8]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(2)
  %fused = f32[1,8]{1,0:S(1)} fusion(%layers, %at), kind=kLoop, calls=%cut
  %product = f32[1,1]{1,0:S(1)} dot(%fused, %fused), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %reduced = f32[1,8]{1,0:S(1)} all-reduce(%fused), channel_id=8, replica_groups=[2,2]<=[4], to_apply=%add
  %next = s32[] add(%at, %one)
  ROOT %out = (s32[], f32[10,8]{1,0}) tuple(%next, %layers)
}
%condition (state.1: (s32[], f32[10,8])) -> pred[] {
  %state.1 = (s32[], f32[10,8]{1,0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%state.1), index=0
  %end.1 = s32[] constant(10)
  ROOT %less = pred[] compare(%at.1, %end.1), direction=LT
}
ENTRY %main (x: bf16[8,4], y: f32[10,8]) -> f32[10,8] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = f32[10,8]{1,0} parameter(1)
  %first = s32[] constant(4)
  %begun = (bf16[8,4]{1,0}, bf16[32,4]{1,0:S(1)}) fusion(%x), kind=kCustom, calls=%started
  %done = bf16[32,4]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%ended
  %carried = (s32[], f32[10,8]{1,0}) tuple(%first, %y)
  %loop = (s32[], f32[10,8]{1,0}) while(%carried), condition=%condition, body=%body
  ROOT %result = f32[10,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_program_by_hand() -> None:
    counts = counter.count(MODULE)
    trips = 3  # 4, 6, 8
    assert sum(counts.flops.values()) == trips * 2 * 8
    # One gathering, though it begins in one fusion and ends in another.
    assert counts.collectives == {"all-gather": 1, "all-reduce": trips}
    assert counts.collective_bytes == {"all-gather": 64 * 3, "all-reduce": trips * 2 * 32 // 2}
    # Of the stack one layer is read each time; what lies beside the memory costs nothing there.
    assert counts.memory_bytes >= trips * 8 * 4
    assert counts.memory_bytes < trips * math.prod((10, 8)) * 4 + 1000


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="expected HloModule"):
        counter.count("module @jit_f")
