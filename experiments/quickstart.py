"""The demo: a model that says a sentence about a picture and points at what each word means, from nothing, in minutes.

    make demo                                    # everything, into runs/quickstart
    make demo ARGS="--scenes 400 --steps 50"     # shortened

What happens: scenes are drawn and told in the publisher's raw formats, built as any data set is, a vocabulary is
trained on
their text; then the model is trained in two stages, evaluated on unseen scenes beside its controls, and drawn.

The first stage stands for the public weights (SAM, EVA-02) that the real recipe starts from: the image encoder and the
extractor learn what objects are, by a dense objective on the image map and on the queries (`nn/region_head.py`). The
report has rows without it, and with its objective switched off in the second stage.
"""

import dataclasses
import datetime
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table
import typer

from pixel_align.batch import Shape
from pixel_align.config import Experiment, override, to_config_dict
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval, Init, Train
from pixel_align.models.pixel_llm import LossConfig, PixelLLMConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.region_head import RegionHeadConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.optim import Optim

TASK = "synthetic_narratives"
STAGES = ("first_stage", "demo", "dense_off", "no_first_stage")


def get_config(stage: str = "demo"):
    """One training of the demo as a locked ConfigDict.

    Stages: first_stage (dense objective only); demo (words and places, dense objective on); dense_off (the same from
    the
    same first stage, dense objective off); no_first_stage (words and places alone, from nothing).
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
                map_regions=dense,
                query_regions=dense,
                label_smoothing=0.0,
            ),
        ),
        data=DataConfig(modules=("data_pipelines.localized_narratives",), mixture=TASK, batch_size=16),
        # The first stage ends at full speed: the second goes on from there.
        optim=Optim(peak_lr=2e-3, warmup_steps=100, b2=0.98, average=0.997, final_lr=0.02 if speaks else 1.0),
        train=Train(steps=2500 if speaks else 600, log_every=10, checkpoint_every=500, keep=1),
        evals=(),
    )


def model(width: int = 64) -> PixelLLMConfig:
    """0.7M parameters, the published parts at a size for two cores."""
    return PixelLLMConfig(
        shape=Shape(canvas=64, text=48, objects=8, phrase=4),
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
        prompt=PromptEncoderConfig(width=width),
        extractor=PromptExtractorConfig(
            queries=36, width=width, depth=2, num_heads=4, mlp_width=2 * width, output_width=width
        ),
        text=T5Config(
            vocab_size=256,
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
        regions=RegionHeadConfig(enabled=True),
    )


def run(
    workdir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    scenes: Annotated[int, typer.Option(help="Training scenes.")] = 8000,
    unseen: Annotated[int, typer.Option(help="Scenes for evaluation.")] = 320,
    first_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 600,
    steps: Annotated[int, typer.Option(help="Steps of the second stage.")] = 2500,
    row_steps: Annotated[int, typer.Option(help="Steps of each row that lacks something.")] = 1000,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Settings of all stages.")
    ] = None,
) -> None:
    """Draw, build, train, evaluate, report."""
    from data_pipelines import synthetic

    begun = time.perf_counter()
    console = rich.console.Console()
    report_path = workdir / "report.json"
    report_path.unlink(missing_ok=True)
    for stage in STAGES:
        shutil.rmtree(workdir / stage, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)

    console.rule("scenes, data set, vocabulary")
    # Two things of one colour would make the first word of "a red circle" a guess, and every word is scored.
    world = synthetic.easy()
    vocabulary = prepare(workdir, world, scenes, unseen)

    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        console.rule(stage)
        count = {"first_stage": first_steps, "demo": steps}.get(stage, row_steps)
        started = time.perf_counter()
        config = train_stage(workdir, stage, vocabulary, count, changes or [])
        trained = time.perf_counter() - started
        if stage != "first_stage":
            metrics = evaluate_stage(workdir, stage, config, controls=stage == "demo")
            rows.append({"row": stage, "steps": count, "train_seconds": round(trained, 1), "metrics": metrics})

    report = {
        "command": "make demo",
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begun, 1),
        "machine": f"{jax.devices()[0].platform}, {len(jax.devices())} device(s)",
        "scenes": {"train": scenes, "unseen": unseen, "world": dataclasses.asdict(world)},
        "first_stage": {"steps": first_steps, "stands_for": "public weights of the image encoders"},
        "rows": rows,
    }
    partial = report_path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(report_path)
    show(report, console)
    console.print(f"pictures: {workdir}/demo/evaluation/pictures.png   report: {report_path}")


def prepare(workdir: Path, world: Any, scenes: int, unseen: int) -> Path:
    """Scenes in the publisher's formats -> the built set in workdir/data; returns the vocabulary file."""
    from data_pipelines import localized_narratives, synthetic
    from pixel_align import text

    captions: list[str] = []
    raw, data = workdir / "raw", workdir / "data"
    # Other settings than the last time: nothing of it can be used.
    settings = json.dumps({"world": dataclasses.asdict(world), "scenes": scenes, "unseen": unseen})
    if not (workdir / "world.json").is_file() or (workdir / "world.json").read_text() != settings:
        shutil.rmtree(raw, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
        (workdir / "world.json").write_text(settings)
    for split, count in (("train", scenes), ("validation", unseen)):
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn()
        ) as progress:
            bar = progress.add_task(f"drawing {split}", total=count)
            files = synthetic.write(
                world, raw, count, seed=0, split=split, progress=lambda done, bar=bar: progress.advance(bar, done)
            )
        inputs = localized_narratives.Inputs(
            annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
        )
        localized_narratives.build(data, split, inputs, name=TASK)
        if split == "train":
            captions = [json.loads(line)["caption"] for line in files.narratives.open(encoding="utf-8")]
    path = workdir / "vocabulary.model"
    text.train_sentencepiece(captions, path, 140, model_type="bpe")
    return path


def train_stage(workdir: Path, stage: str, vocabulary: Path, steps: int, changes: list[str]) -> Experiment:
    """Trains one stage in its own folder; later stages start from the first one, but for the row without it."""
    from pixel_align.train import train

    config = experiment(stage)
    init = Init(checkpoint=str(workdir / "first_stage")) if stage in ("demo", "dense_off") else Init()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(workdir / "data"), vocabulary=str(vocabulary)),
        optim=dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 2)),
        train=dataclasses.replace(config.train, steps=steps),
        init=init,
    )
    config = override(config, changes)
    train(config, workdir / stage)
    return config


def evaluate_stage(workdir: Path, stage: str, config: Experiment, *, controls: bool) -> dict[str, float]:
    """Scores the last checkpoint of a stage on the unseen scenes, from disk as a user would."""
    from pixel_align import predict, text
    from pixel_align.checkpoints import store
    from pixel_align.evaluation import evaluator

    folder, step = store.find(workdir / stage)
    result = evaluator.evaluate(
        config,
        Eval(task=TASK, batch_size=32, pictures=8),
        predict.load_params(config, folder, step),
        text.load_vocabulary(folder),
        controls=controls,
        wrap=lambda batches: rich.progress.track(batches, "evaluate"),
    )
    evaluator.write(result, workdir / stage / "evaluation")
    return {name: round(value, 5) for name, value in result.metrics.items() if np.isfinite(value)}


def show(report: dict[str, Any], console: rich.console.Console) -> None:
    """The report as a table: one line per row and control."""
    keys = ("point_distance", "inside_box", "point_distance_free", "inside_box_free", "matched_words")
    title = f"{report['scenes']['unseen']} unseen scenes, {report['seconds'] / 60:.1f} min, commit {report['commit']}"
    table = rich.table.Table("row", "steps", *keys, title=title)
    for row in report["rows"]:
        groups = {"": row["row"], "shuffled/": "  other pictures", "swapped/": "  another word's place"}
        groups |= {"center/": "  centre of the picture", "mean/": "  mean of all objects"}
        for prefix, label in groups.items():
            values = [row["metrics"].get(prefix + key) for key in keys]
            if any(value is not None for value in values):
                cells = ["" if value is None else f"{value:.4f}" for value in values]
                table.add_row(label, "" if prefix else str(row["steps"]), *cells)
    console.print(table)


def commit() -> str:
    """The commit that ran, with a mark if files differ from it; "unknown" outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    typer.run(run)
