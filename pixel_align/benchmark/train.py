"""How fast a training step is, where its time goes, and what each saving saves: beside its naive twin, in the same run.

    pixel-align benchmark train --preset bench --json rows.jsonl

Batches are drawn: every slot is used. A step is measured with 1 region of a picture and with 16 of few words that share
the whole picture as prompt; then each part by itself, forwards and backwards as in that step. Each measurement runs in
a process of its own, whose peak of memory is then its own; no compiled program comes from a cache.

Notes of a row, beside what its name says: `compile_seconds`; `device_bytes`, arguments, results and temporaries by
XLA's own plan; `flops_per_second`, of the model's formula (`plan.model_flops`), what is computed again not counted.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixel_align import losses, models, optim, param_rules
from pixel_align.batch import Batch, RegionTargets, Weights, zeros
from pixel_align.benchmark.rows import Measured, document
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig
from pixel_align.nn import attention
from pixel_align.nn.image_features import grid
from pixel_align.plan import model_flops
from pixel_align.state import make_state
from pixel_align.train import make_train_step

REGIONS, WORDS = 16, 16  # of a step with many regions: how many, of how many tokens each
TURNS = 5  # of what is timed; the fastest counts

# The parts of a step in their order: name -> the paths of the parameters that they read.
PARTS = {
    "image": "image/.*",
    "prompt": "(prompt|extractor)/.*",
    "language": "(visual_projection|visual_norm)/.*|text/(?!.*logits_dense).*",
    "losses": "location/.*|text/.*logits_dense/.*",
}


def measurements() -> dict[str, Callable[[Experiment], list[Measured]]]:
    """Name -> function of an experiment that measures one or several rows."""
    functions = (
        measure_step_1,
        measure_step_16,
        measure_shared_prompt,
        measure_frozen_parts,
        measure_chunked_loss,
        measure_lora_products,
        measure_scan,
        measure_attention,
    )
    return {function.__name__.removeprefix("measure_"): function for function in functions}


def run(config: Experiment, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows as they are measured.

    Args:
        config: whose model and batch size are measured; only its first batch is, without masks and detector.
        names: of the measurements, all by default.

    Raises:
        ValueError: no such measurement, or a model of another family.
    """
    known = measurements()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"measurement is {unknown[0]!r}, expected one of {', '.join(known)}. Choose among them.")
    if not isinstance(config.model, PixelLLMConfig):
        raise ValueError(f"model.kind is {config.model.kind!r}, expected 'pixel_llm'. Name another experiment.")
    context = multiprocessing.get_context("spawn")
    for name in names or known:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            yield from pool.submit(measure, name, config).result()


def measure(name: str, config: Experiment) -> list[dict[str, Any]]:
    """The rows of one measurement, measured in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    return [document(row) for row in measurements()[name](config)]


def with_regions(config: Experiment, regions: int) -> Experiment:
    """An experiment of one batch: its own with 1 region, or many of few words that share the whole picture's prompt."""
    model = config.model
    assert isinstance(model, PixelLLMConfig)
    shape = dataclasses.replace(model.shape, regions=regions, prompts=1, mask=0, prompt_mask=0, described=0)
    if regions > 1:
        shape = dataclasses.replace(shape, text=min(WORDS, shape.text), objects=0)
    detector = dataclasses.replace(model.detector, enabled=False)
    masks = dataclasses.replace(model.masks, enabled=False)
    data = dataclasses.replace(config.data, further=())
    return dataclasses.replace(
        config, model=dataclasses.replace(model, shape=shape, detector=detector, masks=masks), data=data
    )


def drawn(model: PixelLLMConfig, size: int, seed: int = 0) -> Batch:
    """A batch of `size` examples that uses every slot."""
    random, shape = np.random.default_rng(seed), model.shape
    empty = zeros(shape, size)

    def tokens(like: np.ndarray) -> np.ndarray:
        return random.integers(3, model.text.vocab_size, like.shape).astype(np.int32)

    def boxes(like: np.ndarray) -> np.ndarray:
        corners = np.sort(random.random((*like.shape[:-1], 2, 2)), axis=-2)
        return corners.reshape(like.shape).astype(np.float32)

    regions = empty.regions
    return dataclasses.replace(
        empty,
        images=random.integers(0, 256, empty.images.shape, np.uint8),
        valid_size=np.full_like(empty.valid_size, shape.canvas),
        prompt_boxes=np.broadcast_to(np.asarray([0, 0, 1, 1], np.float32), empty.prompt_boxes.shape),
        instruction_tokens=tokens(empty.instruction_tokens),
        instruction_mask=np.ones_like(empty.instruction_mask),
        text_tokens=tokens(empty.text_tokens),
        text_mask=np.ones_like(empty.text_mask),
        token_points=random.random(empty.token_points.shape).astype(np.float32),
        locate=np.ones_like(empty.locate),
        valid=np.ones_like(empty.valid),
        weights=Weights(*(np.ones(size, np.float32) for _ in range(4))),
        regions=regions
        and RegionTargets(
            boxes(regions.boxes),
            np.ones_like(regions.mask),
            tokens(regions.tokens),
            np.ones_like(regions.token_mask),
        ),
    )


# Steps and their parts


def measure_step_1(config: Experiment) -> list[Measured]:
    """A whole step with one region, the optimizer included, and its parts."""
    return _step(with_regions(config, 1), "1")


def measure_step_16(config: Experiment) -> list[Measured]:
    """The same with 16 regions."""
    return _step(with_regions(config, REGIONS), str(REGIONS))


def _step(config: Experiment, label: str) -> list[Measured]:
    model, size = config.model, config.data.batch_size
    assert isinstance(model, PixelLLMConfig)
    rules = models.family_of(model).rules(model)
    params = _params(config)
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    # A copy: a step is handed its state for good.
    state = make_state(config, jax.tree.map(jnp.copy, params), rules, optimizer)
    batch = jax.device_put(drawn(model, size))
    parts = _parts(model, params, batch)
    step = Program(make_train_step(config, optimizer), state, ((batch,),), carries=True)
    del state
    fastest([step])
    flops = model_flops.of_step([(model, size)])
    by_part = {name: sum(n for part, n in flops.by_part().items() if _part_of(part) == name) for name in PARTS}
    fastest(parts.values())
    rest = step.seconds - sum(part.seconds for part in parts.values())
    notes = {"ms": 1e3 * step.seconds, "rest_ms": 1e3 * rest, "flops_per_second": flops.total / step.seconds}
    rows = [Measured(f"step_{label}", size, "examples", step.seconds, notes=notes | step.notes())]
    for name, part in parts.items():
        notes = {"ms": 1e3 * part.seconds, "of_step": part.seconds / step.seconds}
        if by_part[name]:
            notes["flops_per_second"] = by_part[name] / part.seconds
        rows.append(Measured(f"step_{label}/{name}", size, "examples", part.seconds, notes=notes | part.notes()))
    return rows


def _params(config: Experiment) -> Any:
    """Parameters as training begins with; the shape of its batches does not matter to them."""
    assert isinstance(config.model, PixelLLMConfig)
    shape = dataclasses.replace(config.model.shape, regions=1, prompts=1, text=4, instruction=2, objects=0)
    return _made(dataclasses.replace(config.model, shape=shape), config.train.seed)


@functools.lru_cache(maxsize=1)
def _made(model: PixelLLMConfig, seed: int) -> Any:
    return jax.jit(lambda: models.family_of(model).init(model, seed))()


def _part_of(name: str) -> str:
    """Which part of PARTS a part of the formula belongs to, "" for those that are not measured by themselves."""
    root = name.partition("/")[0]
    return {"image": "image", "extractor": "prompt", "text": "language", "location": "losses"}.get(root, "")


def _parts(model: PixelLLMConfig, params: Any, batch: Batch) -> dict[str, "Program"]:
    """Each part as a program, on what the parts before it made."""
    made: dict[str, Any] = {}
    programs: dict[str, Program] = {}
    mask = param_rules.match(models.family_of(model).rules(model)["trainable"], params)
    reached = False  # by gradients that what stands before needs
    for (name, pattern), function in zip(PARTS.items(), FUNCTIONS, strict=True):
        trainable, frozen = param_rules.split(_subtree(params, pattern), _subtree(mask, pattern))
        program = Program(
            functools.partial(_both, functools.partial(function, PixelLLM(model)), reached),
            (trainable, frozen),
            (made.get("last"), batch),
        )
        made["last"] = program.once()[0]
        programs[name] = program
        reached = reached or bool(jax.tree.leaves(trainable))
    return programs


def _subtree(tree: Any, pattern: str) -> dict[str, Any]:
    """The leaves at paths that match, as a tree of their own."""
    found: dict[str, Any] = {}
    for path, leaf in _paths(tree, pattern).items():
        *folders, name = path.split("/")
        functools.reduce(lambda at, folder: at.setdefault(folder, {}), folders, found)[name] = leaf
    return found


def _paths(tree: Any, pattern: str) -> dict[str, Any]:
    return {path: leaf for path, leaf in param_rules.paths(tree).items() if re.fullmatch(pattern, path)}


def _both(function: Any, reached: bool, halves: Any, given: Any, batch: Batch) -> tuple[Any, Any]:
    """(outputs, gradients by the trained half and, where something before is trained, by what is given)."""
    trainable, frozen = halves

    def outputs(trainable: Any, given: Any) -> Any:
        return function(param_rules.merge(trainable, frozen), given, batch)

    if reached:
        out, back = jax.vjp(outputs, trainable, given)
    else:
        out, back = jax.vjp(lambda trainable: outputs(trainable, given), trainable)
    return out, back(out)  # any cotangent will do, if it is not known when compiling


def _rngs() -> dict[str, jax.Array]:
    return {"dropout": jax.random.key(0)}


def _image(module: PixelLLM, params: Any, given: None, batch: Batch) -> jax.Array:
    del given
    encode = functools.partial(module.apply, {"params": params}, rngs=_rngs(), method="encode_image")
    return encode(batch.images, batch.valid_size, train=True).fused  # type: ignore[union-attr]


def _prompt(module: PixelLLM, params: Any, features: jax.Array, batch: Batch) -> Any:
    asked = (features, batch.prompt_boxes, batch.prompt_points, batch.prompt_masks)
    return module.apply({"params": params}, *asked, method="encode_prompt")


def _language(module: PixelLLM, params: Any, visual: jax.Array, batch: Batch) -> Any:
    def write(model: PixelLLM, visual: jax.Array) -> jax.Array:
        b, n, t = batch.text_tokens.shape
        prefix, mask = model.encode_prefix(visual, batch.instruction_tokens, batch.instruction_mask, train=True)
        text = model.decode_text(batch.text_tokens.reshape(b * n, t), prefix, mask, train=True)
        return text.reshape(b, n, t, -1)

    return module.apply({"params": params}, visual, rngs=_rngs(), method=write)


def _losses(module: PixelLLM, params: Any, text: jax.Array, batch: Batch) -> Any:
    def told(model: PixelLLM, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel, bias = model.text.logits_kernel(), model.text.logits_bias()
        features = model.text.drop_features(text, train=True)[:, :, :-1]
        mask = batch.text_mask[..., 1:].astype(jnp.float32)
        words, _ = losses.text(features, kernel, batch.text_tokens[..., 1:], mask, 0.1, bias)
        located = model.locate(text, batch.valid_size)
        places, _ = losses.point(located, batch.token_points, batch.locate.astype(jnp.float32), 1)
        return words, places

    return module.apply({"params": params}, text, rngs=_rngs(), method=told)


FUNCTIONS: tuple[Callable[..., Any], ...] = (_image, _prompt, _language, _losses)  # of PARTS


# Savings, each beside its naive twin


def measure_shared_prompt(config: Experiment) -> list[Measured]:
    """All before the language model: 16 regions that share one prompt, beside 16 times the same prompt, and beside one
    region. `to_one_region`: our time by that of one region.
    """
    programs = []
    for regions, prompts in ((REGIONS, 1), (REGIONS, REGIONS), (1, 1)):
        made = with_regions(config, regions)
        assert isinstance(made.model, PixelLLMConfig)
        shape = dataclasses.replace(made.model.shape, prompts=prompts)
        model = dataclasses.replace(made.model, shape=shape)
        params = _params(made)
        mask = param_rules.match(models.family_of(model).rules(model)["trainable"], params)
        before = "(image|prompt|extractor|visual_projection|visual_norm)/.*"
        halves = param_rules.split(_subtree(params, before), _subtree(mask, before))
        batch = jax.device_put(drawn(model, config.data.batch_size))
        function = functools.partial(_both, functools.partial(_before_language, PixelLLM(model)), False)
        programs.append(Program(function, halves, (None, batch)))
    ours, twin, one = programs
    fastest(programs)
    notes = {"to_one_region": ours.seconds / one.seconds, **_difference(ours, twin)}
    return [_beside("shared_prompt", config.data.batch_size, ours, twin, "the same prompt encoded 16 times", notes)]


def _before_language(module: PixelLLM, params: Any, given: None, batch: Batch) -> Any:
    del given

    def read(model: PixelLLM) -> jax.Array:
        features = model.encode_image(batch.images, batch.valid_size, train=True).fused
        visual = model.encode_prompt(features, batch.prompt_boxes, batch.prompt_points, batch.prompt_masks)
        visual = model.visual_norm(model.visual_projection(visual))
        return jnp.broadcast_to(visual, (*batch.valid.shape, *visual.shape[2:]))

    return module.apply({"params": params}, rngs=_rngs(), method=read)


def measure_frozen_parts(config: Experiment) -> list[Measured]:
    """Loss and gradient of a step, beside the same with gradients of frozen parameters as well, which are then thrown
    away. No row where nothing is frozen.
    """
    config = with_regions(config, 1)
    ours, _ = _gradient(config)
    if not jax.tree.leaves(ours.state[1]):
        return []
    twin, _ = _gradient(config, everything=True)
    fastest([ours, twin])
    size = config.data.batch_size
    return [_beside("frozen_parts", size, ours, twin, "gradients of frozen parts as well", _difference(ours, twin))]


def measure_scan(config: Experiment) -> list[Measured]:
    """Compiling loss and gradient with stacks of layers as one block, beside all layers written out. `step_ratio`: the
    written-out program's time by ours.
    """
    config = with_regions(config, 1)
    (ours, _), (twin, _) = (_gradient(_scanned(config, scan)) for scan in (True, False))
    fastest([ours, twin])
    notes = {"step_ratio": twin.seconds / ours.seconds, "twin_seconds": twin.compile_seconds, **ours.notes()}
    ratio = twin.compile_seconds / ours.compile_seconds
    return [Measured("scan", 1, "compilations", ours.compile_seconds, "layers written out", ratio, notes)]


def _gradient(config: Experiment, *, everything: bool = False) -> tuple["Program", Batch]:
    """Loss and gradient of a step, of the trained half or of everything."""
    model = config.model
    assert isinstance(model, PixelLLMConfig)
    family = models.family_of(model)
    params = _params(config)
    halves = param_rules.split(params, param_rules.match(family.rules(model)["trainable"], params))
    batch = jax.device_put(drawn(model, config.data.batch_size))

    def gradient(halves: Any, batch: Batch) -> Any:
        def loss(trainable: Any, frozen: Any) -> jax.Array:
            params = param_rules.merge(trainable, frozen)
            outputs = family.module(model).apply({"params": params}, batch, train=True, rngs=_rngs())
            return losses.join([family.loss(outputs, batch, model)])[0]

        return jax.value_and_grad(loss, argnums=(0, 1) if everything else 0)(*halves)

    return Program(gradient, halves, (batch,)), batch


def _scanned(part: Any, scan: bool) -> Any:
    """A tree of settings with every stack of layers scanned, or written out."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    changed = {field.name: _scanned(getattr(part, field.name), scan) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **(changed | ({"scan": scan} if "scan" in changed else {})))


def measure_chunked_loss(config: Experiment) -> list[Measured]:
    """Text loss and its gradient by the features, beside the same with all logits at once. `bytes_ratio`: the twin's
    temporaries by ours.
    """
    model, size = with_regions(config, REGIONS).model, config.data.batch_size
    assert isinstance(model, PixelLLMConfig)
    random = np.random.default_rng(0)
    text, vocabulary, width = (size, REGIONS, model.shape.text), model.text.vocab_size, model.text.width
    features = jnp.asarray(random.normal(size=(*text, width)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(width, vocabulary)) / width**0.5, jnp.float32)
    labels, weights = jnp.asarray(random.integers(0, vocabulary, text)), jnp.ones(text)

    def whole(features: jax.Array, kernel: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(features @ kernel)
        wanted = jnp.full((vocabulary,), 0.1 / (vocabulary - 1))
        wanted = jnp.where(jax.nn.one_hot(labels, vocabulary) > 0, 0.9, wanted)
        return -jnp.sum(jnp.sum(wanted * logprobs, axis=-1) * weights)

    def chunked(features: jax.Array, kernel: jax.Array) -> jax.Array:
        return losses.text(features, kernel, labels, weights, 0.1)[0]

    ours, twin = (Program(jax.value_and_grad(function), features, (kernel,)) for function in (chunked, whole))
    fastest([ours, twin])
    notes = {"bytes_ratio": twin.temporaries / max(ours.temporaries, 1), "tokens": float(np.prod(text))}
    notes |= {"vocabulary": float(vocabulary), **_difference(ours, twin)}
    return [_beside("chunked_loss", size, ours, twin, "all logits at once", notes)]


def measure_lora_products(config: Experiment) -> list[Measured]:
    """A frozen linear layer with its adapter, and the gradients by adapter and input, beside a weight that is summed up
    first. No row where the language model has no adapters.
    """
    made, size = with_regions(config, REGIONS).model, config.data.batch_size
    assert isinstance(made, PixelLLMConfig)
    adapter = getattr(made.text, "lora", None)
    if adapter is None or not adapter.rank:
        return []
    random = np.random.default_rng(0)
    width, rows = made.text.width, size * REGIONS * made.shape.text
    shapes = (rows, width), (width, adapter.rank), (adapter.rank, width)
    x, a, b = (jnp.asarray(random.normal(size=shape) / width**0.5, jnp.float32) for shape in shapes)
    weight = jnp.asarray(random.normal(size=(width, width)) / width**0.5, jnp.float32)

    def products(given: Any, weight: jax.Array) -> jax.Array:
        x, a, b = given
        return jnp.sum(jnp.square(x @ weight + ((x @ a) @ b) * adapter.scale))

    def summed(given: Any, weight: jax.Array) -> jax.Array:
        x, a, b = given
        return jnp.sum(jnp.square(x @ (weight + adapter.scale * (a @ b))))

    ours, twin = (Program(jax.value_and_grad(function), (x, a, b), (weight,)) for function in (products, summed))
    fastest([ours, twin])
    notes = {"rank": float(adapter.rank), "width": float(width), **_difference(ours, twin)}
    return [_beside("lora_products", size, ours, twin, "the sum of the weights", notes)]


def measure_attention(config: Experiment) -> list[Measured]:
    """Attention over all cells of the image map by jax.nn.dot_product_attention, forwards and backwards, beside the
    same written out. On a CPU both are XLA's.
    """
    model, size = config.model, config.data.batch_size
    assert isinstance(model, PixelLLMConfig)
    h, w = grid(model.image, model.shape.canvas)
    heads, width = 4, 64
    random = np.random.default_rng(0)
    given = tuple(jnp.asarray(random.normal(size=(size, h * w, heads, width)), jnp.float32) for _ in range(3))

    def kernel(given: Any, out: jax.Array) -> jax.Array:
        return jnp.sum(attention.attention(*given) * out)

    def written(given: Any, out: jax.Array) -> jax.Array:
        query, key, value = given
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key) * width**-0.5, axis=-1)
        return jnp.sum(jnp.einsum("bhts,bshd->bthd", weights, value) * out)

    out = jnp.asarray(random.normal(size=given[0].shape), jnp.float32)
    ours, twin = (Program(jax.value_and_grad(function), given, (out,)) for function in (kernel, written))
    fastest([ours, twin])
    notes = {"cells": float(h * w), "heads": float(heads), **_difference(ours, twin)}
    return [_beside("attention", size, ours, twin, "attention written out", notes)]


# Programs


class Program:
    """A compiled function of a state and further arguments, and how long it takes."""

    def __init__(self, function: Callable[..., Any], state: Any, given: tuple[Any, ...], *, carries: bool = False):
        """carries: the first result is the next state, and the state is donated, as a training step does."""
        self.state, self._given, self._carries = state, given, carries
        lowered = jax.jit(function, donate_argnums=0 if carries else ()).lower(state, *given)
        begun = time.perf_counter()
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begun
        self.seconds = float("inf")
        memory = self._compiled.memory_analysis()
        assert memory is not None  # every backend of XLA that we know has it
        self.temporaries = int(memory.temp_size_in_bytes)
        shared = memory.alias_size_in_bytes
        self.bytes = int(self.temporaries + memory.argument_size_in_bytes + memory.output_size_in_bytes - shared)

    def once(self) -> Any:
        """Its results, waited for; keeps the time if it is the least."""
        begun = time.perf_counter()
        out = jax.block_until_ready(self._compiled(self.state, *self._given))
        self.seconds = min(self.seconds, time.perf_counter() - begun)
        if self._carries:
            self.state = out[0]
        return out

    def notes(self) -> dict[str, float]:
        return {"compile_seconds": self.compile_seconds, "device_bytes": float(self.bytes)}


def fastest(programs: Any) -> None:
    """Times programs in turns, to share the machine's luck; the first turn does not count."""
    programs = list(programs)
    for program in programs:
        program.once()
        program.seconds = float("inf")
    for _ in range(TURNS):
        for program in programs:
            program.once()


def _beside(name: str, cases: int, ours: Program, twin: Program, against: str, notes: dict[str, float]) -> Measured:
    notes = {"ms": 1e3 * ours.seconds, "twin_ms": 1e3 * twin.seconds, **notes, **ours.notes()}
    notes["twin_device_bytes"] = float(twin.bytes)
    return Measured(name, cases, "examples", ours.seconds, against, twin.seconds / ours.seconds, notes)


def _difference(ours: Program, twin: Program) -> dict[str, float]:
    """The largest difference of the first results (outputs, or the loss), by the largest value."""
    a, b = (np.asarray(program.once()[0], np.float64) for program in (ours, twin))
    return {"difference": float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))}
