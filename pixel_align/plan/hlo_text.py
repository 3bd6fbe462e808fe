"""The text of a compiled program (`jax.stages.Compiled.as_text()`) as computations of instructions."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """What an instruction gives, or one of the things. hbm: whether it lies in the chip's main memory."""

    kind: str
    sizes: tuple[int, ...]
    hbm: bool

    @property
    def bytes(self) -> int:
        return math.ceil(math.prod(self.sizes) * _BYTES.get(self.kind, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      operands: names of what it reads; the text of a constant or of a parameter's number.
      attributes: what follows the operands, as text. root: whether it is what the computation gives.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def number(self) -> int | None:
        """The value of a constant whole number, the position of a parameter."""
        whole = self.opcode == "parameter" or (self.opcode == "constant" and self.arrays[0].kind in ("s32", "u32"))
        return int(self.operands[0]) if whole and self.operands[0].lstrip("-").isdecimal() else None

    @property
    def place(self) -> str:
        """The scopes of the traced program that it comes from, "" where XLA made it up."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        listed = [name.strip().lstrip("%") for f in _BRANCHES.findall(self.attributes) for name in f.split(",")]
        return _CALLED.findall(self.attributes) + [name for name in listed if name]

    def attribute(self, name: str) -> str:
        """The word behind `name=`."""
        found = re.search(rf"{name}=%?([\w.\-]+)", self.attributes)
        assert found is not None
        return found[1]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module by name; `entry` is where it begins, `devices` how many run it."""

    entry: str
    devices: int
    computations: Mapping[str, Sequence[Instruction]]


def parse(text: str) -> Program:
    """A module -> its computations. Raises ValueError for text that is no HLO module."""
    if not text.startswith("HloModule"):
        raise ValueError(f"text begins with {text[:20]!r}, expected HloModule. Give what Compiled.as_text() returns.")
    head, _, rest = text.partition("\n")
    devices = [int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)]
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in rest.splitlines():
        stripped = line.strip()
        if current is None:
            if (found := _HEAD.match(stripped)) and "->" in stripped:
                current = computations.setdefault(found[1], [])
                entry = found[1] if stripped.startswith("ENTRY") else entry
        elif stripped == "}" or stripped.startswith("} //"):
            current = None
        elif (one := _instruction(stripped)) is not None:
            current.append(one)
    return Program(entry, math.prod(devices), computations)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    opcode, _, rest = right[end:].lstrip().partition("(")
    closing = _closing("(" + rest)
    inside, attributes = rest[: closing - 1], rest[closing:]
    names = re.findall(r"%([\w.\-]+)", inside) or [inside.strip()]
    root = line.startswith("ROOT ")
    return Instruction(left.strip().lstrip("%"), opcode, _arrays(right[:end]), tuple(names), attributes, root)


def _closing(text: str) -> int:
    """Where the parenthesis that a text begins with closes."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"parenthesis of {text[:40]!r} does not close, expected HLO text. Give the whole module.")


def _arrays(text: str) -> tuple[Array, ...]:
    """S(n) in a layout names another memory than HBM."""
    return tuple(
        Array(kind, tuple(int(n) for n in sizes.split(",") if n), hbm="S(" not in layout)
        for kind, sizes, layout in _ARRAY.findall(text)
    )
