"""Dense captioning on Visual Genome: everything that can be described is found, and described in a few words.

    python -m data_pipelines build visual_genome --annotations region_descriptions.json --image-data image_data.json \\
        --densecap densecap_splits.json --images VG_100K VG_100K_2 --out DATA
    pixel-align train experiments/visual_genome.py --workdir runs/visual_genome --set data.dir=DATA \\
        --set init.checkpoint=runs/t5_xl --set data.vocabulary=spiece.model
    pixel-align predict photo.jpg --checkpoint runs/visual_genome --mode densecap --out regions.png

The published densecap stage (arXiv 2312.09237) after the trace stage: the detector joins and is trained with the rest,
EVA02-L with a rate that falls by 0.8 from each layer to the one before it.

Presets:
  t5_xl: of a picture the words of 32 of the detector's finds are learned. bert: of 64, after runs/bert.
  bench, bench_bert: all parts at a size for two cores, from nothing: runs, learns little.

Published, theirs: mAP 17.5 with T5-XL and 17.4 with BERT; given the true boxes METEOR 20.1 and 20.0, CIDEr 149.0 and
148.0. With this code: unmeasured.

Where they are not the published recipe: all regions of a picture are learned, up to 320, published were 100; a mirrored
picture has no text that names a side. More of the detector: docs/differences.md.
"""

import dataclasses

from pixel_align.batch import Shape
from pixel_align.config import Experiment, to_config_dict
from pixel_align.converter import Augment
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.optim import Optim

TASK = "visual_genome_densecap"
# The most regions that a picture of Visual Genome's samples has is 267; exact duplicates are dropped.
DESCRIBED = 320
AUGMENT = Augment(scale=(0.1, 2.0), flip_rate=0.5)


def get_config(preset: str = "t5_xl"):
    """The experiment of a preset as a locked ConfigDict."""
    presets = {"t5_xl": t5_xl, "bert": bert, "bench": bench, "bench_bert": bench_bert}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}. Choose one of them.")
    return to_config_dict(presets[preset]())


def t5_xl() -> Experiment:
    """The published densecap stage: batch 64, 40,000 steps at 1e-4, weight decay 0.05."""
    return Experiment(
        model=with_detector(PixelLLMConfig.published(), shape(384, 32), BoxDecoderConfig.published(enabled=True)),
        data=DataConfig(modules=("data_pipelines.mixtures",), mixture=TASK, batch_size=64, augment=AUGMENT),
        optim=Optim(peak_lr=1e-4, warmup_steps=1000, weight_decay=0.05, clip_norm=0.0),
        train=Train(steps=40_000),
        evals=(
            # 8 pictures of 100 finds: 800 texts are written at once, 31 MB of keys and values each.
            Eval(task=TASK, mode="densecap", every=10_000, limit=1000, batch_size=8),
            Eval(task=TASK, split="test", mode="densecap", batch_size=8),
        ),
        init=Init(checkpoint="runs/t5_xl", new=("detector/.*",)),
    )


def bert() -> Experiment:
    """The same with BERT."""
    before = t5_xl()
    return dataclasses.replace(
        before,
        model=dataclasses.replace(before.model, shape=shape(384, 64), text=BertConfig.published()),
        init=dataclasses.replace(before.init, checkpoint="runs/bert"),
    )


def bench() -> Experiment:
    """The same at the size of `PixelLLMConfig.bench`, from nothing."""
    return Experiment(
        model=with_detector(PixelLLMConfig.bench(), shape(224, 8), BoxDecoderConfig.bench(enabled=True)),
        data=DataConfig(modules=("data_pipelines.mixtures",), mixture=TASK, batch_size=4, augment=AUGMENT),
        optim=Optim(clip_norm=0.0),
        train=Train(steps=2000, log_every=10, checkpoint_every=500),
    )


def bench_bert() -> Experiment:
    """The same with BERT."""
    before = bench()
    return dataclasses.replace(before, model=dataclasses.replace(before.model, text=BertConfig.bench()))


def shape(canvas: int, finds: int, text: int = 40) -> Shape:
    """A batch of dense captioning in which so many finds of a picture are described."""
    return Shape(canvas=canvas, regions=finds, prompts=finds, text=text, instruction=8, described=DESCRIBED)


def with_detector(model: PixelLLMConfig, shape: Shape, detector: BoxDecoderConfig) -> PixelLLMConfig:
    """The model with a detector, for batches of a shape, and with EVA02's rates by its layers."""
    image = model.image
    assert isinstance(image, FusionConfig)
    eva = dataclasses.replace(image.eva, layer_decay=0.8)
    return dataclasses.replace(model, shape=shape, image=dataclasses.replace(image, eva=eva), detector=detector)
