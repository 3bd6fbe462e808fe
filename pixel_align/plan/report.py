"""A program compiled for a topology -> what it asks of each chip, as numbers, as a table, as advice."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import rich.table

from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.image_features import encoders
from pixel_align.plan import counter, programs, traced
from pixel_align.plan.programs import Program, Run
from pixel_align.plan.topology import Chip, Topology

GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
# XLA's own switch: less time on making the program fast, compiled two to three times as fast.
FAST = {"exec_time_optimization_effort": -1.0}

_PARTS = (  # part -> where its scopes lie in the names of instructions
    ("image/eva", r"image\.maps/eva"),
    ("image/sam", r"image\.maps/sam"),
    ("detector", r"/detector/"),
    ("mask_adapter", r"/mask_adapter/"),
    ("mask_decoder", r"/mask_decoder/"),
    ("extractor", r"encode_prompt/|visual_projection"),
    ("text", r"text\.(en|de)code|text\.decode_step|/decoder/|/encoder/|/layers/"),
    ("location", r"/location/|\.locate/"),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a program asks of each chip. Bytes and floating-point operations of one run of it.

    Attributes:
      mesh: sizes of data, fsdp, tensor. examples: pictures of a run, over all chips.
      fits: whether the compiler found room. peak_bytes_per_chip: see `reserved`; of a program that does not fit, what
        the compiler says that it would take. memory_per_chip: what a chip has, as published; of a program that does
        not fit, what the compiler may use.
      arguments, temporaries: bytes of a chip that the inputs take (the state, a batch), and what is held in between.
      model_flops: over all chips, by the formula (`model_flops`), and by part. None for a family without one.
      again: over all chips, what the traced program computes beyond that: rematerialisation, the loss's logits.
      compiled_flops: of each chip. by_part: of each chip, by part of the model; "rest" is the loss and what is small.
      collective_bytes, collectives: of each chip, by kind: what it sends, and how often.
      memory_bytes: of each chip, read from and written to its memory, as far as the compiled text says.
      assumed: loops whose trips the text does not say -> trips that were taken.
      seconds: of tracing and of compiling.
      estimate: seconds that each peak alone would take and their maximum, `step`; `utilisation`: model_flops over what
        the chips could do in that time. An estimate from published peaks, not a measurement.
      advice: what to change where it does not fit.
    """

    program: str
    topology: str
    chips: int
    mesh: tuple[int, ...]
    examples: int
    fits: bool
    peak_bytes_per_chip: int
    memory_per_chip: int
    arguments: int | None = None
    temporaries: int | None = None
    model_flops: int | None = None
    model_flops_by_part: dict[str, int] | None = None
    again: int | None = None
    compiled_flops: int | None = None
    compiled_by_part: dict[str, int] | None = None
    collective_bytes: dict[str, int] | None = None
    collectives: dict[str, int] | None = None
    memory_bytes: int | None = None
    assumed: dict[str, int] | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    estimate: dict[str, float] | None = None
    advice: str = ""

    @property
    def over_model(self) -> float | None:
        """Products that are compiled over those of the formula, what is computed again apart; 1 is no waste."""
        if not self.model_flops or self.compiled_flops is None:
            return None
        return (self.chips * self.compiled_flops - (self.again or 0)) / self.model_flops

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "compiled_over_model_flops": self.over_model}


def compile_all(run: Run, where: Topology, names: Sequence[str], *, fast: bool = False) -> list[Report]:
    """The named programs of a run, one after the other."""
    makers = {"train": programs.train_step, "evaluate": programs.evaluation, "decode": programs.decode}
    return [compile_one(makers[name](run), run, where, fast=fast) for name in names]


def compile_one(program: Program, run: Run, where: Topology, *, fast: bool = False) -> Report:
    """Traces, compiles and counts a program."""
    begun = time.perf_counter()
    with jax.set_mesh(run.mesh):
        trace = program.trace()
        lowered = trace.lower()
    ready = time.perf_counter()
    said: dict[str, Any] = {
        "program": program.name,
        "topology": where.name,
        "chips": run.mesh.size,
        "mesh": tuple(run.mesh.shape[axis] for axis in run.mesh.axis_names),
        "examples": program.examples,
    }
    if program.model_flops is not None:
        said["model_flops"] = program.model_flops.total
        said["model_flops_by_part"] = program.model_flops.by_part()
        if program.name == "train":
            said["again"] = traced.flops(trace.jaxpr.jaxpr) - program.model_flops.total
    try:
        compiled = lowered.compile(compiler_options=FAST if fast else {})
    except jax.errors.JaxRuntimeError as error:
        needed, room = overflow(str(error))
        seconds = {"trace": ready - begun, "compile": time.perf_counter() - ready}
        return Report(
            **said,
            fits=False,
            peak_bytes_per_chip=needed,
            memory_per_chip=room,
            seconds=seconds,
            advice=advice(run, program.name),
        )
    seconds = {"trace": ready - begun, "compile": time.perf_counter() - ready}
    memory, found = compiled.memory_analysis(), counter.count(compiled.as_text())
    return Report(
        **said,
        fits=True,
        peak_bytes_per_chip=reserved(memory),
        memory_per_chip=where.chip.memory,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        compiled_flops=sum(found.flops.values()),
        compiled_by_part=by_part(found),
        collective_bytes=dict(found.collective_bytes),
        collectives=dict(found.collectives),
        memory_bytes=found.memory_bytes,
        assumed=found.assumed,
        seconds=seconds,
        estimate=roofline(found, where.chip, said.get("model_flops"), run.mesh.size),
    )


def roofline(found: counter.Counts, chip: Chip, model_flops: int | None, chips: int) -> dict[str, float]:
    """Seconds that products, memory and links alone would take at their peaks; the largest is the step's, if all the
    rest is hidden behind it. Products count at the peak of bfloat16 whatever they are.
    """
    seconds = {
        "products": sum(found.flops.values()) / chip.flops,
        "memory": found.memory_bytes / chip.bandwidth,
        "links": sum(found.collective_bytes.values()) / chip.link_bandwidth,
    }
    step = max(seconds.values())
    used = {"utilisation": model_flops / (chips * chip.flops * step)} if model_flops and step else {}
    return {**seconds, "step": step, **used}


def reserved(memory: Any) -> int:
    """Bytes that a program takes of a chip: what goes in, what comes out and is not written over it, what is held in
    between, the code. Not `peak_memory_in_bytes`, which is of the moment: the whole block is set aside.
    """
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def by_part(found: counter.Counts) -> dict[str, int]:
    """Part of the model -> floating-point operations of a chip."""
    parts: dict[str, int] = {}
    for place, flops in found.flops.items():
        part = next((name for name, scope in _PARTS if re.search(scope, place)), "rest")
        parts[part] = parts.get(part, 0) + flops
    return parts


def advice(run: Run, program: str) -> str:
    """The first setting that makes a program smaller and is not yet set, in the order of what it costs."""
    config, mesh = run.config, run.mesh.shape
    if program == "train" and config.train.frozen_dtype == "float32":
        return "Set train.frozen_dtype=bfloat16: frozen tables take half."
    model = config.model
    if isinstance(model, PixelLLMConfig):
        parts = {f"model.image.{name}" if len(encoders(model.image)) > 1 else "model.image": part
                 for name, part in encoders(model.image).items()}  # fmt: skip
        parts |= {"model.extractor": model.extractor, "model.text": model.text}  # type: ignore[dict-item]
        single = [name for name, part in parts.items() if part.dtype == "float32"]
        if single:
            return f"Set {' '.join(f'{name}.dtype=bfloat16' for name in single)}: activations take half."
        # Through a frozen language model gradients still pass.
        held = [name for name, part in parts.items() if name == "model.text" or not part.frozen]
        kept = [name for name in held if getattr(parts[name], "remat", "full") != "full"]
        if kept and program == "train":
            return f"Set {' '.join(f'{name}.remat=full' for name in kept)}: layers are computed again, not kept."
    if mesh["data"] > 1:
        return f"Set mesh.data=1 mesh.fsdp=-1: the state is shared by all chips, not by {mesh['fsdp']}."
    if program == "train":
        return (
            f"Set train.accumulate={2 * config.train.accumulate}: half of the pictures at a time. Or take more chips."
        )
    return "Set a smaller batch_size in evals, or take more chips."


def overflow(message: str) -> tuple[int, int]:
    """(bytes that are needed, bytes that there are) from the compiler's error.

    Raises ValueError for another error.
    """
    patterns = (
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)",
    )
    for pattern in patterns:
        if found := re.search(pattern, message):
            needed, unit, room, room_unit = found.groups()
            return round(float(needed) * _UNITS[unit]), round(float(room) * _UNITS[room_unit])
    raise ValueError(f"compiler says {message.splitlines()[0]!r}, expected a program. Report it with the command.")


# ---- For people


def table(reports: Sequence[Report]) -> rich.table.Table:
    """A column for each program."""
    rows = [cells(report) for report in reports]
    grid = rich.table.Table("", *(report.program for report in reports))
    for name in dict.fromkeys(name for row in rows for name in row):
        grid.add_row(name, *(row.get(name, "") for row in rows))
    return grid


def cells(report: Report) -> dict[str, str]:
    """What is said of a program, in words with units."""
    said = {
        "chips": f"{report.chips}, as data x fsdp x tensor {' x '.join(map(str, report.mesh))}",
        "pictures": str(report.examples),
        "fits": "yes" if report.fits else f"NO. {report.advice}",
        "memory of a chip": f"{report.peak_bytes_per_chip / GIB:.2f} of {report.memory_per_chip / GIB:.2f} GiB",
    }
    if report.arguments is not None and report.temporaries is not None:
        said["arguments"] = f"{report.arguments / GIB:.2f} GiB"
        said["temporaries"] = f"{report.temporaries / GIB:.2f} GiB"
    if report.model_flops:
        said["model FLOPs"] = f"{report.model_flops:.4g}"
    if report.again:
        said["computed again"] = f"{report.again:.4g}"
    if report.compiled_flops is not None:
        said["compiled FLOPs, all chips"] = f"{report.chips * report.compiled_flops:.4g}"
        if report.over_model:
            said["compiled over model, again apart"] = f"{report.over_model:.3f}"
    for kind, size in sorted((report.collective_bytes or {}).items()):
        said[f"{kind} of a chip"] = f"{size / 1e9:.3f} GB in {(report.collectives or {}).get(kind, 0):,}"
    if report.estimate:
        bound = max(("products", "memory", "links"), key=lambda name: (report.estimate or {})[name])
        said["estimated, at published peaks"] = f"{1e3 * report.estimate['step']:.1f} ms, bound by {bound}"
        if "utilisation" in report.estimate:
            said["estimated utilisation"] = f"{report.estimate['utilisation']:.1%}"
    if report.assumed:
        said["trips assumed"] = ", ".join(f"{name.split('/')[-2:]}: {trips}" for name, trips in report.assumed.items())
    said["traced, compiled in"] = ", ".join(f"{value:.0f} s" for value in report.seconds.values())
    return said
