"""Trace captioning on Localized Narratives: a sentence about a picture, and a place for every word.

    python -m data_pipelines build localized_narratives --annotations NARRATIVES.jsonl --images PHOTOGRAPHS --out DATA
    pixel-align train experiments/localized_narratives.py:small --workdir runs/ln --set data.dir=DATA \\
        --set data.vocabulary=spiece.model

Presets:
  small: from nothing on a laptop; enough to memorise some hundred narratives. See docs/first_light.md for what was
  measured.
  sam_b_t5_small: the published parts at a size for one accelerator: SAM ViT-B and T5 small with LoRA. Unmeasured: needs
    public weights.

Accuracy on the public data sets: unmeasured.
"""

import dataclasses

from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Train
from pixel_align.models.pixel_llm import LossConfig, PixelLLMConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.optim import Optim


def get_config(preset: str = "small"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {"small": small, "sam_b_t5_small": sam_b_t5_small}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}. Choose one of them.")
    return to_config_dict(presets[preset]())


def small() -> Experiment:
    """4.7M parameters, most of them T5's vocabulary; everything is trained, from nothing."""
    width = 64
    return Experiment(
        model=PixelLLMConfig(
            shape=Shape(canvas=128, text=112, instruction=8),
            image=SamVitConfig(
                patch_size=16,
                width=width,
                depth=2,
                num_heads=4,
                window=4,
                global_blocks=(1,),
                pretrain_grid=8,
                output_width=width,
                scan=False,
            ),
            prompt=PromptEncoderConfig(width=width),
            extractor=PromptExtractorConfig(
                queries=16, width=width, depth=2, num_heads=4, mlp_width=128, output_width=width
            ),
            text=T5Config(
                width=width,
                num_heads=4,
                head_dim=16,
                mlp_dim=128,
                encoder_layers=1,
                decoder_layers=2,
                dropout_rate=0.0,
                scan=False,
            ),
            location=LocationHeadConfig(hidden_width=128, presence=True),
            loss=LossConfig(label_smoothing=0.0),
        ),
        data=DataConfig(batch_size=16),
        optim=Optim(peak_lr=2e-3, warmup_steps=100, b2=0.98),
        train=Train(steps=2000, log_every=10, checkpoint_every=500),
        evals=(
            Eval(task="localized_narratives_coco", split="train", every=500, limit=64, batch_size=16),
            Eval(task="localized_narratives_coco", split="validation", every=500, batch_size=16),
        ),
    )


def sam_b_t5_small() -> Experiment:
    """SAM ViT-B frozen, T5 1.1 small frozen with LoRA of rank 32 on query and value, the published extractor and
    recipe.
    """
    return Experiment(
        model=PixelLLMConfig(
            shape=Shape(canvas=384, text=128, instruction=8),
            image=SamVitConfig(width=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11), frozen=True),
            prompt=PromptEncoderConfig(frozen=True),
            text=T5Config.small(lora=LoRAConfig(rank=32), frozen=True),
        ),
        optim=dataclasses.replace(Optim(), clip_norm=0.0),
        evals=(Eval(task="localized_narratives_coco", every=1000),),
    )
