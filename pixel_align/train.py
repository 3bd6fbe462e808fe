"""Training: one step, and one loop that reads from top to bottom."""

import contextlib
import dataclasses
import datetime
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress

import pixel_align
from pixel_align import data, distributed, gradients, losses, models, optim, param_rules, run_batches, sharding, text
from pixel_align.batch import Batch, check
from pixel_align.checkpoints import store
from pixel_align.evaluation import evaluator, seen
from pixel_align.evaluation.seen import Seen
from pixel_align.experiment import Eval, Experiment
from pixel_align.metrics_log import MetricsLog
from pixel_align.models import ModelConfig
from pixel_align.settings import from_json, to_json, to_plain
from pixel_align.state import (
    TrainState,
    check_base,
    check_init,
    from_saved,
    init_params,
    make_state,
    present,
    saved_arrays,
    state_shardings,
    take_over,
)
from pixel_align.step_profile import StepProfile

Metrics = dict[str, jax.Array]
SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal to show a bar


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is NaN or infinite; the message names the step and the checkpoint that is still good."""


def make_train_step(
    config: Experiment, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, batches) -> (next state, metrics); randomness is a function of seed and step.

    A step takes one batch of each group of tasks (`Experiment.batches`), in `train.accumulate` parts.
    """
    family = models.family_of(config.model)
    weights = [1.0, *(group.weight for group in config.data.further)]
    parts = config.train.accumulate

    def terms(model: ModelConfig, frozen: Any, trainable: Any, batch: Any, key: jax.Array) -> losses.Terms:
        params = param_rules.merge(trainable, frozen)
        outputs = family.module(model).apply({"params": params}, batch, train=True, rngs={"dropout": key})
        return family.loss(outputs, batch, model)

    def train_step(state: TrainState, batches: tuple[Any, ...]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        terms_of = [functools.partial(terms, model, state.frozen) for model, _ in config.batches()]
        if parts == 1:
            (loss, means), gradient = gradients.at_once(terms_of, weights, state.trainable, batches, key)
        else:
            (loss, means), gradient = gradients.in_parts(terms_of, weights, state.trainable, batches, key, parts)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if average is not None:
            # Early steps count fully, or the average would remember the initialisation.
            decay = jnp.minimum(config.optim.average, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, trainable)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        metrics |= {f"loss_{name}": value for name, value in means.items()}
        return TrainState(state.step + 1, trainable, state.frozen, optimizer_state, average), metrics

    return train_step


def train(config: Experiment, workdir: str | os.PathLike[str]) -> TrainState:
    """Trains an experiment in a work folder, or resumes it there, and returns the last state.

    Raises:
      ValueError: settings, data or a checkpoint that do not fit together, before any step.
      NonFiniteLoss: at the first such step.
      distributed.Stopped: it was told to stop, and where it stands is saved.
      distributed.Failure: processes that were started with different settings or data.
    """
    if "://" in os.fspath(workdir):  # a path would become a folder of that name here
        raise ValueError(f"workdir is {os.fspath(workdir)!r}, expected a mounted folder. See docs/pods.md on buckets.")
    workdir = Path(workdir)
    family = models.family_of(config.model)
    first_process = jax.process_index() == 0  # which speaks and writes for all
    console = rich.console.Console(stderr=True, quiet=not first_process)

    # ---- Vocabulary and data: what is wrong here is said before anything is compiled.
    checkpoints = workdir / "checkpoints"
    vocabulary = find_vocabulary(config, checkpoints)
    config = with_readers(config, checkpoints)
    check_resumable(config, checkpoints, vocabulary)
    streams = [(read, family.converter(model, vocabulary, read.augment)) for model, read in config.batches()]
    for read, _ in streams:
        data.check_readers(read)
        for task in data.rates(read):
            data.check_task(read, task, read.split)
    for evaluation in config.evals:
        evaluator.check(config, evaluation)
    distributed.agree(facts(config, workdir, vocabulary))

    # ---- Mesh, and the state as shapes: nothing is allocated yet.
    rules = family.rules(config.model)
    abstract_params = jax.eval_shape(lambda: init_params(config))
    if config.init.checkpoint and not (checkpoints.is_dir() and store.steps_of(checkpoints)):
        check_init(config, abstract_params)
    optimizer = optim.optimizer(config.optim, config.train.steps, abstract_params, rules)
    abstract = jax.eval_shape(lambda: make_state(config, init_params(config), rules, optimizer))
    mesh = sharding.make_mesh(
        config.mesh,
        held=lambda mesh: sharding.bytes_per_chip(abstract, state_shardings(abstract, rules, optimizer, mesh)),
    )
    sharding.check_batches([(read.mixture, read.batch_size) for read, _ in streams], mesh, config.train.accumulate)
    shardings = state_shardings(abstract, rules, optimizer, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    counts = [sum(x.size for x in jax.tree.leaves(half)) for half in (abstract.trainable, abstract.frozen)]
    console.print(
        f"{sum(counts):,} parameters, {counts[0]:,} of them trained, on {mesh.size} {jax.devices()[0].platform}",
        highlight=False,
    )

    names = param_rules.match(rules["sharding"], abstract_params)
    if whole := sharding.indivisible(abstract_params, names, mesh):
        console.print(f"replicated, as the mesh does not divide them: {'; '.join(whole)}", highlight=False)

    # ---- Restore or initialise, in this order of precedence:
    # 1. the newest step of this work folder; 2. init.checkpoint; 3. the seed.
    keeper = store.Store(checkpoints, config.train.keep)
    tell = functools.partial(console.print, highlight=False, soft_wrap=True)
    restored = keeper.restore_newest(functools.partial(saved_arrays, abstract), tell)
    positions = None if restored is None else restored.positions
    if restored is None or restored.base:
        params = jax.jit(lambda: init_params(config), out_shardings=shardings.params)()
        if config.init.checkpoint:
            params = take_over(config, params, tell)
        start = jax.jit(lambda p: make_state(config, p, rules, optimizer), out_shardings=shardings)
        state = start(params)
        del params
    if restored is not None:
        if restored.base:
            check_base(state.frozen, restored.base, f"step {restored.step} of {checkpoints}")
        base = state.params if restored.base else None
        state = from_saved(restored.arrays, restored.step, abstract, rules, base)
        tell(f"resumed at step {restored.step}")

    # Only now: a run that could not be resumed leaves what was there as it was.
    history = training_history(config)
    if first_process:
        store.write_header(checkpoints, to_json(config), vocabulary)
        history.write(checkpoints)
    asked = {f"{e.task}/{e.split}": seen.read(data.set_folder(config.data, e.task), e.split) for e in config.evals}
    for overlap in seen.overlaps(history, asked):
        console.print(str(overlap), highlight=False, soft_wrap=True)

    # ---- Loop
    train_step: Any = jax.jit(
        make_train_step(config, optimizer), donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))
    )
    if jax.process_count() > 1:
        # Compiled by all before any runs it: who comes first would wait inside, and not for long.
        batch = [family.batch_spec(model, read.batch_size) for model, read in config.batches()]
        lies = sharding.over_batch(mesh)
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), tuple(batch))
        with jax.set_mesh(mesh):
            train_step = train_step.lower(abstract, placed).compile()
        distributed.meet("the step is compiled")
    learning_rate = optim.schedule(config.optim, config.train.steps)
    first = int(state.step)
    log = MetricsLog(workdir, first, writes=first_process)
    trained_only = config.train.save == "trainable"
    pending: tuple[int, Metrics, tuple[Any, ...]] | None = None
    with (
        keeper,
        jax.set_mesh(mesh),
        data.Steps(streams, positions, sharding.over_batch(mesh)) as steps,
        distributed.Stop() as stop,
        _progress(console) as progress,
        StepProfile(workdir / "profile", config.train.profile_steps) as profiled,
        log,
    ):
        # A run that was killed between saving a step and evaluating it.
        for evaluation in _due(config, first) if first else ():
            if not distributed.gather(log.holds(first, _name(evaluation)))[0]:
                _evaluate(
                    config, evaluation, state.best_params, vocabulary, history, mesh, workdir, first, log, console
                )
        bar = progress.add_task("train", total=config.train.steps, completed=first, said="")
        told = -np.inf
        begun, begun_at, waited = time.perf_counter(), first, 0.0
        for step in range(first + 1, config.train.steps + 1):
            if pending is not None and not steps.ready:
                jax.block_until_ready(pending[1])  # from here on the devices wait, too
            begun_waiting = time.perf_counter()
            batches, positions = next(steps)
            waited += time.perf_counter() - begun_waiting
            if step == first + 1:
                for batch, (model, _) in zip(batches, config.batches(), strict=True):
                    check(batch, family.batch_spec(model, batch.images.shape[0]))
            state, metrics = profiled(step, train_step, state, data.to_device(batches, sharding.over_batch(mesh)))

            # The metrics of the step before, while this one runs.
            if pending is not None:
                with _batches_left(*pending[::2], vocabulary, workdir):
                    _check_finite(*pending[:2], keeper)
            pending = step, metrics, batches
            last = step == config.train.steps
            if step == first + 1:
                jax.block_until_ready(metrics)  # compiling is not part of the speed
                begun, begun_at, waited = time.perf_counter(), step, 0.0
            if step % config.train.log_every == 0 or last:
                values = {name: float(value) for name, value in metrics.items()}
                with _batches_left(step, batches, vocabulary, workdir):
                    _check_finite(step, metrics, keeper)
                seconds = max(time.perf_counter() - begun, 1e-9)
                speed = (step - begun_at) / seconds
                values |= {"learning_rate": float(learning_rate(step - 1)), "steps_per_second": speed}
                values["data_wait"] = waited / seconds  # share of the time that steps waited for data
                log.write(step, values)
                said = f"loss {values['loss']:.4f}  {speed:.2f} steps/s  {values['data_wait']:.0%} waiting for data"
                progress.update(bar, said=said)
                # The bar is for a terminal; a file hears of it now and then.
                if not console.is_terminal and (last or time.perf_counter() - told > SECONDS_BETWEEN_LINES):
                    told = time.perf_counter()
                    left = datetime.timedelta(seconds=round((config.train.steps - step) / speed)) if speed else "?"
                    console.print(f"step {step}/{config.train.steps}  {said}  {left} left", highlight=False)
            progress.update(bar, completed=step)
            stopped = stop.after(step) and not last
            if step % config.train.checkpoint_every == 0 or last or stopped:
                with _batches_left(step, batches, vocabulary, workdir):
                    _check_finite(step, metrics, keeper)
                everywhere = data.joined(distributed.gather(positions))
                base = present(state.frozen) if trained_only else None
                keeper.save(step, saved_arrays(state, trained_only), everywhere, base)
            if stopped:
                keeper.wait()
                raise distributed.Stopped(f"step {step} is saved. Start the run again to go on.")
            for evaluation in _due(config, step):
                _check_finite(step, metrics, keeper)
                _evaluate(config, evaluation, state.best_params, vocabulary, history, mesh, workdir, step, log, console)
                # An evaluation is not training time.
                begun, begun_at, waited = time.perf_counter(), step, 0.0
    return state


def with_readers(config: Experiment, checkpoints: Path) -> Experiment:
    """`config` with the number of its readers: its own, else that of the run in this folder, else one a process."""
    if config.data.readers:
        return config
    readers = jax.process_count()
    if checkpoints.is_dir() and (checkpoints / store.CONFIG).is_file() and store.steps_of(checkpoints):
        readers = max(1, from_json(Experiment, store.read_config(checkpoints)).data.readers)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, readers=readers))


def facts(config: Experiment, workdir: Path, vocabulary: text.Vocabulary) -> dict[str, Any]:
    """What has to be the same in all processes of a run, by name.

    Hosts may have their copies of data and vocabulary in different places: what these hold is compared.
    """
    checkpoints = workdir / "checkpoints"
    read = {(read.dir, task, read.split): read for _, read in config.batches() for task in data.rates(read)}
    read |= {(config.data.dir, e.task, e.split): config.data for e in config.evals}
    return {
        "version of pixel_align": pixel_align.__version__,
        "version of jax": jax.__version__,
        "workdir": str(workdir.absolute()),
        **{
            f"config.{k}": v for k, v in _settings(to_plain(config)).items() if k not in ("data.dir", "data.vocabulary")
        },
        "vocabulary": vocabulary.digest(),
        **{f"data of {task}/{split}": data.listing(of, task, split) for (_, task, split), of in read.items()},
        "steps in workdir": store.steps_of(checkpoints) if checkpoints.is_dir() else [],
    }


def find_vocabulary(config: Experiment, checkpoints: Path) -> text.Vocabulary:
    """The vocabulary that data.vocabulary names, or the one that a run to be resumed left beside its checkpoints.

    Raises:
      ValueError: none is named. FileNotFoundError: no such file.
    """
    if not config.data.vocabulary and not checkpoints.is_dir():
        raise ValueError(
            "data.vocabulary is '', expected a SentencePiece .model or WordPiece .txt file. "
            "Give it: --set data.vocabulary=FILE."
        )
    return text.load_vocabulary(config.data.vocabulary or checkpoints)


def training_history(config: Experiment) -> Seen:
    """The pictures that a run is trained on, those of the checkpoint that it begins with included."""
    own = {
        f"{task}/{read.split}": seen.read(data.set_folder(read, task), read.split)
        for _, read in config.batches()
        for task in data.rates(read)
    }
    if not config.init.checkpoint:
        return Seen.of(own)
    before = Seen.read(store.find(config.init.checkpoint)[0])
    return Seen.of(own, before or Seen(unknown=("init.checkpoint",)))


def check_resumable(config: Experiment, checkpoints: Path, vocabulary: text.Vocabulary) -> None:
    """Raises ValueError if a run in this folder began with another model or vocabulary; says what else differs."""
    if not (checkpoints / store.CONFIG).is_file() or not any(p.name.isdigit() for p in checkpoints.iterdir()):
        return
    before = from_json(Experiment, store.read_config(checkpoints))
    advice = "Choose another --workdir, or take over its weights with init.checkpoint."
    for what, same in (
        ("model", before.model == config.model),
        ("vocabulary", store.read_vocabulary(checkpoints).digest() == vocabulary.digest()),
        ("moving average", bool(before.optim.average) == bool(config.optim.average)),
    ):
        if not same:
            raise ValueError(
                f"the {what} of this experiment is not the one that {checkpoints.parent} began with, expected the "
                f"same. {advice}"
            )
    now, then = _settings(to_plain(config)), _settings(to_plain(before))
    if changed := [f"{name} {then.get(name)!r} -> {now.get(name)!r}" for name in now if now[name] != then.get(name)]:
        print(f"resuming with other settings: {', '.join(changed)}", file=sys.stderr)


def _settings(plain: Any, path: str = "") -> dict[str, Any]:
    """Dotted name -> value of every setting of a tree of dicts."""
    if not isinstance(plain, dict):
        return {path: plain}
    return {k: v for name, part in plain.items() for k, v in _settings(part, f"{path}.{name}".lstrip(".")).items()}


def _due(config: Experiment, step: int) -> list[Eval]:
    """The evaluations that belong to a step."""
    last = step == config.train.steps
    return [evaluation for evaluation in config.evals if last or (evaluation.every and step % evaluation.every == 0)]


def _name(evaluation: Eval) -> str:
    """What an evaluation is called in metrics and file names; one task may be asked on several splits."""
    return f"{evaluation.task}-{evaluation.split}"


def _evaluate(
    config: Experiment,
    evaluation: Eval,
    params: Any,
    vocabulary: text.Vocabulary,
    history: Seen,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    step: int,
    log: MetricsLog,
    console: rich.console.Console,
) -> None:
    """One evaluation inside a run: metrics into the log, a sheet of pictures into the work folder."""
    result = evaluator.evaluate(config, evaluation, params, vocabulary, history=history, mesh=mesh)
    if jax.process_index():
        return
    name = _name(evaluation)
    log.write(step, {f"{name}/{key}": value for key, value in result.metrics.items()})
    values = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
    console.print(f"step {step}  {name}  {values}", highlight=False, soft_wrap=True)
    if result.pictures is not None:
        path = workdir / "pictures" / f"{name}-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        result.pictures.save(path)


def _check_finite(step: int, metrics: Metrics, keeper: store.Store) -> None:
    """Raises NonFiniteLoss. Where loss and gradient of a step are finite, so are the parameters saved with it."""
    wrong = {name: float(metrics[name]) for name in ("loss", "gradient_norm")}
    wrong = {name: value for name, value in wrong.items() if not np.isfinite(value)}
    if not wrong:
        return
    keeper.wait()
    good = keeper.latest()
    left = "no checkpoint was saved before" if good is None else f"the checkpoint of step {good} is good"
    advice = "start again" if good is None else "start again: the run resumes there"
    what = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in wrong.items())
    raise NonFiniteLoss(
        f"step {step} has {what}, expected finite numbers; {left}. "
        f"Lower optim.peak_lr or set optim.clip_norm, and {advice}."
    )


@contextlib.contextmanager
def _batches_left(step: int, batches: tuple[Any, ...], vocabulary: text.Vocabulary, workdir: Path) -> Iterator[None]:
    """Where a step turns out not to be finite, leaves what it saw as a picture and says so in the message."""
    try:
        yield
    except NonFiniteLoss as error:
        if jax.process_index() or not all(isinstance(batch, Batch) for batch in batches):
            raise
        path = workdir / "pictures" / f"non_finite-{step:07d}.png"
        run_batches.write(batches, vocabulary, path)
        raise NonFiniteLoss(f"{error} What it saw is drawn in {path}.") from error


def _progress(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[said]}"),
        console=console,
        disable=not console.is_terminal,
    )
