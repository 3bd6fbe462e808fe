"""Referring segmentation: the mask of what the words name, by Segment Anything's mask decoder.

    pixel-align train experiments/refcoco_masks.py --workdir runs/refcoco_masks --set data.dir=DATA \\
        --set init.checkpoint=runs/refcoco --set data.vocabulary=spiece.model
    pixel-align predict photo.jpg --checkpoint runs/refcoco_masks --mode segment --text "the dog" --out dog.png

The published refseg stage (arXiv 2312.09237) after `experiments/refcoco.py`: only the mask adapter, ten times as fast,
and the location head are trained. SAM's mask decoder is SAM ViT-H's: it has to lie in init.checkpoint beside the rest.

Published for T5-XL, theirs: cIoU of RefCOCO val/testA/testB 77.2/79.2/74.0, RefCOCO+ 69.2/73.0/64.4, RefCOCOg val/test
70.1/72.0. With this code: unmeasured.

Where it is not the published recipe: padding counts in no loss (published: in dice).
"""

import dataclasses

from experiments import refcoco
from pixel_align.config import Experiment, to_config_dict
from pixel_align.experiment import Init
from pixel_align.models.pixel_llm import MasksConfig, PixelLLMConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.mask_adapter import MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoderConfig


def get_config(preset: str = "t5_xl"):
    """The experiment of a preset as a locked ConfigDict."""
    if preset not in ("t5_xl", "bench"):
        raise ValueError(f"preset is {preset!r}, expected one of t5_xl, bench. Choose one of them.")
    return to_config_dict(t5_xl() if preset == "t5_xl" else bench())


def t5_xl() -> Experiment:
    """The published refseg stage: 60,000 steps; what is trained is 5.9M parameters."""
    before = refcoco.t5_xl()
    return dataclasses.replace(
        before,
        model=with_masks(before.model),
        optim=dataclasses.replace(before.optim, warmup_steps=500),
        train=dataclasses.replace(before.train, steps=60_000),
        evals=refcoco.evaluations("segment"),
        # SAM's decoder must lie in that checkpoint, or be named as unread: a frozen one from nothing would be none.
        init=Init(checkpoint="runs/refcoco", new=("mask_adapter/.*",)),
    )


def bench() -> Experiment:
    """The same at the size of `PixelLLMConfig.bench`, from nothing."""
    before = refcoco.bench()
    return dataclasses.replace(before, model=with_masks(before.model))


def with_masks(model: PixelLLMConfig) -> PixelLLMConfig:
    """A model of the ref stage -> that of the refseg stage: masks, and everything frozen but them and the places."""
    image = model.image
    assert isinstance(image, FusionConfig)
    frozen = dataclasses.replace(model.text.lora, frozen=True)
    return dataclasses.replace(
        model,
        shape=dataclasses.replace(model.shape, mask=model.shape.canvas),
        image=dataclasses.replace(image, eva=dataclasses.replace(image.eva, frozen=True)),
        prompt=dataclasses.replace(model.prompt, masks=True),
        extractor=dataclasses.replace(model.extractor, frozen=True),
        text=dataclasses.replace(model.text, lora=frozen),
        masks=MasksConfig(
            enabled=True, decoder=MaskDecoderConfig(frozen=True), adapter=MaskAdapterConfig(lr_multiplier=10.0)
        ),
    )
