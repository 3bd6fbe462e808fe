"""How many floating-point operations a model needs, by formula: products of matrices, two for each product and sum.

What is counted is what the published architecture asks for, padding of fixed shapes included and nothing computed
again. A product of weights costs 2 x rows x inputs x outputs; backwards once more for the gradient of the weights where
they are trained, and once more for that of what they read where anything before them is. A product of two activations
(attention) costs two more backwards. Frozen parts that nothing trained stands before cost their forward pass alone.
Left out, below one per cent together: resizing of maps and tables, norms, activations, losses without a product.

Letters as in `batch.py`; S cells of a map, D width, F hidden width of an MLP. docs/compile.md has the formulas.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.eva_vit import EvaVitConfig
from pixel_align.nn.image_features import encoders, extent, grid, output_width
from pixel_align.nn.roi_extractor import RoiExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.pyramid import pyramid_levels

ROI_SIZE = 7  # bins of a side that the detector reads of a box
SAM_SCALE = 4  # cells of a mask, a side, for each cell of SAM's map


@dataclasses.dataclass
class Flops:
    """Floating-point operations by part, of the forward pass and of the backward pass."""

    forward: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    backward: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def weights(self, part: str, flops: float, trained: bool, reached: bool) -> None:
        """Products with weights. reached: whether what they read hangs on anything trained."""
        self.forward[part] += round(flops)
        self.backward[part] += round(flops * (trained + reached))

    def activations(self, part: str, flops: float, reached: bool) -> None:
        """Products of activations with each other."""
        self.forward[part] += round(flops)
        self.backward[part] += round(2 * flops * reached)

    @property
    def total(self) -> int:
        return sum(self.forward.values()) + sum(self.backward.values())

    def by_part(self) -> dict[str, int]:
        """Forward and backward together."""
        return dict(self.forward + self.backward)


def of_step(batches: Iterable[tuple[PixelLLMConfig, int]]) -> Flops:
    """A training step on batches of these models and sizes."""
    total = Flops()
    for config, size in batches:
        _add(total, config, size, train=True)
    return total


def of_answers(config: PixelLLMConfig, size: int, *, spoken: bool, masks: bool = False) -> Flops:
    """What it takes to encode pictures and to read, or to write (`spoken`), the texts of a batch."""
    total = Flops()
    _add(total, config, size, train=False, spoken=spoken, masks=masks)
    return total


def _add(
    total: Flops, config: PixelLLMConfig, size: int, *, train: bool, spoken: bool = True, masks: bool = True
) -> None:
    """The parts in the order of `PixelLLM.__call__`."""
    shape, trained = config.shape, _Trained(config, train)
    for name, encoder in encoders(config.image).items():
        learns = train and not encoder.frozen
        count = _eva if isinstance(encoder, EvaVitConfig) else _sam
        count(total, f"image/{name}", encoder, shape.canvas, size, learns)  # type: ignore[arg-type]
    if config.detector.enabled and shape.described:
        _detector(total, config, size, train, trained)
    _extractor(total, config, size, trained)
    q, d = config.extractor.queries, config.text.width
    rows = size * shape.prompts * q
    total.weights("extractor", 2 * rows * config.extractor.output_width * d, trained.extractor, trained.visual)
    _text(total, config, size, trained, spoken)
    rows = size * shape.regions * shape.text
    head = config.location
    sizes = [d, *[head.hidden_width] * head.hidden_layers, 2 * head.points]
    total.weights("location", 2 * rows * _layers(sizes), trained.location, trained.text)
    if config.alignment.enabled and shape.prompts == 1:
        learns, width = train and not config.alignment.frozen, config.alignment.width
        total.weights("alignment", 2 * rows * d * width, learns, trained.text)
        total.weights("alignment", 2 * size * q * config.extractor.output_width * width, learns, trained.visual)
        total.activations("alignment", 2 * rows * q * width, learns or trained.text)
    if config.regions.enabled and train:
        learns, head_width = not config.regions.frozen, config.regions.hidden_width
        h, w = grid(config.image, shape.canvas)
        asked = [(h * w, output_width(config.image), trained.features)] * config.regions.on_map
        asked += [(q, config.extractor.output_width, trained.visual)] * config.regions.on_queries
        if config.regions.on_queries and config.regions.on_prompts and shape.prompts > 1:
            asked += [(shape.prompts * q, config.extractor.output_width, trained.visual)]
        for anchors, width, reached in asked:
            total.weights("regions", 2 * size * anchors * width * head_width, learns, reached)
            pieces = 2 * size * anchors * head_width * (5 + config.text.vocab_size)
            total.weights("regions", pieces, learns, learns or reached)
    if config.masks.enabled and masks and (shape.mask or not train):
        _masks(total, config, size, train, trained)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Which parts are trained, and what hangs on anything trained: where gradients have to pass."""

    config: PixelLLMConfig
    train: bool

    @property
    def features(self) -> bool:
        return self.train and any(not encoder.frozen for encoder in encoders(self.config.image).values())

    @property
    def extractor(self) -> bool:
        return self.train and not self.config.extractor.frozen

    @property
    def prompt(self) -> bool:
        return self.train and not self.config.prompt.frozen

    @property
    def visual(self) -> bool:
        return self.features or self.extractor or self.prompt

    @property
    def base(self) -> bool:
        return self.train and not self.config.text.frozen

    @property
    def lora(self) -> bool:
        return self.train and self.config.text.lora.rank > 0 and not self.config.text.lora.frozen

    @property
    def text(self) -> bool:
        return self.visual or self.base or self.lora

    @property
    def location(self) -> bool:
        return self.train and not self.config.location.frozen


class _TwoWay(Protocol):
    """What the configs of parts that hold a two-way transformer have in common."""

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def mlp_width(self) -> int: ...


def _layers(widths: Sequence[int]) -> int:
    """Inputs times outputs of linear layers one after the other."""
    return sum(a * b for a, b in itertools.pairwise(widths))


def _window(side: int, stride: int = 1) -> int:
    """Cells that a 3 x 3 window of padding 1 meets on a square map: those on padding cost nothing."""
    out = -(-side // stride)
    return sum(0 <= stride * o + k - 1 < side for o in range(out) for k in range(3)) ** 2


def _eva(total: Flops, part: str, c: EvaVitConfig, canvas: int, size: int, trained: bool) -> None:
    """The class token is one row more."""
    cells = c.grid(canvas) ** 2
    total.weights(part, 2 * size * cells * 3 * c.patch_size**2 * c.width, trained, False)
    rows = cells + 1
    layer = 2 * rows * c.width * (4 * c.width + 3 * c.mlp_width)
    total.weights(part, size * c.depth * layer, trained, trained)
    total.activations(part, size * c.depth * 4 * rows**2 * c.width, trained)


def _sam(total: Flops, part: str, c: SamVitConfig, canvas: int, size: int, trained: bool) -> None:
    """Windows at the edges are filled up, as published, and take part."""
    side, d = c.grid(canvas), c.width
    cells = side**2
    if c.stem == "patch":
        total.weights(part, 2 * size * cells * 3 * c.patch_size**2 * d, trained, False)
    else:
        halvings = c.patch_size.bit_length() - 1
        widths = [3, *(max(8, d >> (halvings - 1 - i)) for i in range(halvings))]
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            total.weights(part, 2 * size * _window(canvas >> i, 2) * a * b, trained, trained and i > 0)
        total.weights(part, 2 * size * cells * widths[-1] * d, trained, trained)
    whole = len(c.global_blocks)
    for layers, rows, reach in (
        (c.depth - whole, (-(-side // c.window) * c.window) ** 2 if c.window else cells, c.window or side),
        (whole, cells, side),
    ):
        linear = 2 * rows * 4 * d**2 + 2 * cells * 2 * c.mlp_ratio * d**2
        relative = 2 * rows * 2 * reach * d  # each query with a row and a column of the table
        total.weights(part, size * layers * (linear + relative), trained, trained)
        total.activations(part, size * layers * 4 * rows * reach**2 * d, trained)
    neck = cells * d * c.output_width + _window(side) * c.output_width**2
    total.weights(part, 2 * size * neck, trained, trained)


def _two_way(
    total: Flops, part: str, c: _TwoWay, sets: int, tokens: int, cells: int, trained: bool, reached: bool
) -> None:
    """Tokens [sets, tokens, W] and an image [sets, cells, W]; cross-attention runs at half the width."""
    w, reached = c.width, trained or reached
    cross = 2 * (tokens + cells) * w * w  # query and output of one side, key and value of the other, at half the width
    layer = 2 * tokens * 4 * w**2 + 2 * cross + 2 * tokens * 2 * w * c.mlp_width
    total.weights(part, sets * (c.depth * layer + cross), trained, reached)
    attended = c.depth * 4 * tokens**2 * w + (2 * c.depth + 1) * 2 * tokens * cells * w
    total.activations(part, sets * attended, reached)


def _extractor(total: Flops, config: PixelLLMConfig, size: int, trained: _Trained) -> None:
    c, shape, part = config.extractor, config.shape, "extractor"
    h, w = grid(config.image, shape.canvas)
    width, prompt_width, prompts = output_width(config.image), config.prompt.width, size * shape.prompts
    if isinstance(c, RoiExtractorConfig):
        read = 2 * prompts * (c.side * h * w + c.side**2 * w) * width
        total.weights(part, read, False, trained.features)
        linear = 2 * prompts * (c.queries * width + prompt_width) * c.output_width
        total.weights(part, linear, trained.extractor, trained.features)
        return
    prompt_tokens = 2 + config.prompt.padding_tokens + (shape.prompt_points + 1 if shape.prompt_points else 0)
    projected = 2 * prompts * prompt_tokens * prompt_width * c.width
    projected += 2 * h * w * prompt_width * c.width  # the code of the grid, once for all pictures
    if shape.prompt_mask:
        projected += 2 * prompts * h * w * prompt_width * c.width
    total.weights(part, projected, trained.extractor, trained.prompt)
    total.weights(part, 2 * size * h * w * width * c.width, trained.extractor, trained.features)
    _two_way(total, part, c, prompts, c.queries + prompt_tokens, h * w, trained.extractor, trained.visual)
    total.weights(part, 2 * prompts * c.queries * c.width * c.output_width, trained.extractor, trained.visual)


def _text(total: Flops, config: PixelLLMConfig, size: int, trained: _Trained, spoken: bool) -> None:
    """The prefix is read, then the text; a text that is written reads its tokens one by one, which costs the same."""
    c, shape = config.text, config.shape
    texts, s, t = size * shape.regions, config.extractor.queries + shape.instruction, shape.text
    inner = c.num_heads * c.head_dim

    def rows(count: int, targets: Mapping[str, tuple[int, int]]) -> None:
        """Linear layers, name -> (inputs, outputs), and their adapters on so many rows of each text."""
        base = sum(a * b for a, b in targets.values())
        total.weights("text", 2 * texts * count * base, trained.base, trained.text)
        small = sum(c.lora.rank_of(name.rstrip("_01")) * (a + b) for name, (a, b) in targets.items())
        total.weights("text", 2 * texts * count * small, trained.lora, trained.text)

    def attend(count: int, keys: int) -> None:
        total.activations("text", 4 * texts * count * keys * inner, trained.text)

    reads = {"query": (c.width, inner), "out": (inner, c.width)}
    is_read = {"key": (c.width, inner), "value": (c.width, inner)}
    if isinstance(c, BertConfig):
        mlp = {"wi": (c.width, c.mlp_dim), "wo": (c.mlp_dim, c.width)}
        for count, keys in ((s, s), (t, s + t)):
            for _ in range(c.layers):
                rows(count, {**reads, **is_read, **mlp})
                attend(count, keys)
    else:
        mlp = {"wi_0": (c.width, c.mlp_dim), "wi_1": (c.width, c.mlp_dim), "wo": (c.mlp_dim, c.width)}
        for _ in range(c.encoder_layers):
            rows(s, {**reads, **is_read, **mlp})
            attend(s, s)
        for _ in range(c.decoder_layers):
            rows(t, {**reads, **is_read, **mlp})
            rows(t, reads)
            rows(s, is_read)
            attend(t, t + s)
    if spoken:
        said = texts * (t - 1 if trained.train else t)
        total.weights("vocabulary", 2 * said * c.width * c.vocab_size, trained.base, trained.text)


def _masks(total: Flops, config: PixelLLMConfig, size: int, train: bool, trained: _Trained) -> None:
    shape, adapter, decoder = config.shape, config.masks.adapter, config.masks.decoder
    learns = train and not adapter.frozen
    q, d, n = config.extractor.queries, config.text.width, size * shape.regions
    read = size * shape.prompts * q + n * shape.text
    total.weights("mask_adapter", 2 * read * d * adapter.width, learns, trained.text)
    _two_way(total, "mask_adapter", adapter, n, adapter.queries, q + shape.text, learns, trained.text)
    part, w, reached = "mask_decoder", decoder.width, learns or trained.text
    learns = train and not decoder.frozen
    cells = encoders(config.image)["sam"].grid(shape.canvas) ** 2
    tokens = 1 + decoder.alternatives + 1 + 2  # quality, masks, the corners of the box
    _two_way(total, part, decoder, n, tokens, cells, learns, reached)
    reached = reached or learns
    grown = cells * w * w + 4 * cells * (w // 4) * (w // 2)
    vectors = (1 + decoder.alternatives) * _layers([w, w, w, w // 8])
    quality = _layers([w, decoder.quality_width, decoder.quality_width, 1 + decoder.alternatives])
    total.weights(part, 2 * n * (grown + vectors + quality), learns, reached)
    total.activations(part, 2 * n * SAM_SCALE**2 * cells * (w // 8), reached)


def _detector(total: Flops, config: PixelLLMConfig, size: int, train: bool, trained: _Trained) -> None:
    c, canvas, part = config.detector, config.shape.canvas, "detector"
    learns = train and not c.frozen
    h, w = grid(config.image, canvas)
    width, reached = output_width(config.image), learns or trained.features
    sides = [level.shape[0] for level in pyramid_levels(h, w, extent(config.image, canvas))]
    fine, same, half, quarter, _ = sides
    first = same**2 * width * 4 * c.up_width + same**2 * width * c.width + half**2 * width * c.width
    total.weights(part, 2 * size * first, learns, trained.features)
    later = fine**2 * c.up_width * c.width
    later += sum(_window(side) for side in (fine, same, half)) * c.width**2
    later += sum(_window(side, 2) for side in (half, quarter)) * c.width**2
    towers = sum(_window(side) for side in sides) * (c.tower_layers * c.width**2 + c.width * 5)
    total.weights(part, 2 * size * (later + towers), learns, reached)
    boxes = size * (c.samples if train else c.proposals)
    # As `roi_align_levels` chooses: levels that no box on the canvas asks for cost nothing.
    levels = sides[: 1 + sum(canvas >= 224 * 2**i for i in range(len(sides) - 1))]
    read = sum(ROI_SIZE * side**2 + ROI_SIZE**2 * side for side in levels) * c.width
    total.weights(part, 2 * boxes * read, False, reached)
    refined = _layers([ROI_SIZE**2 * c.width, c.hidden_width, c.hidden_width, 6])
    total.weights(part, 2 * boxes * refined, learns, reached)
