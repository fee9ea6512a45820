"""Training: from a configuration to checkpoints, metrics and pictures.

Read `train` first; it is the whole program in order.
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

from duet_jax import (
    devices,
    figures,
    mesh,
    metrics,
    processes,
    report,
    train_state,
    workdir,
)
from duet_jax.checkpoints import Checkpoints
from duet_jax.data import StreamedDataset
from duet_jax.encoding import FrozenEncoder
from duet_jax.feeds import Feed, make_feed, open_dataset
from duet_jax.methods.base import PredictionView
from duet_jax.plan import Plan, check_start, make_plan
from duet_jax.probes import knn
from duet_jax.probes.scores import classification
from duet_jax.record import Record, draw_curves
from duet_jax.steps import (
    Compiled,
    compile_functions,
    evaluate,
    initial_shapes,
    initial_state,
)
from duet_jax.types import Dataset, TrainState, View

_log = logging.getLogger(__name__)


def train(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    **cluster: str,
) -> None:
    """Trains, or continues to train, in `directory`.

    Args:
      config: resolved, from `settings.check`.
      directory: receives config.json, dataset.json, metrics.jsonl, checkpoints/,
        figures/ and tensorboard/. If it holds checkpoints of the same configuration
        the run goes on from the newest.
      **cluster: which process of which job this is; see `processes.start`.

    Raises:
      UsageError: anything the user can put right, before anything is compiled.
      TrainingError: the loss is no longer finite.
    """
    workdir.check(config, directory)
    devices.select(config.device)
    processes.start(**cluster)
    devices.check(config.device)
    mesh.check_batch_size(config.batch_size)
    devices.enable_compilation_cache(config.compilation_cache)
    dataset = open_dataset(config)
    facts = dataset.facts
    workdir.check_dataset(facts, directory)
    streamed = isinstance(dataset, StreamedDataset)
    plan = make_plan(config, facts, streamed=streamed)
    if processes.is_first():
        workdir.write_run(config, facts, directory)
    with Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep) as saved:
        newest = saved.latest_step()
        start = newest or 0
        check_start(plan, start)
        report.start_lines(config, plan, facts, directory, start, streamed=streamed)
        if start >= plan.total_steps:
            report.end_lines(directory)
            return
        writers = _open_writers(config, directory, newest)
        try:
            _run(config, directory, dataset, plan, saved, writers, start)
            draw_curves(directory, plan, writers, plan.total_steps)
        finally:
            writers.close()
    report.end_lines(directory)
    processes.wait_for_all("the end")  # who leaves early is taken for dead


def _open_writers(
    config: ml_collections.ConfigDict, directory: pathlib.Path, newest: int | None
) -> metrics.Writers:
    """Opens what rows are written to: by the first process, for all."""
    if not processes.is_first():
        return metrics.Writers([])
    return metrics.open_writers(
        directory,
        config_dict=config.to_dict(),
        run_name=directory.name,
        wandb=config.wandb.to_dict(),
        tensorboard=config.tensorboard,
        resume_step=newest,
    )


def _run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    dataset: Dataset | StreamedDataset,
    plan: Plan,
    checkpoints: Checkpoints,
    writers: metrics.Writers,
    start: int,
) -> None:
    """Compiles, then trains from step `start` to the end."""
    feed = make_feed(config, plan, dataset)
    if start:
        state = checkpoints.restore(initial_shapes(plan))
    else:
        state = initial_state(plan)
        if processes.is_first():
            path = draw_views(config, directory, plan, feed)
            writers.picture("views", path, start)
    _log.info("compiling ...")
    clock = time.monotonic()
    compiled = compile_functions(plan, feed)
    _log.info("compiled in %.1f s", time.monotonic() - clock)
    with contextlib.closing(_progress(plan, start)) as progress:
        record = Record(config, directory, plan, writers, progress)
        watch = make_neighbours(config, plan, dataset) if config.knn.every else None
        _train_epochs(
            config, plan, compiled, state, feed, checkpoints, record, watch, start
        )
        record.flush()


def _progress(plan: Plan, start: int) -> metrics.Progress | metrics.NoProgress:
    if not processes.is_first():
        return metrics.NoProgress()
    return metrics.Progress(plan.total_steps, plan.steps_per_epoch, plan.epochs, start)


def make_neighbours(
    config: ml_collections.ConfigDict, plan: Plan, dataset: Dataset
) -> Callable[[TrainState], dict[str, float]]:
    """Returns `score(state) -> {"knn_top1": ...}`, the accuracy on the test split.

    The neighbours are those of `--mode=knn`, on the full features; a watch on the
    representation that no classifier's training stands behind.
    """
    encoder = FrozenEncoder(plan.method, batch_size=plan.test_batch_size)

    def score(state: TrainState) -> dict[str, float]:
        # On one device: the images come from the host, batch by batch.
        params, batch_stats = jax.tree.map(
            lambda x: x.addressable_data(0), (state.params, state.batch_stats)
        )
        encoder.use(params["encoder"], batch_stats["encoder"])
        bank, queries = (
            encoder(split.images)["full"] for split in (dataset.train, dataset.test)
        )
        scores = knn.classify(
            bank,
            dataset.train.labels,
            queries,
            num_classes=len(dataset.class_names),
            k=config.knn.k,
            temperature=config.knn.temperature,
        )
        return {"knn_top1": classification(scores, dataset.test.labels).top1}

    return score


def _train_epochs(
    config: ml_collections.ConfigDict,
    plan: Plan,
    compiled: Compiled,
    state: TrainState,
    feed: Feed,
    checkpoints: Checkpoints,
    record: Record,
    neighbours: Callable[[TrainState], dict[str, float]] | None,
    start: int,
) -> None:
    step = start
    # A batch is put on the devices explicitly. A hidden copy would stall them.
    with contextlib.closing(feed.training(start)) as calls:
        for arguments in calls:
            with jax.transfer_guard("disallow"):
                state, scores = compiled.train(
                    state, compiled.keys.training, *arguments
                )
            step += plan.steps_per_call
            record.train_call(step, scores, waited=feed.waited)
            if not plan.ends_row(step):
                continue
            # Every checkpoint is evaluated: its accuracy decides which one is the best,
            # and waiting for it means that no state with a broken loss is saved.
            save = _checkpoint_is_due(config, plan, step)
            watch = _ends(plan, step, config.knn.every) and neighbours
            if save or watch or _ends(plan, step, config.evaluate_every):
                measures = [functools.partial(evaluate, plan, compiled, state, feed)]
                if watch:
                    measures.append(functools.partial(watch, state))
                record.test(step, measures)
            if save:
                checkpoints.save(state, record.newest_test)
                record.restart_clock()


def _checkpoint_is_due(
    config: ml_collections.ConfigDict, plan: Plan, step: int
) -> bool:
    """Whether the state of `step`, the end of a row, is to be saved."""
    within_an_epoch = step % plan.steps_per_epoch != 0
    last = step == plan.total_steps
    return within_an_epoch or last or _ends(plan, step, config.checkpoint.every)


def _ends(plan: Plan, step: int, epochs: int) -> bool:
    """Whether a multiple of `epochs` ends at `step`; never for 0."""
    return epochs > 0 and step % (epochs * plan.steps_per_epoch) == 0


def draw_views(
    config: ml_collections.ConfigDict, directory: pathlib.Path, plan: Plan, feed: Feed
) -> pathlib.Path:
    """Draws the first views of the run in figures/views.png and returns its path."""
    key = jax.random.fold_in(train_state.stream(plan.seed, train_state.TRAINING), 0)
    make_views = jax.jit(functools.partial(plan.method.make_views, train=True))
    views = make_views(key, feed.first_images())
    path = directory / "figures" / "views.png"
    figures.draw_views(
        path,
        views.first,
        views.second,
        learned=config.get("learned"),
        title=f"{config.method} on {config.dataset.name}",
        half_size=_one_of_each(views.prediction, config, plan.batch_size),
    )
    return path


def _one_of_each(
    view: PredictionView | None, config: ml_collections.ConfigDict, batch: int
) -> View | None:
    """One member of each image's orbit, taking turns; None without a prediction."""
    if view is None:
        return None
    members = len(view.targets) // batch
    rows = np.arange(batch) * members + np.arange(batch) % members
    return View(view.images[rows], {config.learned: view.targets[rows]})
