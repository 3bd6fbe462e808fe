"""The command line: thin verbs over the library. What a user can mend is one line on stderr and exit code 2."""

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import absl.logging
import typer

# What the extra [data] brings; predicting needs none of it.
DATA_MODULES = ("clu", "seqio", "tensorboard", "tensorflow", "tensorflow_datasets", "tensorflow_text")
# What the extra [eval] brings.
EVAL_MODULES = ("pycocoevalcap", "pycocotools", "snowballstemmer")

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


def _print_version(asked: bool) -> None:
    if asked:
        from pixel_align import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """See `pixel-align VERB --help`."""


@app.command()
def train(
    workdir: Annotated[str, typer.Option(help="Where checkpoints and metrics go; an existing run is resumed.")],
    experiment: Annotated[
        str, typer.Argument(help="A file of experiments/: .py, with :preset where it has presets, or .gin.")
    ] = "",
    changes: Set = None,
    gin_file: Annotated[
        list[str] | None, typer.Option("--gin_file", metavar="FILE", help="A gin file; several are read in order.")
    ] = None,
    gin_binding: Annotated[
        list[str] | None, typer.Option("--gin.", metavar="NAME=VALUE", help="As in --gin.Train.steps=7.")
    ] = None,
    coordinator: Annotated[
        str, typer.Option(help="Of several processes: HOST:PORT of process 0, where jax does not find it by itself.")
    ] = "",
    processes: Annotated[int, typer.Option(help="How many processes there are.", min=0)] = 0,
    process: Annotated[int, typer.Option(help="Which of them this is, from 0.", min=-1)] = -1,
    wait: Annotated[int, typer.Option(help="Seconds for all processes to come up.", min=1)] = 50,
) -> None:
    """Train an experiment, or resume it in its work folder. Stopped by SIGTERM it saves first, and exits with 75."""
    from pixel_align import distributed

    try:
        with one_line_errors():
            from pixel_align import config
            from pixel_align.train import train as run

            distributed.start(coordinator, processes, process, wait)
            with distributed.together():
                files = [*filter(None, [experiment]), *(gin_file or ())]
                run(config.load(files, changes or (), bindings=gin_binding or ()), workdir)
        distributed.end(0)
    except distributed.Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        distributed.end(distributed.STOPPED)
        raise typer.Exit(distributed.STOPPED) from stopped
    except typer.Exit as left:
        distributed.end(left.exit_code)
        raise


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
    """Score a checkpoint on a task: a table, metrics.json, predictions.jsonl, targets.jsonl and pictures.png."""
    with one_line_errors():
        import rich.console
        import rich.table

        from pixel_align import config, predict
        from pixel_align.checkpoints import store
        from pixel_align.evaluation import evaluator
        from pixel_align.evaluation.seen import Seen
        from pixel_align.experiment import Eval, Experiment

        folder, step = store.find(checkpoint)
        experiment = config.override(config.from_json(Experiment, store.read_config(folder)), changes or ())
        evaluation = Eval(task=task, split=split, mode=mode, limit=limit, batch_size=batch_size)
        evaluator.check(experiment, evaluation)
        params = predict.load_params(experiment, folder, step)
        console = rich.console.Console(stderr=True)
        result = evaluator.evaluate(
            experiment,
            evaluation,
            params,
            store.read_vocabulary(folder),
            controls=controls,
            history=Seen.read(folder),
            wrap=evaluator.progress(experiment, evaluation, console),
        )
        run = folder.parent if folder.name == "checkpoints" else folder
        target = Path(out) if out else run / "evaluations" / f"{task}-{split}"
        evaluator.write(result, target)
        table = rich.table.Table("metric", "value", title=f"{task}/{split}, step {step}, {result.examples} examples")
        for name, value in result.metrics.items():
            table.add_row(name, f"{value:.4f}")
        rich.console.Console().print(table)
        typer.echo(f"{target}/metrics.json predictions.jsonl targets.jsonl pictures.png")


@app.command()
def predict(
    image: Annotated[str, typer.Argument(help="A picture file, or a folder of them with --out DIR.")],
    checkpoint: Checkpoint,
    mode: Annotated[
        str,
        typer.Option(
            help="trace: a sentence with a place for every word; caption: a sentence; refer, segment: the box, or box "
            "and mask, of what --text names; answer: words on the question --text; "
            "describe: words about --box, --point, --scribble or --mask; densecap: all that is found, boxes and words."
        ),
    ] = "trace",
    text: Annotated[
        str | None, typer.Option(help="The words to refer to; a question; a sentence to be placed instead of written.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="The words that ask.")] = None,
    box: Annotated[str | None, typer.Option(help="What is asked about: x0,y0,x1,y1 in pixels of the picture.")] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="A point on what is asked about: x,y in pixels; may be given again.")
    ] = None,
    scribble: Annotated[
        str | None, typer.Option(help="A line drawn over what is asked about, by its corners: 'x,y x,y ...' in pixels.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="A black and white PNG of the picture's size: what is meant.")
    ] = None,
    out: Annotated[str, typer.Option(help="The annotated picture to write; for a folder, the folder of results.")] = "",
    max_failures: Annotated[int, typer.Option(help="Of a folder: pictures that may be unreadable.", min=0)] = 0,
    format_: Annotated[
        str,
        typer.Option("--format", help="Of a folder: also write localized_narratives or coco, which `build` reads."),
    ] = "",
    json_out: Annotated[str, typer.Option("--json", help="The JSON file to write; - for standard output.")] = "",
) -> None:
    """Say a sentence about a picture and where each of its words is."""
    with one_line_errors():
        from pixel_align import draw
        from pixel_align.image import read_image, read_mask
        from pixel_align.predict import Predictor

        asked = numbers("--box", box, 4) if box is not None else None
        points = [numbers("--point", one, 2) for one in point] if point else None
        inside = read_mask(read_file("--mask", mask)) if mask is not None else None
        said = {"instruction": instruction, "text": text, "box": asked, "points": points, "mask": inside}
        if scribble is not None:
            said["scribble"] = [numbers("--scribble", corner, 2) for corner in scribble.split()]
        if Path(image).is_dir():
            if not out or json_out:
                raise ValueError("image is a folder, expected --out DIR and no --json: its lines go there. Give --out.")
            _predict_all(checkpoint, Path(image), Path(out), mode, said, max_failures, format_)
            return
        if format_:
            raise ValueError(f"--format is {format_!r}, expected none: image is no folder. Use --json, or give one.")
        pixels = read_image(image)
        check_writable(out, picture=True)
        check_writable("" if json_out == "-" else json_out)
        predictor = Predictor.from_checkpoint(checkpoint)
        predictor.set_image(pixels)
        prediction = predictor.predict(mode, **said)
        if out:
            draw.annotate(pixels, *prediction.marks()).save(out)
        document = json.dumps(prediction.to_json(), ensure_ascii=False, indent=2)
        if json_out == "-":
            typer.echo(document)
        elif json_out:
            Path(json_out).write_text(document + "\n", encoding="utf-8")
        if json_out != "-":
            typer.echo(prediction.text)


@app.command()
def inspect(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    step: Annotated[int, typer.Option(help="Which step's batches.")],
    out: Annotated[str, typer.Option(help="The PNG to write.")] = "batches.png",
    changes: Set = None,
) -> None:
    """Draw the very batches that a run saw at a step."""
    with one_line_errors():
        from pixel_align import run_batches

        check_writable(out, picture=True)
        batches, vocabulary = run_batches.batches_of(run, step, changes or ())
        run_batches.write(batches, vocabulary, Path(out))
        typer.echo(out)


def _predict_all(
    checkpoint: str, folder: Path, out: Path, mode: str, said: dict[str, Any], most_failures: int, format_: str
) -> None:
    """Every picture of a folder, with a bar; see `predict_folder`."""
    import rich.console
    import rich.progress

    from pixel_align import predict_folder, raw_formats
    from pixel_align.predict import Predictor

    pictures = predict_folder.pictures_of(folder)
    form = raw_formats.raw_format(format_, mode, said) if format_ else None
    if form is not None:
        form.check(path.name for path in pictures)
    predict_folder.check_asked(out, mode, said)
    before = predict_folder.answered_in(out)
    predictor = Predictor.from_checkpoint(checkpoint)
    answers = predict_folder.predict_folder(predictor, pictures, out, mode, said, most_failures=most_failures)
    for _ in rich.progress.track(
        answers, "predict", total=len(pictures) - before, console=rich.console.Console(stderr=True)
    ):
        pass
    told = predict_folder.report(out, before)
    typer.echo(
        f"{out}/predictions.jsonl: {told.answered} pictures, {told.before} from before, {len(told.failures)} failed"
    )
    for name, error in told.failures.items():
        print(f"{name}: {error}", file=sys.stderr)
    if form is not None:
        left_out = predict_folder.write_raw(out, form, said)
        typer.echo(f"{out}/{form.file}: {told.before + told.answered} pictures, {len(left_out)} of them not in full")
        for name, why in left_out.items():
            print(f"{name}: {why}", file=sys.stderr)


@app.command()
def score(
    format_: Annotated[
        str, typer.Argument(metavar="FORMAT", help="pixel_llm, coco_captions, coco_detection, grit, glamm, ...")
    ],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="What a system said.")],
    targets: Annotated[Path, typer.Argument(metavar="TARGETS", help="The annotations of the evaluation set.")],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and report.png; none without it.")] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures, for report.png; may be given again.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resampled sets for the 95% intervals; 0 for none.", min=0)] = 1_000,
    seed: Annotated[int, typer.Option(help="Of resampling.", min=0)] = 0,
    predicted_only: Annotated[
        bool, typer.Option(help="Leave out what has no prediction, as some published evaluators do.")
    ] = False,
    convention: Annotated[
        str, typer.Option(help="Of dense captions: pixel_llm, lua, plus_one or strays_take_last; see docs/metrics.md.")
    ] = "",
) -> None:
    """Score files of any system: a table, and with --out metrics.json and, with --images, report.png."""
    with one_line_errors():
        import rich.console

        from pixel_align.evaluation import formats, report, scoring

        reader = formats.reader(format_)
        if images and out is None:
            raise ValueError("--images is given without --out, expected both. Say where report.png goes.")
        scoring.check_convention(reader.metrics, convention)
        if out is not None:
            report.check_folder("--out", out)
        cases = reader.read(predictions, targets)
        cases = cases.only_predicted() if predicted_only else cases
        result = scoring.score(cases, reader.metrics, convention=convention, resamples=resamples, seed=seed)
        console = rich.console.Console()
        by = f" by {result.convention}" if result.convention else ""
        console.print(report.table(result, f"{format_}: {len(cases.cases):,} cases{by}"))
        for table in report.part_tables(result):
            console.print(table)
        for line in report.remarks(result):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if out is not None:
            sheet = report.sheet(result, images) if images else None
            settings = {"format": format_, "predictions": str(predictions), "targets": str(targets)}
            how = {"predicted_only": predicted_only, "resamples": resamples, "seed": seed}
            report.write(report.document(result, **settings, **how), sheet, out)
            if images and sheet is None:
                console.print("no report.png: no picture of the chosen cases is in --images", soft_wrap=True)
            typer.echo(f"{out}/metrics.json{' report.png' if sheet is not None else ''}")


@app.command()
def benchmark(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="metrics, padding, train or input.")],
    json_out: Annotated[str, typer.Option("--json", help="File to write, one JSON object a line.")] = "",
    cases: Annotated[int, typer.Option(help="At most so many cases in each row; 0 for the full size.", min=0)] = 0,
    phrases: Annotated[
        Path | None, typer.Option(help="Visual Genome's region_descriptions.json; a small grammar without it.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A row by its name; may be given again.")] = None,
    preset: Annotated[str, typer.Option(help="Of train and input: quickstart or bench.")] = "",
    experiment: Annotated[str, typer.Option(help="Of padding, train and input: whose batches are measured.")] = "",
    changes: Set = None,
) -> None:
    """Measure speed and memory of metrics, of training steps or of input pipelines, or what of an experiment's batches
    is padding: a table, and with --json one line for each row.
    """
    with one_line_errors():
        if what not in ("metrics", "padding", "train", "input"):
            raise ValueError(f"WHAT is {what!r}, expected metrics, padding, train or input. Choose one of them.")
        import rich.console

        from pixel_align import config
        from pixel_align.benchmark import metrics, presets, rows

        check_writable(json_out)
        measured = []
        if what == "metrics":
            found = metrics.run(phrases, cases, names=only or ())
        else:
            file = presets.path(preset) if preset else experiment
            found = _measured(what, config.load(file, changes or ()), cases, only or ())
        for row in found:
            measured.append(row)
            typer.echo(f"{row['name']}: {row['cases']:,} {row['unit']} in {row['seconds']:.3g} s", err=True)
            if what == "padding":
                typer.echo("  " + ", ".join(f"{k} {share:.1%}" for k, share in row["notes"].items()), err=True)
        rich.console.Console().print(rows.table(measured))
        if json_out:
            rows.write(measured, Path(json_out))


def _measured(what: str, experiment: Any, cases: int, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of what is measured of an experiment."""
    if what == "padding":
        from pixel_align.benchmark import padding

        return padding.run(experiment, cases or 8)
    if what == "input":
        from pixel_align.benchmark import input as reading

        return reading.run(experiment, cases)
    from pixel_align.benchmark import train as training

    return training.run(experiment, only)


@app.command()
def sweep(
    points: Annotated[str, typer.Argument(metavar="SWEEP", help="FILE.py:NAME, a function that yields overrides.")],
    experiment: Annotated[
        list[str], typer.Option(help="What the points change, as of `train`; several gin files are read in order.")
    ],
    workdir: Annotated[str, typer.Option(help="Folder of all runs; runs/NAME by default. What is done stays.")] = "",
    changes: Set = None,
    gin_binding: Annotated[
        list[str] | None, typer.Option("--gin.", metavar="NAME=VALUE", help="As in --gin.Train.steps=7.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    slot_env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="As in CUDA_VISIBLE_DEVICES={slot}.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A figure of table and plot; may be given again. The loss by default.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say the points and where they stand; run nothing.")] = False,
    printed: Annotated[
        str, typer.Option("--print", metavar="TEMPLATE", help="One command a point: plain, tpu_vm, xpk or slurm.")
    ] = "",
    filled: Annotated[
        list[str] | None, typer.Option("--with", metavar="NAME=VALUE", help="A value that the template asks for.")
    ] = None,
    reported: Annotated[bool, typer.Option("--report", help="Table and plot of what is there; run nothing.")] = False,
) -> None:
    """Run an experiment at many settings, in turn or in parallel, and compare. Exit code 1 where a run is not done."""
    with one_line_errors():
        if listed + bool(printed) + reported > 1:
            raise ValueError("--list, --print and --report are given together, expected one. Choose.")
        import rich.console

        from pixel_align import config
        from pixel_align.experiment import Experiment
        from pixel_align.sweep import launch, report, runs
        from pixel_align.sweep import points as sweep_points

        base: Experiment = config.load(experiment, bindings=gin_binding or ())
        found = sweep_points.load(points, base, changes or ())
        folder = workdir or f"runs/{points.rpartition(':')[2]}"
        given = pairs("--with", filled or ())

        def command(point: sweep_points.Point, python: str = "") -> list[str]:
            where = f"{folder.rstrip('/')}/{point.name}"
            return launch.command(point, experiment, gin_binding or (), changes or (), where, python)

        if printed:
            for point in found:
                words = command(point, given.get("python", "python"))
                typer.echo(shlex.join(launch.fill(printed, point, words, points, given)))
            return
        if "://" in folder:
            raise ValueError(f"--workdir is {folder!r}, expected a folder of this machine. Use --print for buckets.")
        ended = None
        if not (listed or reported):
            ended = runs.run(
                found,
                Path(folder),
                [command(point) for point in found],
                slots=slots,
                environment=pairs("--slot-env", slot_env or ()),
                tell=lambda line: typer.echo(line, err=True),
            )
        rows = report.rows(found, Path(folder), ended)
        console = rich.console.Console()
        metrics = metric or ["loss"]
        if listed:
            console.print(report.table(rows, (), points))
            return
        console.print(report.table(rows, metrics, points))
        if Path(folder).is_dir():
            typer.echo(report.write(rows, points, Path(folder)))
        if problem := report.check_metrics(metrics, rows):
            raise ValueError(problem)
        report.plot(rows, metrics, Path(folder) / "sweep.png", points)
        typer.echo(f"{folder}/sweep.png")
        if left := report.unfinished(rows):
            typer.echo(f"not done: {', '.join(left)}", err=True)
            raise typer.Exit(1)


def pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """Texts NAME=VALUE as a dict. Raises ValueError for anything else."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} is {text!r}, expected NAME=VALUE. Correct it.")
        found[name] = value
    return found


@app.command("compile")
def compile_for(
    experiment: Annotated[str, typer.Argument(help="A file of experiments/: .py, with :preset, or .gin.")],
    topology: Annotated[str, typer.Option(help="A kind of TPU and the sides of its slice: v5e:16x16, v5p:4x4x4.")],
    program: Annotated[
        list[str] | None, typer.Option(help="train, evaluate or decode; may be given again. All by default.")
    ] = None,
    fast: Annotated[bool, typer.Option(help="Compile in half of the time, with less care for speed.")] = False,
    json_out: Annotated[str, typer.Option("--json", help="The JSON file to write.")] = "",
    changes: Set = None,
) -> None:
    """Say what a run asks of each chip of a TPU topology: memory, FLOPs, traffic. No TPU is needed."""
    with one_line_errors():
        names = program or ["train", "evaluate", "decode"]
        if unknown := [name for name in names if name not in ("train", "evaluate", "decode")]:
            raise ValueError(f"--program is {unknown[0]!r}, expected train, evaluate or decode. Choose among them.")
        check_writable(json_out)
        import rich.console

        from pixel_align import config
        from pixel_align.plan import programs, report
        from pixel_align.plan.topology import topology as described

        where = described(topology)
        run = programs.on_mesh(config.load(experiment, changes or ()), list(where.devices))
        reports = report.compile_all(run, where, names, fast=fast)
        rich.console.Console().print(report.table(reports))
        if json_out:
            document = [one.to_json() for one in reports]
            Path(json_out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_file(option: str, path: str) -> bytes:
    """The content of a file. Raises ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{option} is {path!r}, expected a file that exists. Check the path.")
    return Path(path).read_bytes()


def numbers(option: str, given: str, count: int) -> tuple[float, ...]:
    """ "1,2" -> (1.0, 2.0). Raises ValueError for anything but `count` finite numbers."""
    try:
        values = tuple(float(part) for part in given.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{option} is {given!r}, expected {count} numbers with commas between them. Correct it.")
    return values


def check_writable(path: str, *, picture: bool = False) -> None:
    """Raises ValueError, before any work, where a result could not be written."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"folder of {path!r} does not exist, expected one that does. Make it, or choose another.")
    if path and picture:
        import PIL.Image

        known = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.SAVE}
        if Path(path).suffix.lower() not in known:
            raise ValueError(f"--out is {path!r}, expected a picture such as out.png or out.jpg. Change the name.")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend becomes one line on stderr and exit code 2; PIXEL_ALIGN_TRACEBACK=1 shows where it came
    from. Everything else is a fault of the program and keeps its traceback.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, RuntimeError, ModuleNotFoundError) as error:
        message = _said_to_users(error)
        if os.environ.get("PIXEL_ALIGN_TRACEBACK") or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(2) from error


def _said_to_users(error: Exception) -> str | None:
    """The line for an error that a user can mend, None for others."""
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        for extra, modules in (("data", DATA_MODULES), ("eval", EVAL_MODULES), ("plots", ("matplotlib",))):
            if module in modules:
                advice = f"Install it: pip install 'pixel-align[{extra}]'."
                return f"module {module!r} is not installed, expected it for {extra}. {advice}"
        return None
    if isinstance(error, RuntimeError):
        from pixel_align.train import NonFiniteLoss

        if not isinstance(error, NonFiniteLoss):
            return None
    # The project's own messages are one line; a library's that is longer is no message to a user.
    return str(error) if "\n" not in str(error) else None


def quiet_libraries() -> None:
    """Lets libraries print errors only. TensorFlow must be told before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow only reads files here; on, it announces itself
    absl.logging.set_verbosity(absl.logging.ERROR)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the console script `pixel-align`."""
    quiet_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    # T5X writes the name into the option; to a parser of options `--gin.` is the option and the rest its value.
    return app([part for a in arguments for part in (("--gin.", a[6:]) if a.startswith("--gin.") else (a,))])
