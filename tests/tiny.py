"""The smallest experiment with every part in it: 40 drawn scenes, width 16, canvas 32. Tests train it in seconds."""

import dataclasses
import json
from pathlib import Path

from pixel_align.batch import Shape
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Experiment, Train
from pixel_align.models.pixel_llm import LossConfig, PixelLLMConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.optim import Optim

TASK = "synthetic_narratives"
SCENES = {"train": 24, "validation": 16}
WIDTH = 16


def get_config() -> Experiment:
    """The experiment without its folders; those are overrides, `in_world`."""
    return Experiment(
        model=PixelLLMConfig(
            shape=Shape(canvas=32, text=40, instruction=4),
            image=SamVitConfig(
                patch_size=8,
                width=WIDTH,
                depth=1,
                num_heads=2,
                window=0,
                global_blocks=(0,),
                pretrain_grid=4,
                output_width=WIDTH,
                scan=False,
            ),
            prompt=PromptEncoderConfig(width=WIDTH),
            extractor=PromptExtractorConfig(
                queries=4, width=WIDTH, depth=1, num_heads=2, mlp_width=WIDTH, output_width=WIDTH, scan=False
            ),
            text=T5Config(
                vocab_size=256,
                width=WIDTH,
                num_heads=2,
                head_dim=8,
                mlp_dim=WIDTH,
                encoder_layers=1,
                decoder_layers=1,
                dropout_rate=0.1,
                scan=False,
            ),
            location=LocationHeadConfig(hidden_width=WIDTH),
            loss=LossConfig(label_smoothing=0.0),
        ),
        data=DataConfig(mixture=TASK, batch_size=8, prefetch=1),
        optim=Optim(peak_lr=3e-3, warmup_steps=3, average=0.9),
        train=Train(steps=12, log_every=1, checkpoint_every=4),
        evals=(Eval(task=TASK, every=6, limit=8, batch_size=8, pictures=2),),
    )


def in_world(world: Path) -> list[str]:
    """Overrides that point the experiment to a world made by `make_world`."""
    return [f"data.dir={world / 'data'}", f"data.vocabulary={world / 'vocabulary.model'}"]


def make_world(folder: Path) -> None:
    """folder/raw, folder/data and folder/vocabulary.model: drawn, built and learned."""
    from data_pipelines import localized_narratives, synthetic
    from pixel_align import text

    captions = []
    for split, scenes in SCENES.items():
        files = synthetic.write(synthetic.easy(), folder / "raw", scenes, seed=0, split=split)
        inputs = localized_narratives.Inputs(
            annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
        )
        localized_narratives.build(folder / "data", split, inputs, name=TASK)
        captions += [json.loads(line)["caption"] for line in files.narratives.read_text(encoding="utf-8").splitlines()]
    text.train_sentencepiece(captions, folder / "vocabulary.model", 100, model_type="bpe")


def without_evaluations(experiment: Experiment) -> Experiment:
    """The same training, and nothing else."""
    return dataclasses.replace(experiment, evals=())
