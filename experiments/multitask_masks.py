"""All tasks and masks: the joint stage, then the mask adapter alone.

    pixel-align train experiments/multitask_masks.py --workdir runs/multitask_masks --set data.dir=DATA \\
        --set init.checkpoint=runs/multitask --set data.vocabulary=spiece.model
    pixel-align predict photo.jpg --checkpoint runs/multitask_masks --mode segment --text "the dog" --out dog.png

The published joint stage with masks (arXiv 2312.09237): 30,000 further steps after `experiments/multitask.py`, without
weight decay. Only the mask adapter is trained, so all other tasks stay as they are; only the referring batch, which has
masks, teaches anything, and the others are read as published and for their losses: --set data.further leaves them out.
SAM's mask decoder is SAM ViT-H's: it has to lie in init.checkpoint beside the rest.

Presets: t5_xl, bert, bench, bench_bert. Published figures: none. With this code: unmeasured.

Where it is not the published recipe: padding counts in no loss (published: in dice); only expressions that have masks
count in the loss of masks, where published none was marked as having one; the published T5 recipe took its weights from
the BERT one, here each takes its own.
"""

import dataclasses

from experiments import multitask, refcoco_masks
from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.experiment import Eval, Init


def get_config(preset: str = "t5_xl"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {"t5_xl": t5_xl, "bert": bert, "bench": bench, "bench_bert": bench_bert}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}. Choose one of them.")
    return to_config_dict(presets[preset]())


def t5_xl() -> Experiment:
    """The published joint stage with masks: 30,000 steps, 250 of warm-up; what is trained is 4.3M parameters."""
    return stage(multitask.t5_xl(), "runs/multitask")


def bert() -> Experiment:
    """The same with BERT; what is trained is 3.8M parameters."""
    return stage(multitask.bert(), "runs/multitask_bert")


def bench() -> Experiment:
    """The same at the size of `PixelLLMConfig.bench`, from nothing."""
    return with_masks(multitask.bench())


def bench_bert() -> Experiment:
    """The same with BERT."""
    return with_masks(multitask.bench_bert())


def stage(before: Experiment, checkpoint: str) -> Experiment:
    """The joint stage -> the joint stage with masks, begun from a run of the former."""
    return dataclasses.replace(
        with_masks(before),
        optim=dataclasses.replace(before.optim, warmup_steps=250, weight_decay=0.0),
        train=dataclasses.replace(before.train, steps=30_000),
        evals=tuple(map(_segmented, before.evals)),
        init=Init(checkpoint=checkpoint, new=("mask_adapter/.*",)),
    )


def with_masks(before: Experiment) -> Experiment:
    """The joint stage with masks in the batches of expressions, and everything frozen but their adapter."""
    model = refcoco_masks.with_masks(before.model, cells=0)
    model = dataclasses.replace(
        model,
        location=dataclasses.replace(model.location, frozen=True),
        detector=dataclasses.replace(model.detector, frozen=True),
    )
    further = tuple(
        dataclasses.replace(group, shape=_masked(group.shape)) if group.mixture == multitask.EXPRESSIONS else group
        for group in before.data.further
    )
    return dataclasses.replace(before, model=model, data=dataclasses.replace(before.data, further=further))


def _masked(shape: Shape | None) -> Shape | None:
    return shape and dataclasses.replace(shape, mask=shape.canvas)


def _segmented(one: Eval) -> Eval:
    return dataclasses.replace(one, mode="segment", shape=_masked(one.shape)) if one.mode == "refer" else one
