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

from duet_jax import devices, figures, metrics, report, train_state, workdir
from duet_jax.checkpoints import Checkpoints
from duet_jax.data import load_dataset
from duet_jax.encoding import FrozenEncoder
from duet_jax.methods.base import PredictionView
from duet_jax.plan import Plan, make_plan
from duet_jax.probes import knn
from duet_jax.probes.scores import classification
from duet_jax.record import Record, draw_curves
from duet_jax.steps import (
    Compiled,
    DeviceData,
    compile_functions,
    epoch_order,
    evaluate,
    place,
    scalar,
)
from duet_jax.types import Dataset, TrainState, View

_log = logging.getLogger(__name__)


def train(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Trains, or continues to train, in `directory`.

    Args:
      config: resolved, from `settings.check`.
      directory: receives config.json, dataset.json, metrics.jsonl, checkpoints/,
        figures/ and tensorboard/. If it holds checkpoints of the same configuration
        the run goes on from the newest.

    Raises:
      UsageError: anything the user can put right, before anything is compiled.
      TrainingError: the loss is no longer finite.
    """
    workdir.check(config, directory)
    devices.select(config.device)
    devices.enable_compilation_cache(config.compilation_cache)
    dataset = load_dataset(
        config.dataset.name,
        path=config.dataset.path,
        image_size=config.dataset.image_size,
        center_crop=config.dataset.center_crop,
        num_classes=config.dataset.num_classes or None,
        cache_dir=config.dataset.cache_dir,
    )
    workdir.check_dataset(dataset, directory)
    plan = make_plan(config, dataset)
    workdir.write_run(config, dataset, directory)
    with Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep) as saved:
        newest = saved.latest_step()
        start = newest or 0
        report.start_lines(config, plan, dataset, directory, start)
        if start >= plan.total_steps:
            report.end_lines(directory)
            return
        writers = metrics.open_writers(
            directory,
            config_dict=config.to_dict(),
            run_name=directory.name,
            wandb=config.wandb.to_dict(),
            tensorboard=config.tensorboard,
            resume_step=newest,
        )
        try:
            _run(config, directory, dataset, plan, saved, writers, start)
            draw_curves(directory, plan, writers, plan.total_steps)
        finally:
            writers.close()
    report.end_lines(directory)


def _run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    dataset: Dataset,
    plan: Plan,
    checkpoints: Checkpoints,
    writers: metrics.Writers,
    start: int,
) -> None:
    """Compiles, then trains from step `start` to the end."""
    data = place(dataset, plan.test_batch_size)
    begin = jax.jit(
        lambda key: train_state.initial_state(plan.method, plan.optimizer, key)
    )
    key = train_state.initial_key(plan.seed)
    # Compiled from shapes alone: a restored state then finds the same cached program.
    shapes = jax.eval_shape(begin, key)
    if start:
        state = checkpoints.restore(shapes)
    else:
        state = begin(key)
        writers.picture("views", draw_views(config, directory, plan, data), start)
    _log.info("compiling ...")
    clock = time.monotonic()
    compiled = compile_functions(plan, shapes, data)
    _log.info("compiled in %.1f s", time.monotonic() - clock)
    with contextlib.closing(
        metrics.Progress(plan.total_steps, plan.steps_per_epoch, plan.epochs, start)
    ) as progress:
        record = Record(config, directory, plan, writers, progress)
        watch = make_neighbours(config, plan, dataset) if config.knn.every else None
        _train_epochs(
            config, plan, compiled, state, data, checkpoints, record, watch, start
        )
        record.flush()


def make_neighbours(
    config: ml_collections.ConfigDict, plan: Plan, dataset: Dataset
) -> Callable[[TrainState], dict[str, float]]:
    """Returns `score(state) -> {"knn_top1": ...}`, the accuracy on the test split.

    The neighbours are those of `--mode=knn`, on the full features; a watch on the
    representation that no classifier's training stands behind.
    """
    encoder = FrozenEncoder(plan.method, batch_size=plan.test_batch_size)

    def score(state: TrainState) -> dict[str, float]:
        encoder.use(state.params["encoder"], state.batch_stats["encoder"])
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
    data: DeviceData,
    checkpoints: Checkpoints,
    record: Record,
    neighbours: Callable[[TrainState], dict[str, float]] | None,
    start: int,
) -> None:
    order_key = train_state.stream(plan.seed, train_state.ORDER)
    key = train_state.stream(plan.seed, train_state.TRAINING)
    step = start
    for epoch in range(start // plan.steps_per_epoch, plan.epochs):
        order = compiled.order(order_key, scalar(epoch))
        with jax.transfer_guard("disallow"):  # a hidden copy would stall the device
            while step < (epoch + 1) * plan.steps_per_epoch:
                state, scores = compiled.train(state, key, *data.train, order)
                step += plan.steps_per_call
                record.train_call(step, scores)
        done = epoch + 1
        last = done == plan.epochs
        save = last or done % config.checkpoint.every == 0
        # Every checkpoint is evaluated: its accuracy decides which one is the best, and
        # waiting for it means that no state with a broken loss is saved.
        neighbours_due = neighbours is not None and done % config.knn.every == 0
        if save or neighbours_due or done % config.evaluate_every == 0:
            measures = [functools.partial(evaluate, plan, compiled, state, data)]
            if neighbours_due:
                measures.append(functools.partial(neighbours, state))
            record.test(step, measures)
        if save:
            checkpoints.save(state, record.newest_test)
            record.restart_clock()


def draw_views(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    plan: Plan,
    data: DeviceData,
) -> pathlib.Path:
    """Draws the first views of the run in figures/views.png and returns its path."""

    @jax.jit
    def first_step(order_key, key, images):
        order = epoch_order(
            order_key,
            0,
            num_examples=len(images),
            steps=plan.steps_per_epoch,
            batch_size=plan.batch_size,
        )
        key = jax.random.fold_in(key, 0)
        return plan.method.make_views(key, images[order[0]], train=True)

    views = first_step(
        train_state.stream(plan.seed, train_state.ORDER),
        train_state.stream(plan.seed, train_state.TRAINING),
        data.train.images,
    )
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
    rows = np.arange(batch) % members * batch + np.arange(batch)
    return View(view.images[rows], {config.learned: view.targets[rows]})
