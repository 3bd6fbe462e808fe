"""Referring localization on RefCOCO, RefCOCO+ and RefCOCOg: the words name something, the model says where it is.

    python -m data_pipelines build refcoco --name refcoco_mixed --refer REFER/data --images train2014 --out DATA
    python -m data_pipelines build refcoco --name refcoco_unc --refer REFER/data --images train2014 --out DATA
    pixel-align train experiments/refcoco.py --workdir runs/refcoco --set data.dir=DATA \\
        --set init.checkpoint=runs/t5_xl --set data.vocabulary=spiece.model
    pixel-align predict photo.jpg --checkpoint runs/refcoco --mode refer --text "the dog on the left" --out dog.png

Presets:
  t5_xl: the published ref stage (arXiv 2312.09237) with T5-XL, after the trace stage. The published mixture also holds
    phrases of Flickr30k Entities and UNINEXT's expressions on Visual Genome, 1 : 5 : 1: --set data.mixture=ref_stage
    where those two are built as well.
  bert: the same with BERT, after runs/bert.
  bench, bench_bert: all parts at a size for two cores, random where the stage has weights: runs, learns little.

Published, after the refseg stage, theirs: P@0.5 of RefCOCO val/testA/testB 90.3/92.3/86.8 with T5-XL and 89.6/91.4/86.9
with BERT, RefCOCO+ 83.7/87.2/78.5 and 82.2/86.9/76.4, RefCOCOg val/test 84.5/85.7 and 84.2/85.0. With this code:
unmeasured.

Where they are not the published recipe: the two extra sets (above); regions of a picture beyond 16 become further
examples, published ones were left out; frozen parts run without dropout and drop-path.
"""

import dataclasses

from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.converter import Augment
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.optim import Optim

MODULES = ("data_pipelines.mixtures",)
SPLITS = {
    "refcoco_unc": ("validation", "testA", "testB"),
    "refcocoplus_unc": ("validation", "testA", "testB"),
    "refcocog_umd": ("validation", "test"),
}


def get_config(preset: str = "t5_xl"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {"t5_xl": t5_xl, "bert": bert, "bench": bench, "bench_bert": bench_bert}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}. Choose one of them.")
    return to_config_dict(presets[preset]())


def t5_xl() -> Experiment:
    """The published ref stage: batch 64, 120,000 steps, 16 expressions of a picture, which share its visual tokens."""
    return Experiment(
        model=PixelLLMConfig.published(shape=Shape(canvas=384, regions=16, text=40, instruction=40)),
        data=DataConfig(modules=MODULES, mixture="refcoco_mixed", batch_size=64, augment=Augment(scale=(0.75, 1.25))),
        optim=Optim(peak_lr=5e-5, warmup_steps=1000, clip_norm=0.0),
        train=Train(steps=120_000),
        evals=evaluations("refer"),
        init=Init(checkpoint="runs/t5_xl"),
    )


def bert() -> Experiment:
    """The same with BERT."""
    before = t5_xl()
    model = dataclasses.replace(before.model, text=BertConfig.published())
    return dataclasses.replace(before, model=model, init=Init(checkpoint="runs/bert"))


def bench() -> Experiment:
    """The same at the size of `PixelLLMConfig.bench`, from nothing."""
    return Experiment(
        model=PixelLLMConfig.bench(shape=Shape(canvas=224, regions=16, text=40, instruction=16)),
        data=DataConfig(modules=MODULES, mixture="refcocog_umd", batch_size=4),
        optim=Optim(clip_norm=0.0),
        train=Train(steps=2000, log_every=10, checkpoint_every=500),
    )


def bench_bert() -> Experiment:
    """The same with BERT."""
    before = bench()
    return dataclasses.replace(before, model=dataclasses.replace(before.model, text=BertConfig.bench()))


def evaluations(mode: str) -> tuple[Eval, ...]:
    """Every official split, at the end; validation of RefCOCO now and then."""
    return tuple(
        Eval(task=task, split=split, mode=mode, every=10_000 if (task, split) == ("refcoco_unc", "validation") else 0)
        for task, splits in SPLITS.items()
        for split in splits
    )
