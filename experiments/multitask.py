"""All tasks, one model: captions, narratives, referring expressions, dense captioning, questions.

    pixel-align train experiments/multitask.py --workdir runs/multitask --set data.dir=DATA \\
        --set init.checkpoint=runs/t5_xl_first_stage --set data.vocabulary=spiece.model
    pixel-align predict photo.jpg --checkpoint runs/multitask --mode answer --text "What is on the table?"

The published joint stage (arXiv 2312.09237): 240,000 steps of 128 pictures, begun where the trace stage begins, with
the weights COCO captions 3, narratives 1, Flickr30k 1, mixed RefCOCO 5, UNINEXT's Visual Genome 1, Visual Genome 5,
ShareGPT4V 5. It reads all sets that the stages before read, and two more:

    python -m data_pipelines build llava --annotations sharegpt4v_mix665k.json --images DATA_OF_LLAVA --out DATA
    python -m data_pipelines build flickr30k_entities ... ; python -m data_pipelines build refcoco --name uninext_vg ...

Every step takes a batch of each group of tasks, each with a shape of its own and as many pictures as its share of the
weights has of 128, in multiples of 8: narratives 8, captions 16, referring 40, dense captioning 32, questions with
short answers 24 and with long ones 8 (exactly: 6.1, 18.3, 42.7, 30.5, and 30.5 of questions together). Their losses
are joined by the weights themselves, which is what steps of one task each come to on average; published was such a
step, and one shape for all, 16 regions of 128 tokens.

Presets: t5_xl; bert, begun from runs/bert_first_stage; bench and bench_bert, from nothing, at a size for two cores.
Published figures: none. With this code: unmeasured.

Where it is not the published recipe, beside what the stages say: each task has room for texts as long as nearly all of
its own, which fills batches better (docs/recipes.md); all regions of a picture are learned.
"""

import dataclasses

from experiments import refcoco, visual_genome
from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.converter import Augment
from pixel_align.data import DataConfig, Group
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.optim import Optim

NARRATIVES, EXPRESSIONS = "localized_narratives_coco", "ref_stage"
SCALE = Augment(scale=(0.75, 1.25))


def get_config(preset: str = "t5_xl"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {"t5_xl": t5_xl, "bert": bert, "bench": bench, "bench_bert": bench_bert}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}. Choose one of them.")
    return to_config_dict(presets[preset]())


def t5_xl() -> Experiment:
    """The published joint stage: 1e-4 with 2,000 steps of warm-up, weight decay 0.05, EVA02-L's rates by layers."""
    detector = BoxDecoderConfig.published(enabled=True, detections=32)
    return Experiment(
        model=visual_genome.with_detector(PixelLLMConfig.published(), narratives(384), detector),
        data=DataConfig(
            modules=("data_pipelines.mixtures",),
            mixture=NARRATIVES,
            batch_size=8,
            further=(
                Group("coco_captions", 16, captions(384), augment=SCALE, weight=3.0),
                Group(EXPRESSIONS, 40, expressions(384), augment=SCALE, weight=7.0),
                Group(visual_genome.TASK, 32, regions(384), augment=visual_genome.AUGMENT, weight=5.0),
                Group("sharegpt4v_mix665k_short", 24, short_answers(384), weight=3.75),
                Group("sharegpt4v_mix665k_long", 8, long_answers(384), weight=1.25),
            ),
        ),
        optim=Optim(peak_lr=1e-4, warmup_steps=2000, weight_decay=0.05, clip_norm=0.0),
        train=Train(steps=240_000),
        evals=(
            Eval(task=NARRATIVES, every=10_000, limit=1000),
            *(dataclasses.replace(one, shape=expressions(384)) for one in refcoco.evaluations("refer")),
            Eval(task=visual_genome.TASK, split="test", mode="densecap", shape=regions(384), batch_size=8),
        ),
        init=Init(checkpoint="runs/t5_xl_first_stage", new=("detector/.*",)),
    )


def bert() -> Experiment:
    """The same with BERT."""
    before = t5_xl()
    return dataclasses.replace(
        before,
        model=dataclasses.replace(before.model, text=BertConfig.published()),
        init=dataclasses.replace(before.init, checkpoint="runs/bert_first_stage"),
    )


def bench() -> Experiment:
    """The same at the size of `PixelLLMConfig.bench`, from nothing, one picture a batch."""
    before = t5_xl()
    detector = BoxDecoderConfig.bench(enabled=True)
    further = tuple(
        dataclasses.replace(group, batch_size=1, shape=dataclasses.replace(group.shape, canvas=224))
        for group in before.data.further
        if group.shape is not None
    )
    return Experiment(
        model=visual_genome.with_detector(PixelLLMConfig.bench(), narratives(224), detector),
        data=dataclasses.replace(before.data, batch_size=1, further=further),
        optim=before.optim,
        train=Train(steps=2500, log_every=10, checkpoint_every=500),
    )


def bench_bert() -> Experiment:
    """The same with BERT."""
    before = bench()
    return dataclasses.replace(before, model=dataclasses.replace(before.model, text=BertConfig.bench()))


def narratives(canvas: int) -> Shape:
    """One long text about the whole picture."""
    return Shape(canvas=canvas, text=128, instruction=8)


def captions(canvas: int) -> Shape:
    """One sentence about the whole picture."""
    return Shape(canvas=canvas, text=32, instruction=8)


def expressions(canvas: int) -> Shape:
    """Up to 16 expressions that share the whole picture's prompt; each is also what is asked."""
    return Shape(canvas=canvas, regions=16, text=32, instruction=32)


def regions(canvas: int) -> Shape:
    """16 of the detector's finds, in few words."""
    return visual_genome.shape(canvas, 16, text=16)


def short_answers(canvas: int) -> Shape:
    """Up to 16 questions whose answers are words; those that let choose among answers are longer than 32 tokens."""
    return Shape(canvas=canvas, regions=16, text=16, instruction=64)


def long_answers(canvas: int) -> Shape:
    """Up to 4 questions with answers of sentences."""
    return Shape(canvas=canvas, regions=4, text=128, instruction=64)
