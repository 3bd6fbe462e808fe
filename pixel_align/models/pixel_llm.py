"""PixelLLM: image encoder, prompt encoder and extractor, language model, location head, put together.

Source: Pixel Aligned Language Models (arXiv 2312.09237). A picture and a location become visual tokens; the language
model reads them as a prefix, with the words that ask; the state that has read a word says where that word is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixel_align import geometry, losses, losses_detection, param_rules, pyramid
from pixel_align.batch import (
    Batch,
    Described,
    DetectorOutputs,
    Masks,
    Outputs,
    PromptPoints,
    RegionOutputs,
    RegionTargets,
    Shape,
    spec,
)
from pixel_align.models.family import ModelConfig
from pixel_align.nn import (
    alignment_head,
    box_decoder,
    eva_vit,
    language_model,
    location_head,
    mask_adapter,
    mask_decoder,
    partitioning,
    prompt_encoder,
    prompt_extractor,
    region_head,
    roi_extractor,
    sam_vit,
)
from pixel_align.nn.alignment_head import AlignmentHead, AlignmentHeadConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.blocks import LayerNorm
from pixel_align.nn.box_decoder import BoxDecoder, BoxDecoderConfig
from pixel_align.nn.eva_vit import EvaVitConfig
from pixel_align.nn.image_features import FusionConfig, ImageFeatures, encoders, extent, fuse, grid
from pixel_align.nn.language_model import LanguageModelConfig
from pixel_align.nn.location_head import LocationHead, LocationHeadConfig
from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.mask_adapter import MaskAdapter, MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoder, MaskDecoderConfig
from pixel_align.nn.prompt_encoder import PromptEncoder, PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractor, PromptExtractorConfig
from pixel_align.nn.region_head import RegionHead, RegionHeadConfig, grid_anchors, query_anchors, query_grid
from pixel_align.nn.roi_extractor import RoiExtractor, RoiExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config

MASK_CELLS = 4  # of a mask, a side, for each cell of SAM's map


@dataclasses.dataclass(frozen=True)
class MasksConfig:
    """Segmentation: SAM's mask decoder, asked with the predicted box and a correction that is learned."""

    enabled: bool = False
    decoder: MaskDecoderConfig = dataclasses.field(default_factory=MaskDecoderConfig)
    adapter: MaskAdapterConfig = dataclasses.field(default_factory=MaskAdapterConfig)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; published values are the defaults, but for presence, alignment and regions, which are not
    published and count only where the model has their heads.
    """

    text: float = 1.0
    point: float = 0.1  # of an L1 distance in canvas pixels
    presence: float = 0.1  # of the cross-entropy of "has a place", where the head says it
    alignment: float = 1.0  # of the cross-entropy of the query that a word means, where the head says it
    map_regions: float = 1.0  # dense first stage on the image map
    query_regions: float = 1.0  # dense first stage on the extractor's queries
    mask: float = 1.0  # of 20 focal + dice + error of the predicted IoU
    detector: float = 1.0  # of 0.5 heat + GIoU + cross-entropy + L1 of the refinement
    label_smoothing: float = 0.1


@dataclasses.dataclass(frozen=True)
class PixelLLMConfig(ModelConfig):
    """The whole model. Each part's settings stand beside the part."""

    kind: str = "pixel_llm"
    shape: Shape = dataclasses.field(default_factory=lambda: Shape(canvas=384, text=128, instruction=8))
    image: SamVitConfig | EvaVitConfig | FusionConfig = dataclasses.field(default_factory=SamVitConfig)
    prompt: PromptEncoderConfig = dataclasses.field(default_factory=PromptEncoderConfig)
    extractor: PromptExtractorConfig | RoiExtractorConfig = dataclasses.field(default_factory=PromptExtractorConfig)
    text: LanguageModelConfig = dataclasses.field(default_factory=T5Config)
    location: LocationHeadConfig = dataclasses.field(default_factory=LocationHeadConfig)
    alignment: AlignmentHeadConfig = dataclasses.field(default_factory=AlignmentHeadConfig)
    regions: RegionHeadConfig = dataclasses.field(default_factory=RegionHeadConfig)
    masks: MasksConfig = dataclasses.field(default_factory=MasksConfig)
    detector: BoxDecoderConfig = dataclasses.field(default_factory=BoxDecoderConfig)
    rescore: bool = False  # dense captions are ranked by detection and words, not by detection alone (published: False)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """All parts of the published model at a size for tests: 0.5M parameters."""
        parts: dict[str, Any] = {
            "shape": Shape(canvas=112, text=12, instruction=4),
            "image": FusionConfig.tiny(),
            "prompt": PromptEncoderConfig.tiny(frozen=True),
            "extractor": PromptExtractorConfig.tiny(),
            "text": T5Config.tiny(vocab_size=256, lora=LoRAConfig(rank=4), frozen=True),
            "location": LocationHeadConfig.tiny(),
        }
        return cls(**{**parts, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """To measure speed at 224 px: 24.73M parameters, 7.54M of them trained."""
        parts: dict[str, Any] = {
            "shape": Shape(canvas=224, text=40, instruction=8),
            "image": FusionConfig.bench(),
            "prompt": PromptEncoderConfig.bench(frozen=True),
            "extractor": PromptExtractorConfig.bench(),
            "text": T5Config.bench(lora=LoRAConfig(rank=8), frozen=True),
            "location": LocationHeadConfig.bench(),
        }
        return cls(**{**parts, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """The model of the paper with T5-XL: 3,856M parameters, 369M of them trained."""
        parts: dict[str, Any] = {
            "image": FusionConfig.published(),
            "prompt": PromptEncoderConfig.published(frozen=True),
            "extractor": PromptExtractorConfig.published(),
            "text": T5Config.xl(lora=LoRAConfig(rank=32), frozen=True),
            "location": LocationHeadConfig.published(),
        }
        return cls(**{**parts, **changes})

    @classmethod
    def published_bert(cls, **changes: Any) -> Self:
        """The model of the paper with BERT: 1,076M parameters, 439M of them trained."""
        return cls.published(**{"text": BertConfig.published(), **changes})

    def __post_init__(self) -> None:
        if self.shape.points != self.location.points:
            raise ValueError(
                f"model.shape.points is {self.shape.points} and model.location.points is {self.location.points}, "
                "expected the same number. Set both."
            )
        geometry.points_per_side(self.shape.point_grid, self.shape.points)
        grid(self.image, self.shape.canvas)  # raises where an encoder cannot read that canvas
        if self.shape.prompt_points and isinstance(self.extractor, RoiExtractorConfig):
            raise ValueError(
                f"model.shape.prompt_points is {self.shape.prompt_points} with model.extractor.kind 'roi', expected 0: "
                "it reads the inside of boxes. Set it, or choose extractor.kind=two_way."
            )
        if self.shape.prompt_points and not self.prompt.points:
            raise ValueError(
                f"model.shape.prompt_points is {self.shape.prompt_points} and model.prompt.points is False, expected a "
                "prompt encoder that reads points. Set model.prompt.points=True."
            )
        if self.shape.prompt_mask and (
            not self.prompt.masks or not self.shape.prompt_points or self.shape.prompt_mask % 4
        ):
            raise ValueError(
                f"model.shape.prompt_mask is {self.shape.prompt_mask} with model.prompt.masks {self.prompt.masks} and "
                f"model.shape.prompt_points {self.shape.prompt_points}, expected a multiple of 4, True and at least 1: "
                "what is asked about by a mask is asked about by no box. Set them."
            )
        if self.masks.enabled:
            self._check_masks()
        most = int(self.detector.samples * self.detector.positive_fraction)
        if self.shape.described and (not self.detector.enabled or self.shape.regions > most):
            raise ValueError(
                f"model.shape.described is {self.shape.described} with model.detector.enabled {self.detector.enabled} "
                f"of at most {most} true samples and model.shape.regions {self.shape.regions}, expected a detector "
                "with at least as many of them as regions. Set model.detector.enabled=True, or fewer regions."
            )

    def _check_masks(self) -> None:
        sam = encoders(self.image).get("sam")
        if sam is None or not self.prompt.masks:
            raise ValueError(
                f"model.masks is enabled with image encoders {', '.join(encoders(self.image))} and model.prompt.masks "
                f"{self.prompt.masks}, expected sam among them and True. Choose image.kind=fusion or sam_vit, and set "
                "model.prompt.masks=True."
            )
        widths = (sam.output_width, self.prompt.width, self.masks.decoder.width, self.masks.adapter.width)
        if len(set(widths)) > 1:
            raise ValueError(
                f"widths of image.sam.output, prompt, masks.decoder and masks.adapter are {widths}, expected one "
                "value: what the mask decoder reads. Set them alike."
            )
        least = MASK_CELLS * sam.grid(self.shape.canvas)
        if self.shape.mask and not least <= self.shape.mask <= max(least, self.shape.canvas):
            raise ValueError(
                f"model.shape.mask is {self.shape.mask}, expected {least}, the side of predicted masks, to "
                f"{self.shape.canvas}, the canvas, or 0 where no masks are trained. Set it."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageMaps:
    """What is kept of a picture.

    Attributes:
      fused: Float[B, h, w, D], what the language model reads.
      sam: Float[B, h', w', D'], SAM's own map, which the mask decoder reads; None where there is none.
    """

    fused: jax.Array
    sam: jax.Array | None = None


class PixelLLM(nn.Module):
    """The model as methods, so that a picture is encoded once and asked many times; `__call__` joins them for
    training.
    """

    config: PixelLLMConfig

    def setup(self) -> None:
        c = self.config
        self.image = ImageFeatures(c.image)
        self.prompt = PromptEncoder(c.prompt)
        self.extractor = (
            RoiExtractor(c.extractor) if isinstance(c.extractor, RoiExtractorConfig) else PromptExtractor(c.extractor)
        )
        self.visual_projection = nn.Dense(c.text.width, dtype=c.text.dtype)
        self.visual_norm = LayerNorm(1e-5, dtype=c.text.dtype)
        self.text = language_model.language_model(c.text)
        self.location = LocationHead(c.location)
        if c.location.presence:
            self.presence = nn.Dense(1, dtype=jnp.float32)
        if c.alignment.enabled:
            self.alignment = AlignmentHead(c.alignment)
        if c.regions.enabled and c.regions.on_map:
            self.map_regions = RegionHead(c.regions, c.text.vocab_size)
        if c.regions.enabled and c.regions.on_queries:
            self.query_regions = RegionHead(c.regions, c.text.vocab_size)
        if c.masks.enabled:
            self.mask_adapter = MaskAdapter(c.masks.adapter)
            self.mask_decoder = MaskDecoder(c.masks.decoder)
        if c.detector.enabled:
            self.detector = BoxDecoder(c.detector, c.shape.canvas, extent(c.image, c.shape.canvas))

    def encode_image(self, images: jax.Array, valid_size: jax.Array, *, train: bool = False) -> ImageMaps:
        """UInt8[B, H, W, 3] on the canvas, Int[B, 2] (height, width) -> image features."""
        maps = self.image.maps(images, valid_size, train=train)
        return ImageMaps(fuse(list(maps.values())), maps["sam"] if self.config.masks.enabled else None)

    def encode_prompt(
        self,
        features: jax.Array,
        prompt_boxes: jax.Array,
        prompt_points: PromptPoints | None = None,
        prompt_masks: Masks | None = None,
    ) -> jax.Array:
        """Image features, boxes Float[B, M, 4] in [0, 1], points and masks -> visual tokens Float[B, M, Q, E]."""
        h, w = features.shape[1:3]
        covered = extent(self.config.image, self.config.shape.canvas)
        dense = None
        if prompt_masks is not None:
            dense = self.prompt.dense(prompt_masks.cells, prompt_masks.given)
            if dense.shape[2:4] != (h, w) or covered != 1:
                scale = jnp.asarray([h, w]) / (covered * jnp.asarray(dense.shape[2:4]))
                size = (*dense.shape[:2], h, w, dense.shape[4])
                dense = jax.image.scale_and_translate(dense, size, (2, 3), scale, jnp.zeros(2), "linear")
        elif self.config.prompt.masks or self.config.prompt.padding_tokens:
            dense = self.prompt.dense()  # "no mask", as published
        tokens, exist = self.prompt(prompt_boxes, self.config.shape.canvas, prompt_points)
        if isinstance(self.extractor, RoiExtractor):
            return self.extractor(features, prompt_boxes, tokens, covered)
        return self.extractor(features, self.prompt.grid(h, w, covered), tokens, exist, dense)

    def encode_prefix(
        self, visual: jax.Array, instruction_tokens: jax.Array, instruction_mask: jax.Array, *, train: bool = False
    ) -> tuple[Any, jax.Array]:
        """Visual tokens [B, M, Q, E] and instructions Int[B, N, C] -> the encoded prefix and its mask.

        Returns:
          What the language model made of B * N prefixes, which it alone reads, and Bool[B * N, Q + C].
        """
        b, n, _ = instruction_tokens.shape
        visual = self.visual_norm(self.visual_projection(visual))
        # Projected once; a prompt that all regions share is only now repeated.
        visual = jnp.broadcast_to(visual, (b, n, *visual.shape[2:])).reshape(b * n, *visual.shape[2:])
        instruction = self.text.embed(instruction_tokens.reshape(b * n, -1), train=train)
        mask = jnp.concatenate([jnp.ones(visual.shape[:2], bool), instruction_mask.reshape(b * n, -1)], axis=1)
        prefix = jnp.concatenate([visual, instruction.astype(visual.dtype)], axis=1)
        return self.text.encode(prefix, mask, train=train), mask

    def decode_text(self, tokens: jax.Array, prefix: Any, prefix_mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Int[B * N, T] -> text features Float[B * N, T, D]: feature t has read tokens 0 to t."""
        return self.text.decode(tokens, prefix, prefix_mask, train=train)

    def locate(self, features: jax.Array, valid_size: jax.Array) -> jax.Array:
        """Text features Float[B, ..., D] -> points Float32[B, ..., P, 2] in [0, 1] of the canvas.

        The head answers in fractions of the picture; the picture covers valid_size of the canvas.
        """
        fraction = valid_size[:, ::-1].astype(jnp.float32) / self.config.shape.canvas
        points = self.location(features)
        return points * fraction.reshape(fraction.shape[0], *([1] * (points.ndim - 2)), 2)

    def has_place(self, features: jax.Array) -> jax.Array | None:
        """Text features Float[..., D] -> logit Float32[...] that the last word has a place; None without that head."""
        return self.presence(features)[..., 0] if self.config.location.presence else None

    def boxes(self, points: jax.Array, tokens: jax.Array, valid_size: jax.Array) -> jax.Array:
        """The box of what a whole text names: that of its last word's points, ordered and inside the picture.

        Args:
          points: Float[B, N, T, P, 2], of the states that have read tokens Int[B, N, T].

        Returns:
          Float32[B, N, 4] in [0, 1] of the canvas.
        """
        last = last_word(tokens, self.config.text.end)
        last = jnp.broadcast_to(last[..., None, None, None], (*tokens.shape[:2], 1, *points.shape[3:]))
        points = jnp.take_along_axis(points, last, axis=2)[:, :, 0]
        fraction = valid_size[:, None, ::-1].astype(jnp.float32) / self.config.shape.canvas
        low, high = (jnp.clip(f(points, axis=2), 0, fraction) for f in (jnp.min, jnp.max))
        return jnp.concatenate([low, high], axis=-1)

    def segment(
        self, maps: ImageMaps, visual: jax.Array, text: jax.Array, tokens: jax.Array, boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The mask of each region.

        Args:
          visual: Float[B, M, Q, E], visual tokens. text: Float[B, N, T, D], text features of tokens Int[B, N, T].
          boxes: Float[B, N, 4], predicted.

        Returns:
          Logits Float32[B, N, 1, S, S] on the canvas and the predicted IoU Float32[B, N, 1].
        """
        assert maps.sam is not None  # kept where masks are enabled
        spoken = jnp.arange(tokens.shape[2]) <= last_word(tokens, self.config.text.end)[..., None]
        visual = self.visual_norm(self.visual_projection(visual))  # as the language model reads them
        corners = self.prompt.boxes(boxes, self.config.shape.canvas)[:, :, :2]
        corners = corners + self.mask_adapter(visual, text, spoken)
        code = self.prompt.grid(*maps.sam.shape[1:3])
        return self.mask_decoder(maps.sam, code, corners, dense=self.prompt.dense())

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        """The teacher-forced pass over a batch."""
        maps = self.encode_image(batch.images, batch.valid_size, train=train)
        features = maps.fused
        detector = None
        # A batch without descriptions pays for no detector, but parameters are made by any.
        if self.config.detector.enabled and (batch.described is not None or self.is_initializing()):
            detector, batch = self._detect(features, batch, train)
        visual = self.encode_prompt(features, batch.prompt_boxes, batch.prompt_points, batch.prompt_masks)
        prefix, mask = self.encode_prefix(visual, batch.instruction_tokens, batch.instruction_mask, train=train)
        b, n, t = batch.text_tokens.shape
        text = self.decode_text(batch.text_tokens.reshape(b * n, t), prefix, mask, train=train).reshape(b, n, t, -1)
        points = self.locate(text, batch.valid_size)
        masks = iou = None
        # A batch without masks pays for none, but parameters are made by any.
        if self.config.masks.enabled and (batch.masks is not None or self.is_initializing()):
            # As in use, where boxes are what was predicted; masks do not teach where the box is.
            boxes = jax.lax.stop_gradient(self.boxes(points, batch.text_tokens, batch.valid_size))
            masks, iou = self.segment(maps, visual, text, batch.text_tokens, boxes)
        return Outputs(
            text_features=self.text.drop_features(text, train=train),
            vocabulary_kernel=self.text.logits_kernel(),
            points=points,
            text_tokens=batch.text_tokens,
            text_mask=batch.text_mask,
            valid=batch.valid,
            prompt_boxes=batch.prompt_boxes,
            vocabulary_bias=self.text.logits_bias(),
            presence=self.has_place(text),
            alignment=self._alignment(text, visual),
            map_regions=self._map_regions(features),
            query_regions=self._query_regions(visual),
            prompt_regions=self._prompt_regions(visual),
            masks=masks,
            iou=iou,
            detector=detector,
        )

    def _detect(self, features: jax.Array, batch: Batch, train: bool) -> tuple[DetectorOutputs, Batch]:
        """What the detector says, and the batch with its finds as regions: those that stand for a true one, with the
        words of that one.
        """
        b, n, _ = batch.text_tokens.shape
        given = batch.described
        if given is None:  # only parameters are made
            given = Described(
                jnp.zeros((b, 1, 4)), jnp.zeros((b, 1), bool), batch.text_tokens[:, :1], batch.text_mask[:, :1]
            )
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        found = self.detector(features, batch.valid_size, given.boxes, given.mask, rng)
        if batch.described is None:
            return found, batch
        # Foreground stands first, in random order.
        chosen = found.matched[:, :n, None]
        return found, dataclasses.replace(
            batch,
            prompt_boxes=found.samples[:, :n],
            prompt_points=None,
            prompt_masks=None,
            text_tokens=jnp.take_along_axis(given.text_tokens, chosen, axis=1),
            text_mask=jnp.take_along_axis(given.text_mask, chosen, axis=1),
            valid=batch.valid & found.foreground[:, :n],
        )

    def _alignment(self, text: jax.Array, visual: jax.Array) -> jax.Array | None:
        """None also where prompts are parts of the picture: their words have no other place.

        Parameters are made by any batch.
        """
        if not self.config.alignment.enabled or (visual.shape[1] > 1 and not self.is_initializing()):
            return None
        return self.alignment(text, visual)

    def _map_regions(self, features: jax.Array) -> RegionOutputs | None:
        if not (self.config.regions.enabled and self.config.regions.on_map):
            return None
        b, h, w, d = features.shape
        anchors = grid_anchors(h, w, extent(self.config.image, self.config.shape.canvas))
        return RegionOutputs(*self.map_regions(features.reshape(b, h * w, d), anchors))

    def _query_regions(self, visual: jax.Array) -> RegionOutputs | None:
        if not (self.config.regions.enabled and self.config.regions.on_queries):
            return None
        # The first prompt is the whole picture in every task that has region targets.
        return RegionOutputs(*self.query_regions(visual[:, 0], query_anchors(visual.shape[2])))

    def _prompt_regions(self, visual: jax.Array) -> RegionOutputs | None:
        c = self.config.regions
        if not (c.enabled and c.on_queries and c.on_prompts) or visual.shape[1] == 1:
            return None
        visual = visual.reshape(-1, *visual.shape[2:])
        return RegionOutputs(*self.query_regions(visual, query_anchors(visual.shape[1])))


def loss(outputs: Outputs, batch: Batch, config: PixelLLMConfig) -> losses.Terms:
    """name -> (weight of the loss, (sum, count)) over the batch."""
    c = config.loss
    valid = outputs.valid[:, :, None]
    text_weights = (outputs.text_mask[..., 1:] & valid) * batch.weights.text[:, None, None]
    point_weights = (batch.locate & outputs.text_mask & valid) * batch.weights.point[:, None, None]
    terms: dict[str, tuple[float, losses.Sums]] = {}
    if c.text:
        sums = losses.text(
            outputs.text_features[:, :, :-1],
            # Gathered here once: left as it lies, it would be gathered for every chunk.
            partitioning.constrain(outputs.vocabulary_kernel, (None, "vocabulary")),
            outputs.text_tokens[..., 1:],
            text_weights,
            c.label_smoothing,
            outputs.vocabulary_bias,
            partitioning.parts("batch", len(outputs.text_features)),
        )
        terms["text"] = c.text, sums
    if c.point:
        sums = losses.point(outputs.points, batch.token_points, point_weights, config.shape.canvas)
        terms["point"] = c.point, sums
    if c.presence and outputs.presence is not None:
        # Only of texts that have places: where a data set has none, a word without a place says nothing.
        told = (outputs.text_mask & valid) * batch.weights.point[:, None, None]
        terms["presence"] = c.presence, losses.presence(outputs.presence, batch.locate, told)
    if c.alignment and outputs.alignment is not None:
        rows, columns = query_grid(config.extractor.queries)
        terms["alignment"] = (
            c.alignment,
            losses.alignment(
                outputs.alignment,
                batch.token_points,
                query_anchors(rows * columns),
                (1 / columns, 1 / rows),
                point_weights,
            ),
        )
    if c.mask and outputs.masks is not None and outputs.iou is not None and batch.masks is not None:
        asked = batch.masks.given * batch.valid * batch.weights.mask[:, None]
        terms["mask"] = (
            c.mask,
            losses.mask(outputs.masks, outputs.iou, batch.masks.cells, batch.valid_size, config.shape.canvas, asked),
        )
    on_map, covered = grid(config.image, config.shape.canvas), extent(config.image, config.shape.canvas)
    if c.detector and outputs.detector is not None and batch.described is not None:
        found = losses_detection.terms(
            outputs.detector,
            batch.described,
            pyramid.pyramid_levels(*on_map, covered),
            batch.valid_size,
            config.shape.canvas,
            batch.weights.region * batch.valid.any(axis=1),
            ranges=config.detector.ranges,
        )
        terms |= {f"detector_{name}": (c.detector * weight, sums) for name, (weight, sums) in found.items()}
    for name, weight, said, (rows, columns), part in (
        ("map_regions", c.map_regions, outputs.map_regions, on_map, covered),
        ("query_regions", c.query_regions, outputs.query_regions, query_grid(config.extractor.queries), 1.0),
    ):
        # A batch without objects, beside another one that has them, teaches nothing here.
        if said is None or not weight or batch.regions is None:
            continue
        anchors, spacing = grid_anchors(rows, columns, part), (part / columns, part / rows)
        # Rows that only fill a batch up have no region at all.
        region_weights = batch.weights.region * batch.valid.any(axis=1)
        terms[name] = weight, losses.regions(said, batch.regions, anchors, spacing, region_weights)
    if outputs.prompt_regions is not None and c.query_regions:
        rows, columns = query_grid(config.extractor.queries)
        # A prompt of the whole picture asks about no one thing in it.
        valid_box = (batch.valid_size[:, ::-1] / config.shape.canvas)[:, None]
        part = (outputs.prompt_boxes[..., :2] > 0).any(-1) | (outputs.prompt_boxes[..., 2:] < valid_box - 1e-6).any(-1)
        asked = outputs.valid * part * batch.weights.text[:, None]
        if batch.prompt_points is not None:
            asked *= batch.prompt_points.boxed
        sums = losses.regions(
            outputs.prompt_regions,
            _held(outputs, config.text.end),
            query_anchors(rows * columns),
            (1 / columns, 1 / rows),
            asked.reshape(-1),
        )
        terms["prompt_regions"] = c.query_regions, sums
    return terms


def _held(outputs: Outputs, end: int) -> RegionTargets:
    """What each prompt holds, B * M of them: one thing, in its box, with the pieces of its text."""
    tokens = outputs.text_tokens[..., 1:].reshape(-1, outputs.text_tokens.shape[-1] - 1)
    mask = outputs.text_mask[..., 1:].reshape(tokens.shape) & (tokens != end)
    # A phrase is a set of pieces here: each counts where it stands first.
    again = jnp.tril(tokens[:, :, None] == tokens[:, None], k=-1).any(axis=-1)
    boxes = outputs.prompt_boxes.reshape(-1, 1, 4)
    return RegionTargets(boxes, jnp.ones(boxes.shape[:2], bool), tokens[:, None], (mask & ~again)[:, None])


def last_word(tokens: jax.Array, end: int) -> jax.Array:
    """Int[..., T], BOS w1 .. wn EOS and what ends a text -> Int[...], where wn stands; the last token of a text that
    was cut before EOS.
    """
    ends = tokens == end
    return jnp.where(ends.any(-1), jnp.maximum(jnp.argmax(ends, axis=-1) - 1, 0), tokens.shape[-1] - 1)


def batch_spec(config: PixelLLMConfig, batch_size: int) -> Batch:
    """The abstract batch that the model reads."""
    return spec(config.shape, batch_size)


def rules(config: PixelLLMConfig) -> Mapping[str, param_rules.Rules]:
    """The four rule lists (see `param_rules.PartRules`), put together from the parts that the config uses."""
    projection = param_rules.PartRules(
        sharding=((r"kernel", ("fsdp", "tensor")), (r"bias", ())), weight_decay=((r"bias", 0.0), (r"kernel", 1.0))
    )
    small = param_rules.PartRules(sharding=((r".*", ()),), weight_decay=((r".*", 0.0),))
    # What brings visual tokens to the language model's width belongs to the extractor.
    read = ((r".*", not config.extractor.frozen),)
    parts = {
        f"image/{name}": eva_vit.rules(encoder) if isinstance(encoder, EvaVitConfig) else sam_vit.rules(encoder)
        for name, encoder in encoders(config.image).items()
    }
    parts |= {
        "prompt": prompt_encoder.rules(config.prompt),
        "extractor": roi_extractor.rules(config.extractor)
        if isinstance(config.extractor, RoiExtractorConfig)
        else prompt_extractor.rules(config.extractor),
        "visual_projection": dataclasses.replace(projection, trainable=read),
        "visual_norm": dataclasses.replace(small, trainable=read),
        "text": language_model.rules(config.text),
        "location": location_head.rules(config.location),
    }
    if config.location.presence:
        parts["presence"] = dataclasses.replace(
            small, weight_decay=projection.weight_decay, trainable=((r".*", not config.location.frozen),)
        )
    if config.alignment.enabled:
        parts["alignment"] = alignment_head.rules(config.alignment)
    if config.masks.enabled:
        parts["mask_adapter"] = mask_adapter.rules(config.masks.adapter)
        parts["mask_decoder"] = mask_decoder.rules(config.masks.decoder)
    if config.detector.enabled:
        parts["detector"] = box_decoder.rules(config.detector)
    for name, asked in (("map_regions", config.regions.on_map), ("query_regions", config.regions.on_queries)):
        if config.regions.enabled and asked:
            parts[name] = region_head.rules(config.regions)
    return param_rules.join(parts)
