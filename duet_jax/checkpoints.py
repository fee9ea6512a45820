"""Checkpoints of a run, kept by Orbax.

A checkpoint has two items, so that an evaluation can restore the first alone:

  model   {"params": ..., "batch_stats": ...}
  train   {"step": ..., "opt_state": ...}

Both are plain nested dicts of arrays. The configuration lies beside the checkpoints, in
`config.json`.
"""

import pathlib
from collections.abc import Mapping
from typing import Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from duet_jax.errors import UsageError
from duet_jax.types import TrainState

# What "best" means.
BEST_METRIC = "online_top1"


class Checkpoints:
    """The checkpoints in a directory: the newest ones and the best.

    Saving is asynchronous; `close` waits for it.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, create: bool = True):
        """Opens, and if need be creates, `directory`.

        Args:
          directory: holds one sub-directory per saved step.
          keep: how many of the newest to keep, besides the best.
          create: False to read only what is there.
        """
        # Not `max_to_keep` with `best_fn`: that pair deletes the newest checkpoint when
        # it is not among the best (google/orbax#526), and a resumed run loses work.
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=("model", "train"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[BEST_METRIC],
                best_mode="max",
                create=create,
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the newest step, or None where nothing has been saved."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step with the best online top-1 on the test split, or None."""
        return self._manager.best_step()

    def all_steps(self) -> list[int]:
        """Returns the steps that are kept, rising."""
        return sorted(self._manager.all_steps())

    def find(self, step: int | str | None) -> int:
        """Returns the step that `step` means.

        Args:
          step: a number, "newest" or None, or "best" for the best online top-1 on the
            test split.

        Raises:
          UsageError: there is no such checkpoint.
        """
        steps = self.all_steps()
        if not steps:
            raise UsageError(
                f"{self._directory} holds no checkpoint; train first, or name another "
                "--workdir."
            )
        if step in (None, "newest"):
            return steps[-1]
        if step == "best":
            best = self.best_step()
            if best is None:
                raise UsageError(
                    f"--step=best: no checkpoint of {self._directory} has an accuracy; "
                    f"choose one of {_listed(steps)}, newest."
                )
            return best
        if not str(step).isdecimal() or int(step) not in steps:
            raise UsageError(
                f"--step={step} is not a checkpoint of {self._directory}; choose one "
                f"of {_listed(steps)}, newest, best."
            )
        return int(step)

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Saves `state` under its step, in the background.

        The arrays may be donated as soon as this returns.

        Args:
          state: what to save.
          metrics: of the test split; must hold BEST_METRIC.
        """
        step = int(state.step)
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.PyTreeSave(
                    {"params": state.params, "batch_stats": state.batch_stats}
                ),
                train=ocp.args.PyTreeSave(
                    {"step": state.step, "opt_state": state.opt_state}
                ),
            ),
            metrics={BEST_METRIC: float(metrics[BEST_METRIC])},
        )
        if not saved:  # Orbax says so only here, for a step it already has
            raise UsageError(
                f"checkpoint {step} in {self._directory} exists already; another run "
                "is writing there: give this one a --workdir of its own."
            )

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Returns the state saved at `step`, by default the newest.

        Args:
          like: shapes and types (arrays or `jax.ShapeDtypeStruct`), and the shardings
            to restore to; without any, this process's first device.
          step: one of `all_steps()`.
        """
        step = self.latest_step() if step is None else step
        like = _somewhere(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=_restore_as(
                    {"params": like.params, "batch_stats": like.batch_stats}
                ),
                train=_restore_as({"step": like.step, "opt_state": like.opt_state}),
            ),
        )
        return TrainState(
            restored.train["step"],
            restored.model["params"],
            restored.model["batch_stats"],
            restored.train["opt_state"],
        )

    def restore_model(
        self, params: dict, batch_stats: dict, step: int | None = None
    ) -> tuple[dict, dict]:
        """Returns parameters and running statistics alone.

        Args:
          params: shapes and types, nested as they were saved. It may hold a part of the
            networks only, such as {"encoder": ...}; no more than that is read.
          batch_stats: likewise; {} for none.
          step: one of `all_steps()`; the newest when None.

        Raises:
          UsageError: the checkpoint is of other networks, or cannot be read.
        """
        step = self.latest_step() if step is None else step
        # Orbax takes an empty dict for something else than one with no entries.
        parts = {"params": params, "batch_stats": batch_stats}
        like = _somewhere({name: part for name, part in parts.items() if part})
        try:
            self._check_arrays(like, step)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(model=_restore_as(like, partial=True)),
            )
        except UsageError:
            raise
        except Exception as error:  # Orbax has no common type for damaged files
            reason = " ".join(str(error).split())[:200]
            others = _listed([each for each in self.all_steps() if each != step])
            raise UsageError(
                f"checkpoint {step} in {self._directory} cannot be read "
                f"({type(error).__name__}: {reason}); choose another step: {others}."
            ) from error
        model = restored.model
        return model.get("params", {}), model.get("batch_stats", {})

    def _check_arrays(self, like: dict, step: int) -> None:
        """Raises a UsageError unless the networks in `like` are those of `step`."""
        saved = ocp.PyTreeCheckpointHandler().metadata(
            self._directory / str(step) / "model"
        )
        wanted = _shapes(like)
        parts = {name[:2] for name in wanted}
        found = {
            name: shape
            for name, shape in _shapes(saved.tree).items()
            if name[:2] in parts
        }
        for name in sorted({**wanted, **found}):
            if wanted.get(name) != found.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self._directory} is of another "
                    f"architecture than its config.json: {'.'.join(name)} is "
                    f"{found.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} by the configuration; give back "
                    "the config.json the run was trained with."
                )

    def close(self) -> None:
        """Waits for the saving to finish."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _shapes(tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every array by its path in nested dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves
    }


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _restore_as(like, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """Restores into the shapes, types and devices of `like`, which may be a part."""
    return ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=partial,
    )


def _somewhere(tree):
    """The tree's shapes where they are wanted, or else on this process's first device.

    Orbax would go back to the devices it was saved from, which may not be here.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, tree)
