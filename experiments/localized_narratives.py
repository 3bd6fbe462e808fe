"""Trace captioning on Localized Narratives: a sentence about a picture, and a place for every word.

    python -m data_pipelines build localized_narratives --annotations NARRATIVES.jsonl --images PHOTOGRAPHS --out DATA
    pixel-align train experiments/localized_narratives.py:small --workdir runs/ln --set data.dir=DATA \\
        --set data.vocabulary=spiece.model

The same in gin: `pixel-align train experiments/gin/localized_narratives/small.gin ... --gin.DataConfig.dir="'DATA'"`.

Presets:
  small: from nothing on a laptop; enough to memorise some hundred narratives. See docs/first_light.md for what was
    measured.
  bench: all parts of the published model at a size for two cores, random where it has public weights: runs, learns
    little. Its vocabulary has 4,096 pieces; with T5's own: --set model.text.vocab_size=32128. Accuracy unmeasured.
  sam_b_t5_small: the published parts at a size for one accelerator: SAM ViT-B and T5 small with LoRA. Unmeasured: needs
    public weights.
  t5_xl: the trace stage of PixelLLM with T5-XL as published (arXiv 2312.09237), after the stage below. Unmeasured.
  t5_xl_first_stage: captions from public weights, in place of the published first stage, whose weights (WebLI captions)
    were never released: EVA02-L, SAM ViT-H and Flan-T5-XL as their authors released them, brought together in one
    checkpoint folder; what nobody released starts from nothing (`init.new`). Steps and rate are ours. Unmeasured.
  bert, bert_first_stage, bench_bert: the same with the published BERT-style language model, which starts from nothing
    and is trained whole. Unmeasured.

The two stages of T5-XL also read COCO captions:

    python -m data_pipelines build coco_captions --annotations captions_train2017.json --images train2017 --out DATA
    pixel-align train experiments/localized_narratives.py:t5_xl_first_stage --workdir runs/t5_xl_first_stage \\
        --set init.checkpoint=CONVERTED --set data.dir=DATA --set data.vocabulary=spiece.model
    pixel-align train experiments/localized_narratives.py:t5_xl --workdir runs/t5_xl --set data.dir=DATA \\
        --set init.checkpoint=runs/t5_xl_first_stage --set data.vocabulary=spiece.model

Where t5_xl is not the published recipe: words take their places by the text, not by proportion (the published rule:
`--set data.mixture=trace_stage_proportional`); examples of both tasks mix inside a batch, where a published batch was
of one task; every caption is an example, where a published picture gave all its captions; captions are not cropped at
random; frozen parts run without dropout and drop-path.

Accuracy on the public data sets: unmeasured.
"""

import dataclasses

from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import LossConfig, PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.optim import Optim


def get_config(preset: str = "small"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {
        "small": small,
        "bench": bench,
        "sam_b_t5_small": sam_b_t5_small,
        "t5_xl": t5_xl,
        "t5_xl_first_stage": t5_xl_first_stage,
        "bert": bert,
        "bert_first_stage": bert_first_stage,
        "bench_bert": bench_bert,
    }
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
                queries=16, width=width, depth=2, num_heads=4, mlp_width=128, output_width=width, scan=False
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
        data=DataConfig(batch_size=8),
        optim=Optim(peak_lr=2e-3, warmup_steps=100, b2=0.98),
        train=Train(steps=2000, log_every=10, checkpoint_every=500),
        evals=(
            Eval(task="localized_narratives_coco", split="train", every=500, limit=64, batch_size=16),
            Eval(task="localized_narratives_coco", split="validation", every=500, batch_size=16),
        ),
    )


def bench() -> Experiment:
    """24.7M parameters, 7.5M of them trained: both image encoders, the extractor, T5 with LoRA, all small."""
    return Experiment(
        model=PixelLLMConfig.bench(),
        data=DataConfig(batch_size=8),
        optim=dataclasses.replace(Optim(), clip_norm=0.0),
        train=Train(steps=2000, log_every=10, checkpoint_every=500),
        evals=(Eval(task="localized_narratives_coco", every=1000, limit=64, batch_size=8),),
    )


def bench_bert() -> Experiment:
    """The same with BERT: 18.3M parameters."""
    return dataclasses.replace(bench(), model=PixelLLMConfig.bench(text=BertConfig.bench()))


def sam_b_t5_small() -> Experiment:
    """SAM ViT-B frozen, T5 1.1 small frozen with LoRA of rank 32 on query and value, the published extractor and
    recipe.
    """
    return Experiment(
        model=PixelLLMConfig(
            shape=Shape(canvas=384, text=128, instruction=8),
            image=SamVitConfig.vit_b(frozen=True),
            prompt=PromptEncoderConfig(frozen=True),
            text=T5Config.small(lora=LoRAConfig(rank=32), frozen=True),
        ),
        optim=dataclasses.replace(Optim(), clip_norm=0.0),
        evals=(Eval(task="localized_narratives_coco", every=1000),),
    )


def t5_xl() -> Experiment:
    """The published trace stage with T5-XL: COCO captions 1 to narratives 2, at batch 256 for 10,000 steps.

    EVA02-L, the extractor, LoRA of rank 32 and the location head are trained; SAM ViT-H, the prompt encoder and T5 are
    frozen. The rate of 5e-5, 250 steps of warm-up and the loss weights are the defaults of `Optim` and `LossConfig`.
    """
    return Experiment(
        model=PixelLLMConfig.published(),
        data=DataConfig(modules=("data_pipelines.mixtures",), mixture="trace_stage", batch_size=256),
        optim=dataclasses.replace(Optim(), clip_norm=0.0),
        train=Train(steps=10_000),
        evals=(Eval(task="localized_narratives_coco", every=1000, limit=1000),),
        init=Init(checkpoint="runs/t5_xl_first_stage"),
    )


def t5_xl_first_stage() -> Experiment:
    """Captions alone, from public weights: what the trace stage starts from. Steps and rate are ours."""
    last = t5_xl()
    return dataclasses.replace(
        last,
        data=dataclasses.replace(last.data, mixture="coco_captions"),
        optim=dataclasses.replace(last.optim, peak_lr=1e-4, warmup_steps=1000),
        train=Train(steps=20_000),
        evals=(),
        init=Init(
            checkpoint="checkpoints/eva02_l_sam_h_flan_t5_xl",
            # Nobody released weights of these.
            new=("extractor/.*", "visual_.*", "location/.*", ".*/lora/.*"),
        ),
    )


def bert() -> Experiment:
    """The published trace stage with BERT, which is trained whole."""
    return dataclasses.replace(
        t5_xl(), model=PixelLLMConfig.published_bert(), init=Init(checkpoint="runs/bert_first_stage")
    )


def bert_first_stage() -> Experiment:
    """Captions alone, from public weights of the image encoders. Steps and rate are ours."""
    return dataclasses.replace(
        t5_xl_first_stage(),
        model=PixelLLMConfig.published_bert(),
        init=Init(
            checkpoint="checkpoints/eva02_l_sam_h",
            # Nobody released weights of a BERT that reads a prefix.
            new=("extractor/.*", "visual_.*", "location/.*", "text/.*"),
        ),
    )
