"""What is kept, and what comes back."""

import errno
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from duet_jax import checkpoints as module
from duet_jax.checkpoints import Checkpoints
from duet_jax.errors import TrainingError, UsageError
from duet_jax.types import TrainState

# Left by killed runs, and by one that set a damaged checkpoint aside.
REMAINDERS = ("9.unsealed.orbax-checkpoint-tmp", "9.unsealed", ".deleted-9")
ASIDE = "damaged-9"


def state(step):
    params = {"encoder": {"kernel": jnp.full((2, 3), float(step))}}
    stats = {"encoder": {"mean": jnp.full((3,), -float(step))}}
    moments = (jnp.asarray(step, jnp.int32), params)
    sound = jnp.asarray(step % 2 == 0)
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, moments, sound)


def save_all(checkpoints, accuracies):
    for step, accuracy in enumerate(accuracies, 1):
        metrics = None if accuracy is None else {"online_top1": accuracy}
        checkpoints.save(state(step), metrics)


@pytest.fixture
def sealing(monkeypatch):
    """Has a function called while a checkpoint is complete, but not yet sealed."""

    def install(function):
        seal = module._seal

        def watched(directory):
            function(directory)
            seal(directory)

        monkeypatch.setattr(module, "_seal", watched)

    return install


@pytest.mark.parametrize(
    ("keep", "accuracies", "kept", "best"),
    [
        (1, [0.9, 0.1, 0.2], [1, 3], 1),
        (2, [0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5], 2),
        (2, [0.1, 0.2, 0.3], [2, 3], 3),
        (1, [0.5, 0.5, 0.1], [2, 3], 2),  # the newest of equals
        (1, [0.5, None, None], [1, 3], 1),
        (1, [None, None, None], [3], None),
        (1, [float("nan"), 0.1, 0.0], [2, 3], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, accuracies, kept, best):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        save_all(checkpoints, accuracies)
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        assert checkpoints.all_steps() == kept
        assert checkpoints.best_step() == best
        assert checkpoints.latest_step() == len(accuracies)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(map(str, kept))


def test_who_saves_nothing_deletes_nothing(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save_all(checkpoints, [0.1, 0.2, 0.3])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore(state(0))
    assert checkpoints.all_steps() == [1, 2, 3]


def test_an_old_one_is_deleted_after_the_new_one_is_there(tmp_path, sealing):
    seen = []
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        sealing(lambda _: seen.append(checkpoints.all_steps()))
        save_all(checkpoints, [0.1, 0.2, 0.3])
    assert seen == [[], [1], [2]]
    assert checkpoints.all_steps() == [3]


def test_a_damaged_accuracy_is_not_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save_all(checkpoints, [0.1, 0.5])
        checkpoints.wait()
        (tmp_path / "1" / "metrics" / "metrics").write_text('{"online_top1": 0.9}')
        assert checkpoints.best_step() == 2


def test_every_array_comes_back(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save_all(checkpoints, [0.1, 0.2])
    with Checkpoints(tmp_path) as checkpoints:
        for step, restored in (
            (2, checkpoints.restore(state(0))),
            (1, checkpoints.restore(state(0), step=1)),
        ):
            jax.tree.map(np.testing.assert_array_equal, restored, state(step))
        params, stats = checkpoints.restore_model(state(0).params, state(0).batch_stats)
        np.testing.assert_array_equal(params["encoder"]["kernel"], 2)
        np.testing.assert_array_equal(stats["encoder"]["mean"], -2)


def test_a_part_of_the_model(tmp_path):
    saved = state(1)._replace(params={"a": {"b": jnp.ones(2)}, "c": {"d": jnp.ones(3)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, None)
        checkpoints.wait()
        params, stats = checkpoints.restore_model({"c": saved.params["c"]}, {})
    assert jax.tree.map(jnp.shape, params) == {"c": {"d": (3,)}}
    assert stats == {}


def test_the_row_comes_back(tmp_path):
    row = {"scores": {"loss": [0.1, 1e-38]}, "seconds": 1.5, "waited": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1), None, row)
        checkpoints.save(state(2), None)
        checkpoints.wait()
        assert checkpoints.row(1) == row
        assert checkpoints.row(2) == {}


def test_the_best_of_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [None])
        checkpoints.wait()
        with pytest.raises(UsageError, match=r"no checkpoint of .* has an accuracy"):
            checkpoints.find("best")
        checkpoints.save(state(2), {"online_top1": 0.0})
        checkpoints.wait()
        assert checkpoints.find("best") == 2


def test_nothing_has_been_saved(tmp_path):
    with Checkpoints(tmp_path / "deeper" / "checkpoints") as checkpoints:
        assert checkpoints.newest_sound() is None
        assert checkpoints.latest_step() is None
    with Checkpoints(tmp_path / "missing", create=False) as checkpoints:
        assert checkpoints.newest_sound() is None
    assert not (tmp_path / "missing").exists()


def test_a_step_is_not_saved_twice(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1, 0.2])
        for step in (1, 2):
            with pytest.raises(UsageError, match=r"checkpoint 2 .* exists already"):
                checkpoints.save(state(step), {"online_top1": 0.3})


def test_a_checkpoint_manager_opens_it(tmp_path):
    """Without our code: the seal and our names are not in Orbax's way."""
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save_all(checkpoints, [0.1, 0.9, None])
    for name in (*REMAINDERS, ASIDE):
        (tmp_path / name).mkdir()
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["online_top1"])
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        assert sorted(manager.all_steps()) == [1, 2, 3]
        assert manager.latest_step() == 3
        assert manager.best_step() == 2
        items = ocp.args.Composite(model=ocp.args.StandardRestore())
        model = manager.restore(2, args=items).model
    np.testing.assert_array_equal(model["params"]["encoder"]["kernel"], 2)


def test_remainders_go_when_the_training_does(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
    for name in (*REMAINDERS, ASIDE, "2.orbax-checkpoint-tmp"):
        (tmp_path / name / "model").mkdir(parents=True)
    before = set(tmp_path.iterdir())
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.all_steps() == [1]
    assert set(tmp_path.iterdir()) == before
    with Checkpoints(tmp_path) as checkpoints:
        assert {path.name for path in tmp_path.iterdir()} == {"1", ASIDE}
        checkpoints.save(state(2), {"online_top1": 0.2})
    with Checkpoints(tmp_path) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(state(0)).step, 2)


def test_set_aside(tmp_path, caplog, monkeypatch):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save_all(checkpoints, [0.1, 0.2, 0.3])
        checkpoints.wait()
        (tmp_path / "damaged-3" / "older").mkdir(parents=True)
        checkpoints.set_aside(None)
        with monkeypatch.context() as another:
            another.setattr(jax, "process_index", lambda: 1)
            checkpoints.set_aside(1)
        assert checkpoints.all_steps() == [1, 2, 3]
        with caplog.at_level(logging.WARNING):
            checkpoints.set_aside(1)
        assert checkpoints.all_steps() == [1]
        assert str(tmp_path / "damaged-2") in caplog.text
        assert (tmp_path / "damaged-3" / "model").is_dir()
        checkpoints.save(state(2), {"online_top1": 0.4})
    assert checkpoints.all_steps() == [1, 2]
    assert checkpoints.newest_sound() == 2


def test_a_checkpoint_appears_sealed(tmp_path, sealing):
    seen = []
    with Checkpoints(tmp_path) as checkpoints:
        sealing(lambda path: seen.append((checkpoints.all_steps(), os.listdir(path))))
        save_all(checkpoints, [0.1])
        checkpoints.wait()
    [(steps, files)] = seen
    assert steps == []
    # All that Orbax writes is there, and so is in the seal.
    assert set(files) | {"checksums.json"} == set(os.listdir(tmp_path / "1"))


def test_the_disk_holds_what_is_sealed(tmp_path, monkeypatch):
    fsync, rename, events = os.fsync, os.rename, []

    def flushed(number):
        events.append(os.path.realpath(f"/proc/self/fd/{number}"))
        fsync(number)

    def renamed(old, new):
        events.append(f"-> {new}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
    done = events.index(f"-> {tmp_path / '1'}")
    before = {path.replace("1.unsealed", "1") for path in events[:done]}
    assert before >= {str(path) for path in (tmp_path / "1").rglob("*")}
    assert str(tmp_path) in events[done:]


def test_a_kill_while_deleting(tmp_path, monkeypatch):
    """What has lost one file does not count any more."""

    def killed(path, **_):
        (path / "model" / "manifest.ocdbt").unlink()
        raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, keep=1)
    save_all(checkpoints, [0.1, 0.2])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.close()
    assert (tmp_path / ".deleted-1").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [2]
        assert checkpoints.newest_sound() == 2
    assert os.listdir(tmp_path) == ["2"]


def test_a_kill_before_the_seal(tmp_path, sealing):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
        checkpoints.wait()
        sealing(lambda _: 1 / 0)
        checkpoints.save(state(2), None)
        with pytest.raises(TrainingError):
            checkpoints.wait()
    assert (tmp_path / "2.unsealed").is_dir()
    assert checkpoints.newest_sound() == 1


def full_disk(_):
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = r"^.*cannot be written \(No space left on device\); make room .* from step 1\.$"


@pytest.mark.parametrize("notice", ["wait", "close", "save"])
def test_a_full_disk(tmp_path, sealing, notice):
    """It is noticed by whatever comes next, and once."""
    arguments = [state(3), None] if notice == "save" else []
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, [0.1])
    checkpoints.wait()
    sealing(full_disk)
    checkpoints.save(state(2), None)
    with pytest.raises(TrainingError, match=FULL) as caught:
        getattr(checkpoints, notice)(*arguments)
    assert str(tmp_path) in str(caught.value)
    checkpoints.close()
    assert checkpoints.newest_sound() == 1


def test_a_full_disk_does_not_hide_what_ends_the_run(tmp_path, sealing, caplog):
    sealing(full_disk)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), None)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        raise KeyboardInterrupt
    assert "No space left on device); make room or put it right" in caplog.text
    with pytest.raises(TrainingError, match="starts anew"), Checkpoints(tmp_path) as c:
        c.save(state(1), None)


def test_a_lost_process_is_not_the_disk(tmp_path, sealing):
    def lost(_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection closed")

    sealing(lost)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="connection closed"):
        checkpoints.wait()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be made \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "checkpoints")
