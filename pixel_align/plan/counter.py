"""What one chip does in a compiled program: products, traffic between chips and with memory, every loop body times its
trips.

XLA's own `cost_analysis` counts the body of a loop once, and a scanned stack is a loop. Here a walk over the
computations of the compiled text multiplies each body by how often it runs: a scan counts up to a constant, which its
condition holds. Counted are products (`dot`, `convolution`), which are what matrix units and published peaks are about.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

from pixel_align.plan.hlo_text import Array, Instruction, Program, parse

# Nothing moves by these: they name, or only begin or end what is counted elsewhere.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))


@dataclasses.dataclass
class Counts:
    """Sums over a program, for one chip and one run.

    Attributes:
      flops: place (`Instruction.place`) -> floating-point operations of products, two for each product and sum.
      memory_bytes: what is read from and written to the chip's main memory, as far as the text says it: of a stack of
        which a layer is cut out, the layer.
      collective_bytes: kind -> bytes that a chip sends, by the fewest that the kind needs on a ring: of n chips with
        s bytes of input each, all-gather s (n - 1), reduce-scatter and all-to-all s (n - 1) / n, all-reduce twice that,
        collective-permute s.
      collectives: kind -> how often.
      assumed: loop -> trips that were taken for it, where the program does not say: what its condition compares with.
    """

    flops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    memory_bytes: int = 0
    collective_bytes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    collectives: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    assumed: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, other: "Counts", times: int = 1) -> None:
        for mine, theirs in (
            (self.flops, other.flops),
            (self.collective_bytes, other.collective_bytes),
            (self.collectives, other.collectives),
        ):
            for key, value in theirs.items():
                mine[key] += times * value
        self.memory_bytes += times * other.memory_bytes
        self.assumed |= other.assumed


def count(text: str) -> Counts:
    """The sums over a compiled module, given as `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: text that is no HLO module.
    """
    program = parse(text)
    return Counter(program).of(program.entry)


Moved = dict[str, tuple[str, float]]  # channel -> kind of collective, bytes


class Counter:
    """The walk: what each computation costs, made once for each."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._made: dict[tuple[str, bool], tuple[Counts, Moved]] = {}

    def of(self, name: str) -> Counts:
        """What one run of a computation costs."""
        inside, moved = self._walk(name, fused=False)
        total = Counts()
        total.add(inside)
        for kind, size in moved.values():
            if size:
                total.collective_bytes[kind] += math.ceil(size)
                total.collectives[kind] += 1
        return total

    def _walk(self, name: str, *, fused: bool) -> tuple[Counts, Moved]:
        """The same in two: all but its own collectives, and those by channel.

        A TPU runs a collective beside other work: one channel then stands in the fusions that begin it, work on and
        end it, and moves its bytes once.

        fused: as part of a fusion, where only what enters and leaves the fusion meets the memory.
        """
        if (name, fused) not in self._made:
            total, moved = Counts(), Moved()
            instructions = self.program.computations.get(name, ())
            known = {one.name: one for one in instructions}
            for one in instructions:
                if (kind := one.opcode.removesuffix("-start")) in _MOVED:
                    channel = re.search(r"channel_id=(\d+)", one.attributes)
                    size = sum(array.bytes for operand in _operands(one, known) for array in operand.arrays)
                    chips = group_size(one.attributes, self.program.devices)
                    moved[channel[0] if channel else one.name] = kind, _MOVED[kind](size, chips)
                else:
                    self._add(total, moved, one, known, fused)
                if not fused:
                    total.memory_bytes += self._traffic(one, known)
            self._made[name, fused] = total, moved
        return self._made[name, fused]

    def _add(
        self, total: Counts, moved: Moved, one: Instruction, known: Mapping[str, Instruction], fused: bool
    ) -> None:
        match one.opcode:
            case "while":
                trips = self._trips(one, known, total)
                total.add(self.of(one.attribute("body")), trips)
                total.add(self.of(one.attribute("condition")), trips)
            case "dot":
                total.flops[one.place] += _dot_flops(one, known)
            case "convolution":
                total.flops[one.place] += _convolution_flops(one, known)
            case "conditional":
                # One branch runs: the dearest.
                branches = [self.of(name) for name in one.called]
                total.add(max(branches, key=lambda counts: sum(counts.flops.values())))
            case opcode if not opcode.endswith(("-done", "-update")):
                for name in one.called:
                    inside, channels = self._walk(name, fused=fused or opcode != "call")
                    total.add(inside)
                    moved |= channels

    # ---- How often a loop runs

    def _trips(self, loop: Instruction, known: Mapping[str, Instruction], total: Counts) -> int:
        """How often a loop runs that counts up to a constant, as a scan does; of others the most: `assumed`."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = self.program.computations[loop.attribute("condition")]
        at = {one.name: one for one in condition}
        root = next(one for one in condition if one.root)
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            counter, end = (at[name] for name in root.operands)
            if counter.opcode == "get-tuple-element" and end.number is not None:
                position = int(counter.attribute("index"))
                return -(-(end.number - self._start(loop, position, known)) // self._step(loop, position))
        trips = self._bound(loop.attribute("condition"))
        total.assumed[loop.place or loop.name] = trips
        return trips

    def _start(self, loop: Instruction, position: int, known: Mapping[str, Instruction]) -> int:
        """What a loop counts from: 0 where it does not say."""
        carried = known[loop.operands[0]]
        first = known.get(carried.operands[position]) if carried.opcode == "tuple" else None
        while first is not None and first.opcode == "copy":
            first = known.get(first.operands[0])
        return first.number or 0 if first is not None and first.opcode == "constant" else 0

    def _step(self, loop: Instruction, position: int) -> int:
        """What a loop counts by: 1 where it does not say."""
        body = self.program.computations[loop.attribute("body")]
        at = {one.name: one for one in body}
        root = next(one for one in body if one.root)
        following = at.get(root.operands[position]) if root.opcode == "tuple" else None
        if following is None or following.opcode != "add":
            return 1
        numbers = [at[name].number for name in following.operands if name in at and at[name].opcode == "constant"]
        return next((number for number in numbers if number), 1)

    def _bound(self, condition: str) -> int:
        """The largest number that a condition compares with, itself included, or 1: most trips of a loop that may end
        earlier, as decoding does.
        """
        numbers = [1]
        for one in self.program.computations.get(condition, ()):
            numbers.append(1 + (one.number or 0) if one.opcode == "constant" else 1)
            numbers += [self._bound(name) for name in one.called]
        return max(numbers)

    # ---- What moves between memory and chip

    def _traffic(self, one: Instruction, known: Mapping[str, Instruction]) -> int:
        if one.opcode in _FREE or one.opcode in ("while", "conditional", "call") or one.opcode.endswith("-done"):
            return 0
        operands = _operands(one, known)
        if one.opcode in _SLICES:
            return 2 * _in_memory(one.arrays)
        if one.opcode == "dynamic-update-slice":
            return 2 * _in_memory(operands[1].arrays)
        if one.opcode.endswith("-start"):
            # What it gives lists what it reads, too.
            return 2 * sum(_in_memory(operand.arrays) for operand in operands)
        if one.opcode != "fusion":
            return _in_memory(one.arrays) + sum(_in_memory(operand.arrays) for operand in operands)
        inside = self.program.computations[one.called[0]]
        read = sum(self._read(inside, i, _in_memory(operand.arrays)) for i, operand in enumerate(operands))
        return read + self._written(inside, _in_memory(one.arrays))

    def _read(self, inside: Sequence[Instruction], position: int, whole: int) -> int:
        """How much of its operand at a position a fusion reads: of what is only cut up, the cuts."""
        name = next((one.name for one in inside if one.opcode == "parameter" and one.number == position), "")
        users = [one for one in inside if name in one.operands]
        if not whole or not users:
            return 0
        read = 0
        for user in users:
            if user.opcode in _SLICES and user.operands[0] == name:
                read += sum(array.bytes for array in user.arrays)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # in place
            elif user.opcode == "fusion":
                deeper = self.program.computations[user.called[0]]
                read += self._read(deeper, user.operands.index(name), whole)
            else:
                return whole
        return min(read, whole)

    def _written(self, inside: Sequence[Instruction], whole: int) -> int:
        """How much a fusion writes: what it puts into an array that it hands on."""
        known = {one.name: one for one in inside}
        root = next(one for one in inside if one.root)
        while root.opcode in ("bitcast", "copy") and root.operands[0] in known:
            root = known[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            return min(whole, sum(array.bytes for array in known[root.operands[1]].arrays))
        return whole


def _operands(one: Instruction, known: Mapping[str, Instruction]) -> list[Instruction]:
    return [known[name] for name in one.operands if name in known]


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.hbm)


# kind -> (bytes of the operands, chips that take part) -> bytes that a chip sends.
_MOVED = {
    "all-gather": lambda size, chips: size * (chips - 1),
    "all-reduce": lambda size, chips: 2 * size * (chips - 1) / chips,
    "reduce-scatter": lambda size, chips: size * (chips - 1) / chips,
    "all-to-all": lambda size, chips: size * (chips - 1) / chips,
    "ragged-all-to-all": lambda size, chips: size * (chips - 1) / chips,
    "collective-permute": lambda size, chips: size,
    "collective-broadcast": lambda size, chips: size,
    "send": lambda size, chips: size,
}


def group_size(attributes: str, devices: int) -> int:
    """How many chips take part in a collective with each other, in any of the three ways in which HLO says it: lists,
    sizes of a grid, or axes of a mesh.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    return devices


def _dot_flops(one: Instruction, known: Mapping[str, Instruction]) -> int:
    left = known[one.operands[0]].arrays[0].sizes
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    contracted = [int(i) for i in found[1].split(",") if i] if found else []
    return 2 * math.prod(one.arrays[0].sizes) * math.prod(left[i] for i in contracted)


def _convolution_flops(one: Instruction, known: Mapping[str, Instruction]) -> int:
    """As XLA counts: along each axis of the window only pairs of an output and a kernel position that fall on the input
    itself, neither on padding nor between its cells. TPUs write batched products as such convolutions.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert found is not None
    left, right, out = found.groups()
    shape, kernel = (known[name].arrays[0].sizes for name in one.operands[:2])
    window = _window(one.attributes, sum(label.isdigit() for label in left))
    pairs = 1
    for axis in range(len(window["size"])):
        pairs *= met_pairs(
            shape[left.index(str(axis))],
            kernel[right.index(str(axis))],
            one.arrays[0].sizes[out.index(str(axis))],
            *(window[name][axis] for name in ("stride", "low", "lhs_dilate", "rhs_dilate")),
        )
    groups = [int(m[1]) if (m := re.search(rf"{name}_group_count=(\d+)", one.attributes)) else 1 for name in _GROUPS]
    features, batch = shape[left.index("f")] // groups[0], shape[left.index("b")] // groups[1]
    return 2 * features * batch * one.arrays[0].sizes[out.index("f")] * pairs


_GROUPS = ("feature", "batch")


def _window(attributes: str, axes: int) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    said = dict(part.split("=") for part in found[1].split()) if found else {}

    def numbers(name: str) -> list[int]:
        return [int(n) for n in said[name].split("x")] if name in said else [1] * axes

    low = [int(pair.split("_")[0]) for pair in said["pad"].split("x")] if "pad" in said else [0] * axes
    return {"size": numbers("size"), "stride": numbers("stride"), "low": low} | {
        name: numbers(name) for name in ("lhs_dilate", "rhs_dilate")
    }


@functools.lru_cache(maxsize=4096)
def met_pairs(size: int, kernel: int, out: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    """How many pairs of an output and a kernel position along one axis meet a cell of the input.

    Args:
      size, kernel, out: cells of the input, the kernel, the output. stride: of the window. low: padding before the
        input. dilate, kernel_dilate: distance of neighbouring cells of the input and of the kernel.
    """
    return sum(_met(k * kernel_dilate - low, size, out, stride, dilate) for k in range(kernel))


def _met(start: int, size: int, out: int, stride: int, dilate: int) -> int:
    """For how many o in 0 .. out - 1 the place start + o * stride is a multiple of `dilate` in [0, size * dilate)."""
    last = (size - 1) * dilate
    first = max(0, -(start // stride))  # the smallest o with start + o * stride >= 0
    end = min(out - 1, (last - start) // stride)
    if end < first:
        return 0
    period = dilate // math.gcd(dilate, stride)
    for o in range(first, min(end, first + period - 1) + 1):
        if (start + o * stride) % dilate == 0:
            return (end - o) // period + 1
    return 0
