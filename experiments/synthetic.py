"""Traces, referring with masks and region captions, one model, on drawn scenes of the hard setting.

    python -m experiments.synthetic --workdir runs/synthetic
    python -m experiments.synthetic --workdir runs/everything --everything      # dense captions and questions, too

Draws scenes, writes them in the publishers' formats (narratives, refs, region descriptions, conversations), builds the
sets, trains a first stage (the dense objective alone: it stands for the public weights of the image encoders) and then
all tasks, each step with one batch of each, scores the unseen scenes beside `shuffled` pictures, and writes
docs/proof/synthetic.json, or synthetic_everything.json. Killed, it goes on where it was. `--set` changes settings of
both stages, as `pixel-align train --set`.

The world is `World()` as it stands: 3 to 8 objects of 224 px pictures, distractors that share colour and shape,
textured grounds, a tenth of the pairs of colour and shape in no training scene.

Figures: docs/synthetic.md, made from the record; unmeasured where there is none.
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import rich.console
import typer

from experiments import record
from pixel_align.batch import Shape
from pixel_align.cli import one_line_errors, quiet_libraries
from pixel_align.config import Experiment, override, to_config_dict
from pixel_align.data import DataConfig, Group
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import LossConfig, MasksConfig, PixelLLMConfig
from pixel_align.nn.alignment_head import AlignmentHeadConfig
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.mask_adapter import MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoderConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.region_head import RegionHeadConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.optim import Optim

STAGES = ("first_stage", "all_tasks", "everything")  # the second or the third begins where the first ends
NARRATIVES, EXPRESSIONS, REGIONS = "synthetic_narratives", "synthetic_expressions", "synthetic_regions"
DENSE, QUESTIONS = "synthetic_densecap", "synthetic_questions"
CANVAS, WIDTH = 96, 64
PIECES = 280  # of the vocabulary: nearly all words whole
# Rooms that no text of the world exceeds.
NARRATIVE = Shape(canvas=CANVAS, text=48, instruction=8, objects=8, phrase=4)
# What words mean is learned from many expressions at once, or late.
REFER = Shape(canvas=CANVAS, text=16, instruction=16, regions=8)
# Masks cost more and need fewer. They are trained at half the canvas, four cells for each cell of the map: what the
# mask decoder predicts.
SEGMENT = dataclasses.replace(REFER, regions=4, mask=CANVAS // 2)
DESCRIBE = Shape(canvas=CANVAS, text=8, instruction=8, regions=8, prompts=8)
DENSECAP = Shape(canvas=CANVAS, text=8, instruction=8, regions=8, prompts=8, described=8)
ANSWER = Shape(canvas=CANVAS, text=4, instruction=28, regions=4)
EVALS = (
    Eval(task=NARRATIVES, mode="trace"),
    Eval(task=EXPRESSIONS, mode="segment", shape=SEGMENT),
    Eval(task=REGIONS, mode="describe", shape=DESCRIBE),
)
MORE_EVALS = (
    Eval(task=DENSE, mode="densecap", shape=DENSECAP),
    Eval(task=QUESTIONS, mode="answer", shape=ANSWER),
)


def get_config(stage: str = "all_tasks"):
    """A stage as a locked ConfigDict: first_stage, all_tasks (three) or everything (five)."""
    if stage not in STAGES:
        raise ValueError(f"preset is {stage!r}, expected one of {', '.join(STAGES)}. Choose one of them.")
    return to_config_dict(experiment(stage))


def experiment(stage: str) -> Experiment:
    """The settings of a stage; the driver below fills in folders."""
    speaks, everything = stage != "first_stage", stage == "everything"
    losses = LossConfig(label_smoothing=0.0, mask=0.5)
    if not speaks:
        losses = dataclasses.replace(losses, text=0.0, point=0.0, presence=0.0, alignment=0.0, mask=0.0)
    further = (
        Group(EXPRESSIONS, 24, REFER, weight=2.0),
        Group(EXPRESSIONS, 4, SEGMENT, weight=0.5),
        Group(REGIONS, 8, DESCRIBE, weight=0.5),
    )
    if everything:
        further = (*further, Group(DENSE, 8, DENSECAP, weight=0.5), Group(QUESTIONS, 8, ANSWER, weight=0.5))
    return Experiment(
        model=dataclasses.replace(
            model(), loss=losses, detector=dataclasses.replace(model().detector, enabled=everything)
        ),
        data=DataConfig(
            modules=("data_pipelines.localized_narratives", "data_pipelines.synthetic_regions"),
            mixture=NARRATIVES,
            batch_size=16,
            further=further if speaks else (),
        ),
        optim=Optim(peak_lr=2e-3, warmup_steps=100, b2=0.98, average=0.999, final_lr=0.02 if speaks else 1.0),
        train=Train(steps=5_000 if speaks else 2_000, log_every=20, checkpoint_every=500, keep=1),
    )


def model() -> PixelLLMConfig:
    """1.0M parameters, the published parts at a size for two cores."""
    return PixelLLMConfig(
        shape=NARRATIVE,
        image=SamVitConfig(
            patch_size=8,
            stem="conv",
            width=WIDTH,
            depth=2,
            num_heads=4,
            window=0,
            global_blocks=(0, 1),
            pretrain_grid=CANVAS // 8,
            output_width=WIDTH,
            scan=False,
        ),
        prompt=PromptEncoderConfig(width=WIDTH, masks=True),
        extractor=PromptExtractorConfig(
            queries=36, width=WIDTH, depth=2, num_heads=4, mlp_width=2 * WIDTH, output_width=WIDTH, scan=False
        ),
        text=T5Config(
            vocab_size=384,
            width=WIDTH,
            num_heads=4,
            head_dim=16,
            mlp_dim=2 * WIDTH,
            encoder_layers=2,
            decoder_layers=2,
            dropout_rate=0.0,
            scan=False,
        ),
        location=LocationHeadConfig(hidden_width=128, presence=True),
        alignment=AlignmentHeadConfig(enabled=True),
        regions=RegionHeadConfig(enabled=True, on_prompts=True),
        masks=MasksConfig(
            enabled=True,
            decoder=MaskDecoderConfig(width=WIDTH, num_heads=4, mlp_width=2 * WIDTH, quality_width=WIDTH, scan=False),
            adapter=MaskAdapterConfig(width=WIDTH, num_heads=4, mlp_width=2 * WIDTH, scan=False),
        ),
        detector=BoxDecoderConfig(
            width=WIDTH,
            up_width=WIDTH,
            tower_layers=2,
            groups=8,
            hidden_width=128,
            proposals_train=96,
            peaks_train=192,
            proposals=64,
            peaks=128,
            samples=64,
            detections=16,
        ),
    )


def run(
    workdir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/synthetic"),
    scenes: Annotated[int, typer.Option(help="Training scenes.")] = 20_000,
    unseen: Annotated[int, typer.Option(help="Scenes for evaluation.")] = 320,
    first_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 2_000,
    steps: Annotated[int, typer.Option(help="Steps of all tasks.")] = 5_000,
    everything: Annotated[bool, typer.Option(help="Also dense captions and questions.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Settings of both stages.")
    ] = None,
) -> None:
    """Draw, build, train, evaluate, record."""
    quiet_libraries()
    with one_line_errors():
        last = "everything" if everything else "all_tasks"
        train_and_score(workdir, scenes, unseen, {"first_stage": first_steps, last: steps}, changes or [])


def train_and_score(workdir: Path, scenes: int, unseen: int, steps: dict[str, int], changes: list[str]) -> None:
    """The whole of it; see the module's text."""
    from pixel_align.train import train

    configs = {stage: configure(workdir, stage, count, changes) for stage, count in steps.items()}
    everything = "everything" in configs
    prepare(workdir, {"train": scenes, "validation": unseen})
    for stage, config in configs.items():
        begun = time.perf_counter()
        train(config, workdir / stage)
        seconds = spent(workdir, stage, time.perf_counter() - begun)
    result = {
        "command": f"python -m experiments.synthetic {shlex.join(sys.argv[1:])}".strip(),
        "commit": record.commit(),
        "machine": record.machine(),
        "scenes": {"train": scenes, "unseen": unseen},
        "steps": steps,
        "train_seconds": seconds,  # of all starts that came to an end
        "tasks": scores(workdir, list(configs)[-1], configs),
    }
    record.write("synthetic_everything" if everything else "synthetic", result)
    rich.console.Console().print_json(json.dumps(result["tasks"]))


def spent(workdir: Path, stage: str, seconds: float) -> dict[str, float]:
    """Adds to the time that a stage has taken over all starts, kept in the work folder; that of every stage."""
    path = workdir / "train_seconds.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[stage] = round(known.get(stage, 0.0) + seconds, 1)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(known), encoding="utf-8")
    partial.replace(path)
    return known


def configure(workdir: Path, stage: str, steps: int, changes: list[str]) -> Experiment:
    """A stage in its folders."""
    config = experiment(stage)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(workdir / "data"), vocabulary=str(workdir / "vocabulary.model")),
        optim=dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 2)),
        train=dataclasses.replace(config.train, steps=steps),
        init=Init()
        if stage == "first_stage"
        else Init(checkpoint=str(workdir / "first_stage"), new=("detector/.*",) if stage == "everything" else ()),
    )
    return override(config, changes)


def prepare(workdir: Path, counts: dict[str, int]) -> None:
    """Scenes under raw/, the sets built of them under data/, the vocabulary of their text; what is there is kept."""
    from data_pipelines import localized_narratives, synthetic, synthetic_regions
    from pixel_align import text

    for split, count in counts.items():
        files = synthetic.write(
            synthetic.World(),
            workdir / "raw",
            count,
            seed=0,
            split=split,
            also=("expressions", "regions", "questions"),
            processes=2,
        )
        inputs = localized_narratives.Inputs(
            annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
        )
        localized_narratives.build(workdir / "data", split, inputs, name=NARRATIVES)
        synthetic_regions.build(workdir / "data", files, split)
        if split == "train" and not (workdir / "vocabulary.model").is_file():
            text.train_sentencepiece(
                synthetic.texts(files), workdir / "vocabulary.model", PIECES, model_type="bpe", character_coverage=1.0
            )


def scores(workdir: Path, stage: str, configs: Mapping[str, Experiment]) -> dict[str, dict[str, float]]:
    """Task -> figures on the unseen scenes, controls included; predictions and pictures in the work folder."""
    from pixel_align import predict, text
    from pixel_align.checkpoints import store
    from pixel_align.evaluation import evaluator

    config = configs[stage]
    folder, step = store.find(workdir / stage)
    params, vocabulary = predict.load_params(config, folder, step), text.load_vocabulary(folder)
    console, found = rich.console.Console(), {}
    for evaluation in (*EVALS, *MORE_EVALS) if stage == "everything" else EVALS:
        wrap = evaluator.progress(config, evaluation, console)
        result = evaluator.evaluate(config, evaluation, params, vocabulary, controls=True, wrap=wrap)
        evaluator.write(result, workdir / "evaluation" / evaluation.task)
        found[evaluation.task] = {name: round(value, 5) for name, value in result.metrics.items()}
    return found


if __name__ == "__main__":
    typer.run(run)
