"""Trains a run: from a configuration to checkpoints, metrics and pictures.

Read `train` first: it shows all steps in order.
"""

import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from duet_jax import figures, loggers
from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.data import StreamedDataset
from duet_jax.errors import InterruptionError, UsageError
from duet_jax.figures.style import small_print
from duet_jax.methods.base import PredictionView
from duet_jax.metrics.classification import classification
from duet_jax.probes import knn
from duet_jax.runs import workdir
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.runs.history import Extension, History, parse_source
from duet_jax.runtime import devices, mesh, processes, terminal
from duet_jax.runtime.signals import Interruption
from duet_jax.training import health, initial, summary, train_step
from duet_jax.training.batches import Feed, make_feed, open_dataset
from duet_jax.training.compiled import compile_functions, initial_shapes, initial_state
from duet_jax.training.initial import Weights
from duet_jax.training.loop import Loop
from duet_jax.training.plan import Plan, check_start, make_plan, with_extensions
from duet_jax.training.recorder import Record, draw_curves
from duet_jax.types import Dataset, DatasetFacts, TrainState, View

_log = logging.getLogger(__name__)

# What the first process broadcasts if there is no step.
_NONE, _REFUSED = -1, -2


def train(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    accept: Callable[[DatasetFacts], None] = lambda facts: None,
    init_from: str | None = None,
    extend: bool = False,
    **cluster: str,
) -> None:
    """Trains, or continues to train, in `directory`.

    Args:
      config: resolved, from `config.checks.check`.
      directory: receives config.json, dataset.json, metrics.jsonl, checkpoints/,
        figures/ and tensorboard/. If it holds checkpoints of the same configuration,
        the run continues from the newest intact one.
      accept: raises a UsageError for images that what follows cannot take.
      init_from: the checkpoint that a new run takes its first weights from; see
        `history.parse_source`. A run that continues must have begun with it.
      extend: True to let a run that was begun with fewer epochs go on to
        `config.epochs`; see `optim.learning_rate`.
      **cluster: which process of which job this is; see `processes.start`.

    Raises:
      UsageError: anything the user can fix, before anything is compiled.
      TrainingError: the loss is no longer finite, or nothing can be saved.
      InterruptionError: by SIGTERM or SIGINT, after the run was saved.
    """
    source = None if init_from is None else parse_source(init_from)
    asked = {"source": source, "extend": extend}
    workdir.check(config, directory, **asked)
    begins = source is not None and not workdir.steps(directory)
    if begins:
        initial.check(source)
    loggers.check_wandb(config.wandb.project, config.wandb.mode)
    devices.select(config.device)
    processes.start(**cluster)
    with Interruption() as interruption:  # after JAX has set its SIGTERM handler
        devices.check(config.device)
        mesh.check_batch_size(config.batch_size)
        devices.enable_compilation_cache(config.compilation_cache)
        dataset = open_dataset(config)
        accept(dataset.facts)
        workdir.check_dataset(dataset.facts, directory)
        plan = make_plan(config, dataset.facts, streamed=dataset.streamed)
        weights = initial.load(source, plan) if begins else None
        claim = contextlib.nullcontext()
        if processes.is_main_process():  # for all of them
            claim = workdir.claimed(config, directory, **asked)
        try:
            with claim:
                proceed(plan, directory, dataset, interruption, weights)
        except InterruptionError:
            processes.shutdown()
            raise
        summary.end_lines(directory)
        # A process that exits early is reported as lost.
        processes.barrier("the end")


def proceed(
    plan: Plan,
    directory: pathlib.Path,
    dataset: Dataset | StreamedDataset,
    interruption: Interruption,
    weights: Weights | None,
) -> None:
    """Trains from the newest intact checkpoint to the end.

    Args:
      plan: of the run.
      directory: of the run, claimed.
      dataset: its images.
      interruption: asked after each call whether to stop.
      weights: that a new run begins with; None for random ones.

    Raises:
      UsageError: a checkpoint cannot be continued from.
      TrainingError: see `train`.
      InterruptionError: likewise.
    """
    keep = plan.config.checkpoint.keep
    with Checkpoints(directory / "checkpoints", keep=keep) as saved:
        newest = _newest(saved)
        start = newest or 0
        check_start(plan, start)
        history = History(weights.origin if weights else None)
        if start and processes.is_main_process():
            history = workdir.extended(plan.config, directory, start)
        plan = with_extensions(plan, _agreed(history.extensions))
        if processes.is_main_process():
            workdir.write_run(plan.config, plan.facts, directory, start, history)
        saved.set_aside(newest)
        summary.start_lines(plan, directory, start)
        if weights and not start:
            _log.info("weights      %s", weights)
        if start >= plan.total_steps:
            draw_curves(directory, plan, loggers.Writers([]), start)
            return
        with contextlib.closing(_open_writers(plan, directory, newest)) as writers:
            _run(plan, directory, dataset, saved, writers, start, interruption, weights)
            with terminal.doing("drawing the curves"):
                draw_curves(directory, plan, writers, plan.total_steps)


def _newest(saved: Checkpoints) -> int | None:
    """Returns the step to continue from, for all processes; None for a new run."""
    newest, refusal = _NONE, None
    if processes.is_main_process():
        try:
            newest = saved.newest_intact()
            newest = _NONE if newest is None else newest
        except UsageError as error:
            newest, refusal = _REFUSED, error
    newest = processes.broadcast(newest)
    if newest == _REFUSED:
        raise refusal or UsageError("process 0 refuses to continue; it says why.")
    return None if newest == _NONE else newest


def _agreed(extensions: tuple[Extension, ...]) -> tuple[Extension, ...]:
    """Returns the extensions that the first process gives, in every process.

    It alone reads them: it has claimed the directory, and will change the file.
    """
    numbers = [number for each in extensions for number in each]
    count = processes.broadcast(len(numbers))
    numbers = [processes.broadcast(each) for each in numbers or [0] * count]
    size = len(Extension._fields)
    return tuple(Extension(*numbers[i : i + size]) for i in range(0, count, size))


def _open_writers(
    plan: Plan, directory: pathlib.Path, newest: int | None
) -> loggers.Writers:
    """Opens the writers of rows, in the first process."""
    if not processes.is_main_process():
        return loggers.Writers([])
    return loggers.open_writers(
        directory,
        config_dict=plan.config.to_dict(),
        run_name=directory.name,
        wandb=plan.config.wandb.to_dict(),
        tensorboard=plan.config.tensorboard,
        resume_step=newest,
    )


def _run(
    plan: Plan,
    directory: pathlib.Path,
    dataset: Dataset | StreamedDataset,
    checkpoints: Checkpoints,
    writers: loggers.Writers,
    start: int,
    interruption: Interruption,
    weights: Weights | None,
) -> None:
    """Compiles, then trains from step `start` to the end."""
    with terminal.doing("preparing images and weights"):
        feed = make_feed(plan, dataset)
        if start:
            state = checkpoints.restore(initial_shapes(plan), start)
        else:
            state = initial_state(plan)
        if weights and not start:
            state = weights.put_into(state)
    if not start:
        with terminal.doing("drawing some views"):
            _show_views(plan, directory, feed, writers)
    _log.info("compiling ...")
    clock = time.monotonic()
    compiled = compile_functions(plan, feed)
    _log.info("compiled in %.1f s", time.monotonic() - clock)
    with contextlib.closing(_progress(plan, start)) as progress:
        record = Record(plan, directory, writers, progress)
        if start:
            record.resume(checkpoints.row(start))
        loop = Loop(
            plan=plan,
            directory=directory,
            compiled=compiled,
            feed=feed,
            checkpoints=checkpoints,
            record=record,
            interruption=interruption,
            neighbors=_make_neighbors(plan, dataset),
        )
        with terminal.doing("training"):
            loop.run(state, start)


def _progress(plan: Plan, start: int) -> loggers.Progress | loggers.NoProgress:
    if not processes.is_main_process():
        return loggers.NoProgress()
    return loggers.Progress(
        plan.total_steps, plan.steps_per_epoch, plan.config.epochs, start
    )


def _make_neighbors(
    plan: Plan, dataset: Dataset | StreamedDataset
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns `score(state) -> {"knn_top1": ...}`, the accuracy on the test split.

    As `--mode=knn` does on the full features, it measures the representation without
    training a classifier. None if `config.knn.every` is 0.
    """
    settings = plan.config.knn
    if not settings.every:
        return None
    encoder = FrozenEncoder(plan.method, batch_size=plan.test_batch_size)

    def score(state: TrainState) -> dict[str, float]:
        # On one device: the images come from the host, batch by batch.
        params, batch_stats = jax.tree.map(
            lambda x: x.addressable_data(0), (state.params, state.batch_stats)
        )
        encoder.use(params["encoder"], batch_stats.get("encoder", {}))
        bank, queries = (
            encoder(split.images)["full"] for split in (dataset.train, dataset.test)
        )
        scores = knn.classify(
            bank,
            dataset.train.labels,
            queries,
            num_classes=len(dataset.class_names),
            k=settings.k,
            weights=settings.weights,
            temperature=settings.temperature,
        )
        return {"knn_top1": classification(scores, dataset.test.labels).top1}

    return score


def _show_views(
    plan: Plan, directory: pathlib.Path, feed: Feed, writers: loggers.Writers
) -> None:
    """Draws the run's first views in figures/views.png, in the first process."""
    if not processes.is_main_process():
        return
    key = jax.random.fold_in(train_step.stream(plan.seed, train_step.TRAINING), 0)
    make_views = jax.jit(functools.partial(plan.method.make_views, train=True))
    images = feed.first_images()
    views = make_views(key, images)
    path = directory / "figures" / "views.png"
    # Asked of the method: SimCLR has no learned augmentation, whatever the field says.
    learned = getattr(plan.method, "learned", ())
    figures.draw_views(
        path,
        views.first,
        views.second,
        learned=learned,
        title="the first views",
        half_size=_one_of_each(views.prediction, plan.batch_size),
        original=np.asarray(images[: figures.COLUMNS], np.float32) / 255 - 0.5,
        scales=plan.method.two_views.stack.scales,
        small_print=small_print(
            plan.config.method, plan.facts.name, 0, plan.config.seed
        ),
    )
    writers.picture("views", path, 0)
    for code in learned:
        if code in views.first.structure:
            health.check_structure(
                code,
                *(view.structure[code] for view in (views.first, views.second)),
                fields=AUGMENTATIONS[code].fields,
            )


def _one_of_each(view: PredictionView | None, batch: int) -> View | None:
    """Returns one copy of each image, in turns; None without a prediction."""
    if view is None:
        return None
    copies = len(view.images) // batch
    rows = np.arange(batch) * copies + np.arange(batch) % copies
    return View(view.images[rows], {k: each[rows] for k, each in view.targets.items()})
