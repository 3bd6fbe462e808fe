"""The command line: thin verbs over the library. What a user can mend is one line on stderr and exit code 2."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pixel-align",
    help="Language models that speak in words and pixels: train, evaluate, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in optim.peak_lr=1e-3.")
]
Checkpoint = Annotated[str, typer.Option(help="A run folder, a checkpoint folder, or one step of it.")]


@app.callback()
def _app(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from pixel_align import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def train(
    experiment: Annotated[str, typer.Argument(help="A file of experiments/, with :preset where it has presets.")],
    workdir: Annotated[str, typer.Option(help="Where checkpoints and metrics go; an existing run is resumed.")],
    changes: Set = None,
) -> None:
    """Train an experiment, or resume it in its work folder."""
    with one_line_errors():
        from pixel_align import config
        from pixel_align.train import train as run

        run(config.load(experiment, changes or ()), workdir)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    task: Annotated[str, typer.Option(help="A seqio task; the ones of the checkpoint's experiment are known.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "validation",
    mode: Annotated[str, typer.Option(help="What is asked.")] = "trace",
    out: Annotated[str, typer.Option(help="Folder of the results; RUN/evaluations/TASK-SPLIT by default.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many examples; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples at a time.")] = 32,
    controls: Annotated[bool, typer.Option(help="Also score what must fail: other pictures, other words.")] = False,
    changes: Set = None,
) -> None:
    """Score a checkpoint on a task: a table, metrics.json, predictions.jsonl and pictures.png."""
    with one_line_errors():
        import rich.console
        import rich.progress
        import rich.table

        from pixel_align import config, data, predict
        from pixel_align.checkpoints import store
        from pixel_align.evaluation import evaluator
        from pixel_align.experiment import Eval, Experiment

        folder, step = store.find(checkpoint)
        experiment = config.override(config.from_json(Experiment, store.read_config(folder)), changes or ())
        evaluation = Eval(task=task, split=split, mode=mode, limit=limit, batch_size=batch_size)
        data.check_task(experiment.data, task, split)
        params = predict.load_params(experiment, folder, step)
        console = rich.console.Console(stderr=True)
        result = evaluator.evaluate(
            experiment,
            evaluation,
            params,
            store.read_vocabulary(folder),
            controls=controls,
            wrap=lambda batches: rich.progress.track(batches, "evaluate", console=console),
        )
        target = Path(out) if out else folder.parent / "evaluations" / f"{task}-{split}"
        evaluator.write(result, target)
        table = rich.table.Table("metric", "value", title=f"{task}/{split}, step {step}, {result.examples} examples")
        for name, value in result.metrics.items():
            table.add_row(name, f"{value:.4f}")
        rich.console.Console().print(table)
        typer.echo(f"{target}/metrics.json predictions.jsonl pictures.png")


@app.command()
def predict(
    image: Annotated[str, typer.Argument(help="A picture file.")],
    checkpoint: Checkpoint,
    mode: Annotated[
        str, typer.Option(help="trace: a sentence with a place for every word; caption: a sentence.")
    ] = "trace",
    text: Annotated[str | None, typer.Option(help="A given sentence to be placed, instead of writing one.")] = None,
    instruction: Annotated[str, typer.Option(help="The words that ask.")] = "",
    out: Annotated[str, typer.Option(help="The annotated picture to write.")] = "",
    json_out: Annotated[str, typer.Option("--json", help="The JSON file to write; - for standard output.")] = "",
) -> None:
    """Say a sentence about a picture and where each of its words is."""
    with one_line_errors():
        from pixel_align import draw
        from pixel_align.image import read_image
        from pixel_align.predict import Predictor

        pixels = read_image(image)
        predictor = Predictor.from_checkpoint(checkpoint)
        predictor.set_image(pixels)
        prediction = predictor.predict(mode, instruction, text)
        if out:
            draw.annotate(pixels, prediction.words, prediction.points, prediction.boxes).save(out)
        document = json.dumps(prediction.to_json(), ensure_ascii=False, indent=2)
        if json_out == "-":
            typer.echo(document)
        elif json_out:
            Path(json_out).write_text(document + "\n", encoding="utf-8")
        if json_out != "-":
            typer.echo(prediction.text)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend becomes one line on stderr and exit code 2; PIXEL_ALIGN_TRACEBACK=1 shows where it came
    from.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        if os.environ.get("PIXEL_ALIGN_TRACEBACK"):
            raise
        from pixel_align.train import NonFiniteLoss

        if isinstance(error, RuntimeError) and not isinstance(error, NonFiniteLoss):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the console script `pixel-align`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return app(arguments)
