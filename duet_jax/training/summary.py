"""The lines at the start and the end of a run."""

import logging
import math
import pathlib

import jax
from flax import nnx

from duet_jax import loggers, optim
from duet_jax.methods.networks import split
from duet_jax.runs.checkpoints import BEST, Checkpoints
from duet_jax.runtime import devices
from duet_jax.training.plan import Plan

_log = logging.getLogger(__name__)

# Share of the full learning rate with which an extension changes little.
_LITTLE = 0.01


def start_lines(plan: Plan, workdir: pathlib.Path, start: int) -> None:
    """Logs what is trained on what, for how long, where, and from which step."""
    config, facts = plan.config, plan.facts
    if plan.streamed:  # decoded images have been described
        _log.info(
            "data         %s: %d training and %d test images of %dx%dx%d, %s, read "
            "batch by batch",
            facts.name,
            facts.num_train,
            facts.num_test,
            *(facts.side, facts.side, facts.channels),
            f"{facts.num_classes} classes" if facts.num_classes else "no labels",
        )
    _log.info("method       %s", _describe_method(plan))
    _log.info("networks     %s", _describe_networks(plan))
    _log.info(
        "schedule     %d epochs of %d steps of %d images, %s with learning rate %g "
        "after %d",
        config.epochs,
        plan.steps_per_epoch,
        plan.batch_size,
        config.optimizer.name,
        plan.base_rate,
        config.warmup_epochs,
    )
    if plan.extensions:
        _describe_extension(plan)
    if config.warmup_epochs >= config.epochs:
        _log.warning(
            "the warm-up is the whole run: the learning rate is at most %.2g, not "
            "%s; lower config.warmup_epochs=%d",
            plan.rate(plan.total_steps - 1),
            _base_rate(plan),
            config.warmup_epochs,
        )
    _log.info("devices      %s; seed %d", devices.describe(), plan.seed)
    _log.info("workdir      %s, whose config.json has every setting", workdir)
    if start >= plan.total_steps:
        _log.info("finished at step %d already; nothing to train", start)
    elif start:
        _log.info("continuing   from the checkpoint of step %d", start)


def _describe_extension(plan: Plan) -> None:
    """Logs the schedule of a run that was extended, since the last time."""
    step, before, after = plan.extensions[-1]
    settings, warmup = plan.config.optimizer, plan.config.warmup_epochs
    begun = f"extended at step {step} from {before} to {after} epochs"
    if optim.in_warmup(step, warmup, plan.steps_per_epoch, settings.schedule):
        _log.info("schedule     %s: in the warm-up, so that of the longer run", begun)
        return
    rate = float(plan.rate(step))
    _log.info(
        "schedule     %s: a cosine from a learning rate of %.2g to 0 at step %d, "
        "without a second warm-up",
        begun,
        rate,
        plan.total_steps,
    )
    share = rate / plan.base_rate
    if share < _LITTLE:
        _log.warning(
            "at the extension the learning rate had fallen to %.2g %% of "
            "%s: little will change; a new run of %d epochs has a whole schedule",
            100 * share,
            _base_rate(plan),
            after,
        )


def _base_rate(plan: Plan) -> str:
    """Returns the field that the full learning rate is from, and what scales it."""
    settings = plan.config.optimizer
    shown = f"config.optimizer.learning_rate={settings.learning_rate:g}"
    if settings.scale == "none":
        return shown
    return f"{shown}, {plan.base_rate:g} with config.optimizer.scale={settings.scale}"


def _describe_method(plan: Plan) -> str:
    config, method = plan.config, plan.method
    codes = " ".join(method.two_views.stack.codes) or "no augmentation"
    if plan.of_decoders:
        return f"decoders of the features of {config.method}, of views with {codes}"
    return "; ".join(filter(None, (f"{config.method} on {codes}", method.describe())))


def _describe_networks(plan: Plan) -> str:
    networks = nnx.eval_shape(lambda: plan.method.init(nnx.Rngs(0)))
    params = split(networks)[1]
    counts = {
        name: sum(math.prod(x.shape) for x in jax.tree.leaves(part))
        for name, part in params.items()
    }
    heads = ", ".join(f"{n} {count:,}" for n, count in counts.items() if n != "encoder")
    name = plan.method.two_views.encoder.name
    if "encoder" not in counts:  # it is frozen
        return f"{heads} parameters, behind {name}"
    return f"{name}, {counts['encoder']:,} parameters ({heads})"


def end_lines(workdir: pathlib.Path) -> None:
    """Logs the last result, the best checkpoint and the work directory."""
    rows = loggers.read_rows(workdir / "metrics.jsonl")
    rows = [row for row in rows if row["split"] == "test"]
    metric = next((name for name in BEST if rows and name in rows[-1]), None)
    if metric:
        _log.info(
            "finished     %s on test images after epoch %.4g%s",
            loggers.shown(metric, rows[-1][metric]),
            rows[-1]["epoch"],
            _describe_best(workdir, rows),
        )
    _log.info("results in   %s", workdir)


def _describe_best(workdir: pathlib.Path, rows: list[dict]) -> str:
    """Describes what --step=best restores; the best row may not have been saved."""
    with Checkpoints(workdir / "checkpoints", create=False) as saved:
        best = saved.best()
    if best is None:
        return ""
    if best.step == rows[-1]["step"]:
        return ", which is --step=best too"
    epochs = [row["epoch"] for row in rows if row["step"] == best.step]
    epoch = f", epoch {epochs[-1]:.4g}" if epochs else ""
    value = loggers.shown(best.metric, best.value).partition(" ")[2]
    return f"; --step=best is step {best.step}{epoch}, with {value}"
