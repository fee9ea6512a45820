"""What is kept, and what comes back."""

import concurrent.futures
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging as absl_logging
from job import free_port
from orbax.checkpoint._src.metadata import array_metadata_store
from orbax.checkpoint._src.serialization import ocdbt_utils, serialization
from program import PATIENCE, ROOT, run

from duet_jax.errors import TrainingError, UsageError
from duet_jax.runs import seal, storage
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.training import summary
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
        plain = seal.seal

        def watched(directory):
            function(directory)
            plain(directory)

        monkeypatch.setattr(seal, "seal", watched)

    return install


def check_restored(directory, step):
    """Another program finds in `directory` what was saved."""
    with Checkpoints(directory, create=False) as checkpoints:
        restored = checkpoints.restore(state(0), step)
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))
        found, *model = checkpoints.restore_model(
            state(0).params, state(0).batch_stats, step
        )
        assert found == step
        jax.tree.map(np.testing.assert_array_equal, model, list(restored[1:3]))


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
        found = checkpoints.best()
        assert (found and found.step) == best
        assert checkpoints.latest_step() == len(accuracies)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(map(str, kept))


def test_who_saves_nothing_deletes_nothing(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save_all(checkpoints, [0.1, 0.2, 0.3])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore(state(0), 3)
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
        assert checkpoints.best().step == 2


@pytest.mark.parametrize(
    ("metric", "best"), [("online_top1", 2), ("augmented_nt_xent", 3)]
)
def test_the_best_without_labels_has_the_lowest_loss(tmp_path, metric, best):
    """Of equals the newest; an accuracy goes first where there is one."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, value in enumerate([0.4, 0.5, 0.3, 0.4], 1):
            scores = {metric: value, "loss": 9.0}
            if metric == "online_top1":
                scores["augmented_nt_xent"] = value
            checkpoints.save(state(step), scores)
        checkpoints.wait()
        found = checkpoints.best()
        assert (found.step, found.metric) == (best, metric)
    assert checkpoints.all_steps() == [best, 4]


def test_every_array_comes_back(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save_all(checkpoints, [0.1, 0.2])
    for step in (1, 2):
        check_restored(tmp_path, step)


def test_a_part_of_the_model(tmp_path):
    saved = state(1)._replace(params={"a": {"b": jnp.ones(2)}, "c": {"d": jnp.ones(3)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, None)
        checkpoints.wait()
        _, params, stats = checkpoints.restore_model({"c": saved.params["c"]}, {})
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
        with pytest.raises(UsageError, match=r"no checkpoint of .* was evaluated"):
            checkpoints.find("best")
        checkpoints.save(state(2), {"online_top1": 0.0})
        checkpoints.wait()
        assert checkpoints.find("best") == 2


def test_nothing_has_been_saved(tmp_path):
    with Checkpoints(tmp_path / "deeper" / "checkpoints") as checkpoints:
        assert checkpoints.newest_intact() is None
        assert checkpoints.latest_step() is None
    with Checkpoints(tmp_path / "missing", create=False) as checkpoints:
        assert checkpoints.newest_intact() is None
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
    check_restored(tmp_path, 2)


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
    assert checkpoints.newest_intact() == 2


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
        assert checkpoints.newest_intact() == 2
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
    assert checkpoints.newest_intact() == 1


def full_disk(_):
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = r"^.*cannot be written \(No space left on device\); free .* from step 1\.$"


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
    assert checkpoints.newest_intact() == 1


def test_a_full_disk_does_not_hide_what_ends_the_run(tmp_path, sealing, caplog):
    sealing(full_disk)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), None)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        raise KeyboardInterrupt
    assert "No space left on device); free some space" in caplog.text
    with pytest.raises(TrainingError, match="starts over"), Checkpoints(tmp_path) as c:
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
    with pytest.raises(UsageError, match=r"cannot be created \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "checkpoints")


# --- names of directories -------------------------------------------------------------

# Which other directory each would be, where Orbax takes it for a pattern.
PATTERNS = {
    "run[1]": "run1",
    "run*": "runner",
    "a?b": "aXb",
    "[x]/y": "x/y",
    "**/c": "d/c",
    "[!a]*?": "bcd",
}


@pytest.mark.parametrize(("name", "other"), PATTERNS.items())
def test_a_name_is_no_pattern(tmp_path, name, other):
    """Nothing is read from directories that it would match."""
    with Checkpoints(tmp_path / other) as checkpoints:
        checkpoints.save(state(5), None)
    # As if a second process of that run were saving the same step.
    place = "1.unsealed.orbax-checkpoint-tmp/model.orbax-checkpoint-tmp"
    shutil.copytree(
        tmp_path / other / "5/model/ocdbt.process_0",
        tmp_path / other / place / "ocdbt.process_1",
    )
    with Checkpoints(tmp_path / name, keep=3) as checkpoints:
        save_all(checkpoints, [0.2, 0.1])
    for step in (1, 2):
        check_restored(tmp_path / name, step)
    assert sorted(os.listdir(tmp_path / name)) == ["1", "2"]


@pytest.mark.parametrize(
    "name",
    [
        "link/../run",
        "link/run",
        "%20%",
        "#",
        "a b",
        "|zip:",
        "s3:/x",
        "ü",
        "~",
    ],
)
def test_a_directory_is_where_the_system_finds_it(tmp_path, name):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("other/deep")
    plain = {"link/../run": "other/run", "link/run": "other/deep/run"}.get(name, name)
    for directory in (tmp_path / name, pathlib.Path(f"/{tmp_path}") / name):
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(state(1), None)
        check_restored(directory, 1)
        check_restored(tmp_path / plain, 1)
        # Nothing of it is anywhere else.
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert files
        assert all(path.is_relative_to(tmp_path / plain / "1") for path in files)
        shutil.rmtree(tmp_path / plain)


@pytest.mark.parametrize("root", ["gs", "s3", "az", "hf"])
def test_a_mounted_bucket_is_a_directory(root):
    path = storage.place(pathlib.Path(f"/{root}/runs"))
    assert os.fspath(path / "1") == f"/{root}/runs/1"
    assert (path / "1").parent.exists() is os.path.exists(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("back\\slash", r"takes the \\ in it for a /"),
        ("args:/run", r"takes the gs: in it for an address"),
        ("gs:", r"takes the gs: in it for an address"),
        ("\udcff", r"it is not UTF-8"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name, reason, linked):
    directory = tmp_path / name
    if linked:
        directory.mkdir(parents=True)
        (tmp_path / "link").symlink_to(directory)
        directory = tmp_path / "link"
    before = sorted(tmp_path.rglob("*"))
    for create in (True, False):
        with pytest.raises(
            UsageError, match=rf"cannot hold checkpoints \(.*{reason}\)"
        ):
            Checkpoints(directory, create=create)
    assert sorted(tmp_path.rglob("*")) == before


PROCESS = """
import functools, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from absl import logging

directory, port, number = sys.argv[1:]
logging.set_verbosity(logging.FATAL)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))

from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.types import TrainState

mesh = jax.make_mesh((2,), ("all",), (jax.sharding.AxisType.Auto,))
everywhere = jax.NamedSharding(mesh, jax.P())

@functools.partial(jax.jit, out_shardings=everywhere)
def state(step):
    rows = jax.random.normal(jax.random.key(step), (8, 6))
    params = {"encoder": {"kernel": rows, "bias": rows[0]}}
    return TrainState(step, params, {"mean": rows[1]}, (params,), step > 0)

with Checkpoints(pathlib.Path(directory)) as checkpoints:
    for step in (1, 2):
        checkpoints.save(state(jnp.int32(step)), {"online_top1": 0.5})
with Checkpoints(pathlib.Path(directory), create=False) as checkpoints:
    for step in (1, 2):
        saved = state(jnp.int32(step))
        same = lambda a, b: np.testing.assert_array_equal(*map(np.asarray, (a, b)))
        jax.tree.map(same, checkpoints.restore(saved, step), saved)
print("both are sound")
"""


def test_two_processes_save_below_a_name_like_a_pattern(tmp_path):
    """Each writes its half; what a killed job has left is no reason to complain."""
    directory = tmp_path / "a[b]*?" / "checkpoints"
    for name in (*REMAINDERS, "1.unsealed.orbax-checkpoint-tmp"):
        (directory / name / "model.orbax-checkpoint-tmp").mkdir(parents=True)
    port = free_port()

    def process(number):
        return run(PROCESS, directory, port, number, script="-c", cwd=ROOT)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in pool.map(process, range(2)):
            assert "both are sound" in done.out, done.lines
    halves = (directory / "2" / "model").glob("ocdbt.process_*")
    assert {half.name[-1] for half in halves} == {"0", "1"}


# --- what is read back before it counts -----------------------------------------------


@pytest.fixture
def directory(tmp_path):
    """One with a checkpoint, of step 1."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state(1), {"online_top1": 0.5}, {"seconds": 1.5})
    return tmp_path / "checkpoints"


@pytest.fixture
def silent():
    """absl's logger as main.py leaves it."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    yield logging.getLogger("absl")
    assert logging.getLogger("absl").level == logging.FATAL


def refused(directory):
    """Saves step 2, which fails, and returns the reason."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), {"online_top1": 0.9}, {"seconds": 2.5})
        with pytest.raises(TrainingError) as caught:
            checkpoints.wait()
        checkpoints.wait()  # it is said once
        assert checkpoints.all_steps() == [1]
        assert checkpoints.best() == (1, "online_top1", 0.5)
        assert checkpoints.newest_intact() == 1
    assert {path.parent.name for path in directory.rglob("checksums.json")} == {"1"}
    check_restored(directory, 1)
    text = str(caught.value)
    start = f"{directory}: a checkpoint cannot be written ("
    end = "); free some space or fix this, then the same command continues from step 1."
    assert text.startswith(start)
    assert text.endswith(end)
    reason = text.removeprefix(start).removesuffix(end)
    assert "\n" not in reason
    assert len(reason) < 260
    return reason


async def nothing(*_, **__):
    """Writes nothing, and says nothing."""


def writing(change):
    """Returns what writes arrays as Orbax does, those of three numbers changed."""
    write = serialization.async_serialize_from_host

    async def writes(slices, spec, **options):
        if slices.global_shape == (3,):
            for each in slices.replica_slices:
                object.__setattr__(each, "unsliced_data", change(each.unsliced_data))
        await write(slices, spec, **options)

    return writes


def writing_json(change):
    """Returns what writes JSON as Orbax does, changed."""

    async def writes(self, value, place):
        place = await place.await_creation() if hasattr(place, "path") else place
        (place / self._filename).write_text(change(json.dumps(value)))

    return writes


# What goes wrong without a word: where, what happens there, and what is found out.
FAULTS = {
    "nothing": (
        (ocdbt_utils, "merge_ocdbt_per_process_files", nothing),
        r"(model|train) cannot be read back: NOT_FOUND: .*",
    ),
    "one value": (
        (
            serialization,
            "async_serialize_from_host",
            writing(lambda x: np.concatenate([x[:2], x[2:] + 1])),
        ),
        r"model.batch_stats.encoder.mean is read back changed",
    ),
    "one bit": (
        (
            serialization,
            "async_serialize_from_host",
            writing(lambda x: (x.view(np.uint32) ^ np.uint32(1)).view(np.float32)),
        ),
        r"model.batch_stats.encoder.mean is read back changed",
    ),
    "zeros": (
        (serialization, "async_serialize_from_host", writing(np.zeros_like)),
        r"model.batch_stats.encoder.mean is read back changed",
    ),
    "another object": (
        (
            ocp.JsonCheckpointHandler,
            "_save_fn",
            writing_json(lambda text: text.replace("5", "6")),
        ),
        r"(row|metrics) is read back changed",
    ),
    "half an object": (
        (ocp.JsonCheckpointHandler, "_save_fn", writing_json(lambda text: text[:-3])),
        r"(row|metrics) cannot be read back: .*",
    ),
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
def test_what_was_written_otherwise_is_not_sealed(
    directory, silent, monkeypatch, fault, reason
):
    with monkeypatch.context() as patch:
        patch.setattr(*fault)
        assert re.fullmatch(reason, refused(directory))
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), None)
    check_restored(directory, 2)


def test_what_nothing_can_be_read_of_is_not_sealed(directory, silent, monkeypatch):
    restore = ocp.PyTreeCheckpointHandler.restore

    def broken(self, place, **options):
        if place.parent.name == "2.unsealed":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return restore(self, place, **options)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", broken)
    assert re.fullmatch(
        r"(model|train) cannot be read back: Input/output error", refused(directory)
    )


def merging(function):
    """Returns what merges the files of processes, after a call of `function`."""
    merge = ocdbt_utils.merge_ocdbt_per_process_files

    async def merges(*arguments, **options):
        function()
        await merge(*arguments, **options)

    return merges


def of_orbax():
    """A warning out of a file of Orbax."""
    empty = ocp.type_handlers.create_type_handler_registry()
    array_metadata_store.resolve_array_metadata_store(empty)


# How the storage layer says that something is wrong, and goes on.
COMPLAINTS = {
    "a file of Orbax": (of_orbax, r"No jax.Array in TypeHandlerRegistry: .*"),
    "a function it calls": (lambda: absl_logging.warning("gone: %s", 7), "gone: 7"),
    "an error": (lambda: absl_logging.error("two\nlines"), "two lines"),
    "a logger of its own": (
        lambda: logging.getLogger("orbax.checkpoint").warning("tired"),
        "tired",
    ),
    "the first of two": (
        lambda: [absl_logging.warning(each) for each in ("one", "two")],
        "one",
    ),
    "long": (lambda: absl_logging.warning("long " * 500), "(long )+"),
}


@pytest.mark.parametrize(("complain", "reason"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_what_the_storage_layer_complains_of_is_not_sealed(
    directory, silent, monkeypatch, capfd, complain, reason
):
    with monkeypatch.context() as patch:
        patch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merging(complain))
        assert re.fullmatch(f"Orbax reports: {reason}", refused(directory))
    assert capfd.readouterr() == ("", "")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), None)
    check_restored(directory, 2)


def test_a_complaint_after_the_seal_ends_the_run(directory, silent, monkeypatch):
    """As one of another process does, which does not seal."""
    done = ocp.path.atomicity.record_saved_duration

    def complain(*arguments):
        absl_logging.warning("late")
        done(*arguments)

    monkeypatch.setattr(ocp.path.atomicity, "record_saved_duration", complain)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), None)
        with pytest.raises(TrainingError, match=r"\(Orbax reports: late\)"):
            checkpoints.wait()


def test_others_may_complain(directory, silent, sealing):
    """And of what is only told, nobody asks."""
    told, go_on = threading.Event(), threading.Event()
    sealing(lambda _: (told.set(), go_on.wait(PATIENCE)))
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), None)
        assert told.wait(PATIENCE)
        absl_logging.error("of a loader of images")
        logging.getLogger("orbax").info("well")
        go_on.set()
    check_restored(directory, 2)


def test_what_is_shown_stays_as_it_is(tmp_path, silent, monkeypatch, caplog):
    absl_logging.set_verbosity(absl_logging.ERROR)

    def complain():
        absl_logging.warning("not shown")
        absl_logging.error("shown")

    with monkeypatch.context() as patch:
        patch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merging(complain))
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state(1), None)
            with pytest.raises(TrainingError, match=r"Orbax reports: not shown"):
                checkpoints.wait()
    messages = {each.getMessage() for each in caplog.records if each.name == "absl"}
    assert "shown" in messages
    assert "not shown" not in messages
    assert silent.level == logging.ERROR
    assert silent.filters == []
    assert logging.getLogger("orbax").handlers == []
    absl_logging.set_verbosity(absl_logging.FATAL)


def test_the_arrays_are_free_as_soon_as_save_returns(directory):
    """Others get their memory before they are written, and read back."""
    saved = jax.tree.map(jnp.copy, state(2))
    zero = jax.jit(lambda x: (x * 0).astype(x.dtype), donate_argnums=0)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(saved, None)
        jax.block_until_ready(jax.tree.map(zero, saved))
        jax.tree.map(lambda x: x.delete(), saved)
    check_restored(directory, 2)


def test_nothing_is_kept_of_what_has_been_saved(directory):
    """It would be as much memory as the state takes."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(2), None)
        checkpoints.wait()
        assert checkpoints._saving is None


def test_a_saving_that_failed_can_be_repeated(directory, silent, sealing):
    """What it has left is removed before Orbax complains of it."""
    with Checkpoints(directory) as checkpoints:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seal, "seal", full_disk)
            checkpoints.save(state(2), None)
            with pytest.raises(TrainingError, match=FULL):
                checkpoints.wait()
        assert (directory / "2.unsealed").is_dir()
        (directory / "2.unsealed.orbax-checkpoint-tmp").mkdir()
        checkpoints.save(state(2), None)
    check_restored(directory, 2)


# --- which one is the best ------------------------------------------------------------


def told(run, caplog):
    """The lines at the end of the run in a directory."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="duet_jax.training.summary"):
        summary.end_lines(run)
    return [record.getMessage() for record in caplog.records]


# Accuracies after each epoch of two steps, and whether that was saved; the best step,
# and what is said of it.
RUNS = {
    "the last": ([(0.1, True), (0.4, True)], 4, ", which is --step=best too"),
    "another": (
        [(0.1, True), (0.614, True), (0.5, True), (0.4, True)],
        4,
        "; --step=best is step 4, epoch 2, with 61.4 %",
    ),
    "the newest of equals": (
        [(0.4, True), (0.4, True)],
        4,
        ", which is --step=best too",
    ),
    "the newest of equals before": (
        [(0.4, True), (0.4, True), (0.3, True)],
        4,
        "; --step=best is step 4, epoch 2, with 40.0 %",
    ),
    "a better one was not saved": (
        [(0.2, True), (0.9, False), (0.3, True), (0.25, True)],
        6,
        "; --step=best is step 6, epoch 3, with 30.0 %",
    ),
}


@pytest.mark.parametrize(("epochs", "best", "said"), RUNS.values(), ids=RUNS)
def test_one_checkpoint_is_the_best_everywhere(tmp_path, caplog, epochs, best, said):
    """For the terminal, for --step=best, and for what is kept."""
    rows = []
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        for epoch, (accuracy, saved) in enumerate(epochs, 1):
            scores = {"online_top1": accuracy}
            for split in ("train", "test"):
                rows.append(
                    {"step": 2 * epoch, "epoch": epoch, "split": split, **scores}
                )
            if saved:
                checkpoints.save(state(2 * epoch), scores)
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "metrics.jsonl").write_text(text)
    with Checkpoints(tmp_path / "checkpoints", create=False) as checkpoints:
        assert checkpoints.find("best") == checkpoints.best().step == best
        assert set(checkpoints.all_steps()) == {best, 2 * len(epochs)}
        assert checkpoints.best().value == rows[best - 1]["online_top1"]
    assert told(tmp_path, caplog) == [
        f"finished     online_top1 {100 * epochs[-1][0]:.1f} % on test images after "
        f"epoch {len(epochs)}{said}",
        f"results in   {tmp_path}",
    ]


def test_what_is_said_of_a_run_without_its_best(tmp_path, caplog):
    """The lines are not what a finished run fails for."""
    row = {"step": 2, "epoch": 1, "split": "test", "online_top1": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row))
    end = "finished     online_top1 25.0 % on test images after epoch 1"
    assert told(tmp_path, caplog)[0] == end
    save_all(checkpoints := Checkpoints(tmp_path / "checkpoints"), [0.5, None])
    checkpoints.close()
    assert told(tmp_path, caplog)[0] == f"{end}; --step=best is step 1, with 50.0 %"
