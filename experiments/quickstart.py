"""The demo: a model that says a sentence about a picture and points at what each word means, finds what is named, with
its mask, names what it is shown, finds and names everything, and answers questions; from nothing, in minutes.

    make demo                                    # everything, into runs/quickstart
    make demo ARGS="--scenes 400 --first-steps 50 --steps 50"     # shortened

What happens: scenes are drawn and told in the publishers' raw formats, built as any data set is, a vocabulary is
trained on their text; then the model is trained in two stages, evaluated on unseen scenes beside its controls, and
drawn. A step of the second stage takes a batch of each task; of expressions a second one, with masks.

The first stage stands for the public weights (SAM, EVA-02) that the real recipe starts from: the image encoder and the
extractor learn what objects are, by a dense objective on the image map and on the queries (`nn/region_head.py`). The
report has rows without it, and with its objective switched off in the second stage, as is the alignment loss; those two
learn narratives only.
"""

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table
import typer

from experiments import every_task, record
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

NARRATIVES, EXPRESSIONS, REGIONS = "synthetic_narratives", "synthetic_expressions", "synthetic_regions"
DENSE, QUESTIONS = "synthetic_densecap", "synthetic_questions"
CANVAS = 64
# Expressions by the dozen: what words mean is learned from many at once, or late. Masks cost more and need fewer.
REFER = Shape(canvas=CANVAS, text=12, instruction=14, regions=8)
SEGMENT = dataclasses.replace(REFER, regions=4, mask=CANVAS // 2)
DESCRIBE = Shape(canvas=CANVAS, text=8, instruction=8, regions=4, prompts=4)
DENSECAP = dataclasses.replace(DESCRIBE, described=6)
ANSWER = Shape(canvas=CANVAS, text=4, instruction=28, regions=4)
EVALS = (
    Eval(task=NARRATIVES, mode="trace"),
    Eval(task=EXPRESSIONS, mode="segment", shape=SEGMENT),
    Eval(task=REGIONS, mode="describe", shape=DESCRIBE),
    Eval(task=DENSE, mode="densecap", shape=DENSECAP),
    Eval(task=QUESTIONS, mode="answer", shape=ANSWER),
)
FURTHER = (
    Group(EXPRESSIONS, 12, REFER, weight=3.0),
    Group(EXPRESSIONS, 3, SEGMENT),
    Group(REGIONS, 8, DESCRIBE),
    Group(DENSE, 8, DENSECAP, weight=0.5),
    Group(QUESTIONS, 8, ANSWER, weight=0.5),
)
VOCABULARY, PIECES = "vocabulary.model", 280  # nearly all words whole: texts are short
KEYS = {
    NARRATIVES: ("point_distance", "inside_box", "point_distance_free", "inside_box_free", "matched_words"),
    EXPRESSIONS: ("P@0.5", "P@0.5:0.95", "cIoU", "gIoU"),
    REGIONS: ("exact",),
    DENSE: ("mAP", "mAP_detection"),
    QUESTIONS: ("exact",),
}
SETTING = "easy setting (3-5 objects, 6 colours x 4 shapes, no two objects of one colour)"
STAGES = ("first_stage", "demo", "dense_off", "no_first_stage")


def get_config(stage: str = "demo"):
    """One training of the demo as a locked ConfigDict.

    Stages: first_stage (dense objective only); demo (all tasks, dense objective on); dense_off (narratives from the
    same first stage, neither dense objective nor alignment); no_first_stage (the same from nothing).
    """
    if stage not in STAGES:
        raise ValueError(f"preset is {stage!r}, expected one of {', '.join(STAGES)}. Choose one of them.")
    return to_config_dict(experiment(stage))


def experiment(stage: str) -> Experiment:
    """The settings of a stage; the driver below fills in folders."""
    dense = 1.0 if stage in ("first_stage", "demo") else 0.0
    speaks = stage != "first_stage"
    return Experiment(
        model=dataclasses.replace(
            model(),
            loss=LossConfig(
                text=float(speaks),
                point=0.1 * speaks,
                presence=0.1 * speaks,
                alignment=dense * speaks,
                map_regions=dense,
                query_regions=dense,
                mask=0.5,
                label_smoothing=0.0,
            ),
        ),
        data=DataConfig(
            modules=("data_pipelines.localized_narratives", "data_pipelines.synthetic_regions"),
            mixture=NARRATIVES,
            batch_size=16,
            further=FURTHER if stage == "demo" else (),
        ),
        # The first stage ends at full speed: the second goes on from there.
        optim=Optim(peak_lr=2e-3, warmup_steps=100, b2=0.98, average=0.997, final_lr=0.02 if speaks else 1.0),
        train=Train(steps=1300 if speaks else 700, log_every=10, checkpoint_every=500, keep=1),
        evals=(),
    )


def model(width: int = 64) -> PixelLLMConfig:
    """1.4M parameters, the published parts at a size for two cores."""
    return PixelLLMConfig(
        shape=Shape(canvas=CANVAS, text=48, objects=8, phrase=4),
        image=SamVitConfig(
            patch_size=8,
            stem="conv",
            width=width,
            depth=2,
            num_heads=4,
            window=0,
            global_blocks=(0, 1),
            pretrain_grid=8,
            output_width=width,
            scan=False,
        ),
        prompt=PromptEncoderConfig(width=width, masks=True),
        extractor=PromptExtractorConfig(
            queries=36, width=width, depth=2, num_heads=4, mlp_width=2 * width, output_width=width, scan=False
        ),
        text=T5Config(
            vocab_size=384,
            width=width,
            num_heads=4,
            head_dim=16,
            mlp_dim=2 * width,
            encoder_layers=1,
            decoder_layers=2,
            dropout_rate=0.0,
            scan=False,
        ),
        location=LocationHeadConfig(hidden_width=128, presence=True),
        alignment=AlignmentHeadConfig(enabled=True),
        regions=RegionHeadConfig(enabled=True, on_prompts=True),
        masks=MasksConfig(
            enabled=True,
            decoder=MaskDecoderConfig(width=width, num_heads=4, mlp_width=2 * width, quality_width=width, scan=False),
            adapter=MaskAdapterConfig(width=width, num_heads=4, mlp_width=2 * width, scan=False),
        ),
        detector=BoxDecoderConfig(
            enabled=True,
            width=width,
            up_width=width,
            tower_layers=1,
            groups=8,
            hidden_width=2 * width,
            proposals_train=48,
            peaks_train=96,
            proposals=32,
            peaks=64,
            samples=32,
            detections=8,
        ),
    )


def run(
    workdir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    scenes: Annotated[int, typer.Option(help="Training scenes.")] = 8000,
    unseen: Annotated[int, typer.Option(help="Scenes for evaluation.")] = 320,
    first_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 700,
    steps: Annotated[int, typer.Option(help="Steps of the second stage, in each row.")] = 1300,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Settings of all stages.")
    ] = None,
) -> None:
    """Draw, build, train, evaluate, report."""
    quiet_libraries()
    with one_line_errors():
        demo(workdir, scenes, unseen, first_steps, steps, changes or [])


def demo(workdir: Path, scenes: int, unseen: int, first_steps: int, steps: int, changes: list[str]) -> None:
    """The whole demo; see the module's text.

    Raises:
      ValueError: a setting that cannot be, before anything is drawn.
    """
    begun = time.perf_counter()
    console = rich.console.Console()
    report_path = workdir / "report.json"
    report_path.unlink(missing_ok=True)
    configs = {
        stage: configure(workdir, stage, first_steps if stage == "first_stage" else steps, changes) for stage in STAGES
    }
    # Nothing of an earlier demo is used: it may be of another commit.
    for name in (*STAGES, "raw", "data"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)

    console.rule("scenes, data set, vocabulary")
    from data_pipelines import synthetic

    # Two things of one colour would make the first word of "a red circle" a guess, and every word is scored.
    world = synthetic.easy()
    prepare(workdir, world, scenes, unseen)

    from pixel_align.train import train

    seconds: dict[str, float] = {}
    rows: dict[str, list[dict[str, Any]]] = {evaluation.task: [] for evaluation in EVALS}
    for stage, config in configs.items():
        console.rule(stage)
        started = time.perf_counter()
        train(config, workdir / stage)
        seconds[stage] = round(time.perf_counter() - started, 1)
        if stage != "first_stage":
            # The other rows have learned narratives only.
            for evaluation in EVALS if stage == "demo" else EVALS[:1]:
                metrics = evaluate_stage(workdir, stage, config, evaluation, controls=stage == "demo")
                row = {"row": stage, "steps": steps, "train_seconds": seconds[stage], "metrics": metrics}
                rows[evaluation.task].append(row)

    report = {
        "command": f"python -m experiments.quickstart {shlex.join(sys.argv[1:])}".strip(),
        "commit": record.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begun, 1),
        "machine": f"{jax.devices()[0].platform}, {os.cpu_count()} cores",
        "scenes": {"train": scenes, "unseen": unseen, "setting": SETTING, "world": dataclasses.asdict(world)},
        "first_stage": {
            "steps": first_steps,
            "train_seconds": seconds["first_stage"],
            "stands_for": "the public weights of the image encoders",
        },
        "tasks": {
            evaluation.task: {
                "mode": evaluation.mode,
                "bars": BARS[evaluation.task](rows[evaluation.task][0]["metrics"]),
                "rows": rows[evaluation.task],
            }
            for evaluation in EVALS
        },
    }
    partial = report_path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(report_path)
    modes = {evaluation.mode: evaluation.task for evaluation in EVALS}
    every_task.sheet(workdir / "demo", configs["demo"], modes).save(workdir / "demo.png")
    show(report, console)
    console.print(f"pictures: {workdir}/demo.png, {workdir}/demo/evaluation/*/pictures.png   report: {report_path}")


def configure(workdir: Path, stage: str, steps: int, changes: list[str]) -> Experiment:
    """A stage in its folders; the later ones start from the first, but for the row that is without it."""
    config = experiment(stage)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(workdir / "data"), vocabulary=str(workdir / VOCABULARY)),
        optim=dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 2)),
        train=dataclasses.replace(config.train, steps=steps),
        init=Init(checkpoint=str(workdir / "first_stage")) if stage in ("demo", "dense_off") else Init(),
    )
    return override(config, changes)


def trace_bars(metrics: dict[str, float]) -> dict[str, bool]:
    """What the demo has to reach in tracing, and whether it did."""
    far = min(metrics.get(f"{control}/point_distance", 0) for control in ("shuffled", "swapped"))
    near, free = metrics.get("point_distance", 1), metrics.get("point_distance_free", 1)
    return {
        "point_distance <= 0.05": near <= 0.05,
        "point_distance_free <= 0.05": free <= 0.05,
        "matched_words >= 0.8": metrics.get("matched_words", 0) >= 0.8,
        "3 times nearer than shuffled and swapped": 3 * max(near, free) <= far,
    }


def refer_bars(metrics: dict[str, float]) -> dict[str, bool]:
    """The same in finding what is named; no expression of the easy setting needs a relation."""
    return {
        "P@0.5 >= 0.8": metrics.get("P@0.5", 0) >= 0.8,
        "3 times shuffled": metrics.get("P@0.5", 0) >= 3 * metrics.get("shuffled/P@0.5", 1),
    }


def describe_bars(metrics: dict[str, float]) -> dict[str, bool]:
    """The same in naming what is shown."""
    return {
        "exact >= 0.8": metrics.get("exact", 0) >= 0.8,
        "3 times shuffled": metrics.get("exact", 0) >= 3 * metrics.get("shuffled/exact", 1),
    }


def densecap_bars(metrics: dict[str, float]) -> dict[str, bool]:
    """The same in finding and naming everything."""
    return {
        "mAP >= 0.3": metrics.get("mAP", 0) >= 0.3,
        "3 times shuffled": metrics.get("mAP", 0) >= 3 * metrics.get("shuffled/mAP", 1),
    }


def answer_bars(metrics: dict[str, float]) -> dict[str, bool]:
    """The same in answering; much of it a reader without eyes guesses, as yes and no."""
    right, guessed = metrics.get("exact", 0), metrics.get("shuffled/exact", 1)
    return {"exact >= 0.6": right >= 0.6, "0.2 above shuffled": right >= guessed + 0.2}


BARS = {
    NARRATIVES: trace_bars,
    EXPRESSIONS: refer_bars,
    REGIONS: describe_bars,
    DENSE: densecap_bars,
    QUESTIONS: answer_bars,
}


def prepare(workdir: Path, world: Any, scenes: int, unseen: int) -> None:
    """Scenes in the publishers' formats under raw/, the sets built of them under data/, a vocabulary of their text."""
    from data_pipelines import localized_narratives, synthetic, synthetic_regions
    from pixel_align import text

    for split, count in (("train", scenes), ("validation", unseen)):
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn()
        ) as progress:
            bar = progress.add_task(f"drawing {split}", total=count)
            files = synthetic.write(
                world,
                workdir / "raw",
                count,
                seed=0,
                split=split,
                also=("expressions", "regions", "questions"),
                progress=lambda done, bar=bar: progress.advance(bar, done),
            )
        inputs = localized_narratives.Inputs(
            annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
        )
        localized_narratives.build(workdir / "data", split, inputs, name=NARRATIVES)
        synthetic_regions.build(workdir / "data", files, split)
        if split == "train":
            text.train_sentencepiece(
                synthetic.texts(files), workdir / VOCABULARY, PIECES, model_type="bpe", character_coverage=1.0
            )


def evaluate_stage(
    workdir: Path, stage: str, config: Experiment, evaluation: Eval, *, controls: bool
) -> dict[str, float]:
    """Scores the last checkpoint of a stage on the unseen scenes, from disk as a user would."""
    from pixel_align import predict, text
    from pixel_align.checkpoints import store
    from pixel_align.evaluation import evaluator

    folder, step = store.find(workdir / stage)
    result = evaluator.evaluate(
        config,
        evaluation,
        predict.load_params(config, folder, step),
        text.load_vocabulary(folder),
        controls=controls,
        wrap=evaluator.progress(config, evaluation, rich.console.Console()),
    )
    evaluator.write(result, workdir / stage / "evaluation" / evaluation.mode)
    return {name: round(value, 5) for name, value in result.metrics.items() if np.isfinite(value)}


def show(report: dict[str, Any], console: rich.console.Console) -> None:
    """The report as tables, one line per row and control, and whether the bars were reached."""
    labels = {
        "demo": "demo: all tasks, dense objective on",
        "dense_off": "narratives alone, no dense objective, no alignment",
        "no_first_stage": "the same, no first stage",
    }
    groups = {"shuffled/": "  other pictures", "swapped/": "  another word's place"}
    groups |= {"center/": "  reader without eyes: centre", "mean/": "  reader without eyes: mean of objects"}
    # As wide as it is, also where no terminal says how wide that may be.
    wide = rich.console.Console(width=max(console.width, 150))
    wide.print(
        f"{report['scenes']['unseen']} unseen scenes of the {SETTING}; "
        f"{report['seconds'] / 60:.1f} min; commit {report['commit']}"
    )
    for name, task in report["tasks"].items():
        table = rich.table.Table(pad_edge=False)
        table.add_column(task["mode"])
        for key in ("steps", *KEYS[name]):
            table.add_column(key, justify="right", overflow="fold")
        for row in task["rows"]:
            for prefix, label in {"": labels[row["row"]], **groups}.items():
                values = [row["metrics"].get(prefix + key) for key in KEYS[name]]
                if any(value is not None for value in values):
                    cells = ["" if value is None else f"{value:.4f}" for value in values]
                    table.add_row(label, "" if prefix else str(row["steps"]), *cells)
        wide.print(table)
        for bar, reached in task["bars"].items():
            console.print(f"{'reached' if reached else 'MISSED'}: {bar}")


if __name__ == "__main__":
    typer.run(run)
