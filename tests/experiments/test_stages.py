"""Joint stages as they stand, at a tiny size, three steps on drawn scenes: they hold all that the other stages do."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import multitask_masks
from pixel_align import data, models, optim, param_rules, state, text
from pixel_align.batch import Shape
from pixel_align.data import DataConfig
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.nn.eva_vit import EvaVitConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.mask_adapter import MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoderConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.train import make_train_step

CANVAS, STEPS = 64, 3
TINY = (
    *(BertConfig, BoxDecoderConfig, EvaVitConfig, LocationHeadConfig, MaskAdapterConfig, MaskDecoderConfig),
    *(PromptEncoderConfig, PromptExtractorConfig, SamVitConfig, T5Config),
)
# What a part keeps of the stage when it becomes tiny.
KEPT = ("frozen", "layer_decay", "lr_multiplier", "enabled", "masks", "padding_tokens", "lora", "presence")
MIXTURES = {
    "localized_narratives_coco": "synthetic_narratives",
    "coco_captions": "synthetic_narratives",
    "ref_stage": "synthetic_expressions",
    "visual_genome_densecap": "synthetic_densecap",
    "sharegpt4v_mix665k_short": "synthetic_questions",
    "sharegpt4v_mix665k_long": "synthetic_questions",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with all that is told about them, built, and a vocabulary of their words."""
    from data_pipelines import localized_narratives, synthetic, synthetic_regions

    folder = tmp_path_factory.mktemp("stages")
    files = synthetic.write(synthetic.easy(), folder / "raw", 12, seed=0, also=("expressions", "regions", "questions"))
    inputs = localized_narratives.Inputs(
        annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
    )
    localized_narratives.build(folder / "data", "train", inputs, name="synthetic_narratives")
    synthetic_regions.build(folder / "data", files, "train")
    captions = [json.loads(line)["caption"] for line in files.narratives.read_text(encoding="utf-8").splitlines()]
    text.train_sentencepiece(captions, folder / "t5.model", 100, model_type="bpe")
    text.train_wordpiece(captions, folder / "bert.txt", 64)
    return folder


def tiny(part: Any) -> Any:
    """A part of a stage's model at its tiny size, with all that is said about how it is trained."""
    kept = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name in KEPT}
    if isinstance(part, MaskAdapterConfig | MaskDecoderConfig):
        kept["width"] = 64
    return type(part).tiny(**kept)


def at_tiny_size(config: Experiment, world: Path, vocabulary: text.Vocabulary) -> Experiment:
    """The stage: its losses, rates, frozen parts and groups of batches, of other sizes, on other data."""

    def smaller(shape: Shape) -> Shape:
        # Distinct lengths stay distinct: which text goes into which batch is part of what is tried.
        finds = min(shape.regions, 4)
        return dataclasses.replace(
            shape,
            canvas=CANVAS,
            regions=finds,
            prompts=min(shape.prompts, finds),
            text=max(6, shape.text // 6),
            instruction=6,
            described=min(shape.described, 12),
            mask=min(shape.mask, CANVAS),
        )

    model = config.model
    assert isinstance(model, PixelLLMConfig) and isinstance(model.image, FusionConfig)
    small = dataclasses.replace(
        model,
        shape=smaller(model.shape),
        image=FusionConfig(eva=tiny(model.image.eva), sam=tiny(model.image.sam)),
        prompt=tiny(model.prompt),
        extractor=tiny(model.extractor),
        text=dataclasses.replace(tiny(model.text), vocab_size=vocabulary.size),
        location=tiny(model.location),
        detector=tiny(model.detector),
        masks=dataclasses.replace(model.masks, decoder=tiny(model.masks.decoder), adapter=tiny(model.masks.adapter)),
    )
    return dataclasses.replace(
        config,
        model=small,
        data=DataConfig(
            modules=("data_pipelines.localized_narratives", "data_pipelines.synthetic_regions"),
            mixture=MIXTURES[config.data.mixture],
            dir=str(world / "data"),
            batch_size=2,
            further=tuple(
                dataclasses.replace(group, mixture=MIXTURES[group.mixture], batch_size=2, shape=smaller(group.shape))
                for group in config.data.further
                if group.shape is not None
            ),
            workers=1,
            prefetch=1,
        ),
        optim=dataclasses.replace(config.optim, warmup_steps=1),
        train=dataclasses.replace(config.train, steps=STEPS + 1),
        evals=(),
    )


def trained(config: Experiment, vocabulary: text.Vocabulary) -> tuple[Any, Any, list[dict[str, float]]]:
    """Parameters before and after three steps, and what was said of each."""
    family = models.family_of(config.model)
    rules, params = family.rules(config.model), jax.jit(lambda: state.init_params(config))()
    before = jax.tree.map(np.asarray, params)
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    now = state.make_state(config, params, rules, optimizer)
    step = jax.jit(make_train_step(config, optimizer))
    streams = [(read, family.converter(model, vocabulary, read.augment)) for model, read in config.batches()]
    said = []
    with data.Steps(streams, None) as steps:
        for _ in range(STEPS):
            now, metrics = step(now, next(steps)[0])
            said.append({name: float(value) for name, value in metrics.items()})
    return before, jax.tree.map(np.asarray, now.params), said


@pytest.mark.parametrize(
    ("stage", "words"),
    [(multitask_masks.bert, "bert.txt")],
    ids=["joint with masks, BERT"],
)
def test_three_steps_of_a_joint_stage(stage: Any, words: str, world: Path) -> None:
    """Every loss of every task is there and finite; what is to be trained has moved, and nothing else."""
    vocabulary = text.load_vocabulary(world / words)
    config = at_tiny_size(stage(), world, vocabulary)
    before, after, said = trained(config, vocabulary)
    expected = {"text", "point", "detector_heat", "detector_proposal_boxes", "detector_foreground"}
    expected |= {"detector_refinement"} | ({"mask"} if config.model.masks.enabled else set())  # type: ignore[attr-defined]
    for metrics in said:
        assert {f"loss_{name}" for name in expected} <= metrics.keys()
        assert np.isfinite(list(metrics.values())).all()
        assert all(metrics[f"loss_{name}"] > 0 for name in expected)
    rules = models.family_of(config.model).rules(config.model)
    meant = param_rules.paths(param_rules.match(rules["trainable"], before))
    old, new = param_rules.paths(before), param_rules.paths(after)
    moved = {path.split("/")[0] for path in old if not np.array_equal(old[path], new[path])}
    assert moved == {path.split("/")[0] for path in old if meant[path]}
    assert all(np.array_equal(old[path], new[path]) for path in old if not meant[path])
