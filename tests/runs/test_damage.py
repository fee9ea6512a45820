"""Whatever happens to the files of a checkpoint, no other arrays come back."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from forked import ROOT
from hypothesis import strategies as st
from orbax.checkpoint._src.serialization import serialization
from program import TINY, run

from duet_jax import cli
from duet_jax.errors import UsageError
from duet_jax.runs import seal
from duet_jax.runs.checkpoints import Checkpoints, DeletedError
from duet_jax.types import TrainState

STEPS = (2, 4, 6)


def state(step):
    kernel = jax.random.normal(jax.random.key(step), (8, 9))
    params = {"encoder": {"kernel": kernel, "bias": kernel[0]}}
    stats = {"encoder": {"mean": kernel[1]}}
    count = jnp.asarray(step, jnp.int32)
    return TrainState(count, params, stats, (count, params), jnp.asarray(True))


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The checkpoints of three steps."""
    directory = tmp_path_factory.mktemp("damage") / "checkpoints"
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in STEPS:
            row = {"scores": {"loss": [1.5, 2.5]}, "seconds": 3.0}
            checkpoints.save(state(step), {"online_top1": step / 10}, row)
    return directory


@pytest.fixture
def directory(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "checkpoints"))


@pytest.fixture
def warnings(caplog):
    """Returns, and forgets, the warnings since it was called last."""

    def take():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    with caplog.at_level(logging.WARNING, logger="duet_jax.runs.checkpoints"):
        yield take


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(content, position, bit=0):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def newest_intact(directory):
    return Checkpoints(directory, create=False).newest_intact()


def check_restored(checkpoints, step):
    restored = checkpoints.restore(state(0), step)
    jax.tree.map(np.testing.assert_array_equal, restored, state(step))


# What happens to a file: its content -> what is left of it, None for no file.
DAMAGES = {
    "half of it": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "deleted": lambda content: None,
    "longer": lambda content: content + b"\n",
    "first bit": lambda content: flip(content, 0, 7),
    "last bit": lambda content: flip(content, -1),
    "a bit at a third": lambda content: flip(content, len(content) // 3, 3),
    "a bit in the middle": lambda content: flip(content, len(content) // 2, 5),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_file_of_the_newest(directory, warnings, damage):
    files = files_of(directory / "6")
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        left = damage(content)
        path.unlink()
        if left is not None:
            path.write_bytes(left)
        assert newest_intact(directory) == 4
        [warning] = warnings()
        name = path.relative_to(directory / "6").as_posix()
        assert warning.startswith(f"the checkpoint of step 6 is damaged ({name} ")
        assert warning.endswith("; continuing from step 4 instead")
        assert "\n" not in warning
        path.write_bytes(content)
    assert newest_intact(directory) == 6
    assert warnings() == []


def test_the_seal_bit_by_bit(directory, warnings):
    """It is named itself, not the file whose entry was hit."""
    path = directory / "6" / "checksums.json"
    content = path.read_bytes()
    for position in range(0, len(content), 23):
        path.write_bytes(flip(content, position, position % 8))
        assert newest_intact(directory) == 4
        assert "(checksums.json has changed)" in warnings()[0]


@pytest.mark.parametrize("item", ["model", "train", "metrics", "row"])
def test_a_folder_is_gone(directory, warnings, item):
    shutil.rmtree(directory / "6" / item)
    assert newest_intact(directory) == 4
    assert f"damaged ({item}/" in warnings()[0]


def test_all_is_gone_but_the_folder(directory, warnings):
    shutil.rmtree(directory / "6")
    (directory / "6").mkdir()
    assert newest_intact(directory) == 4
    assert "(checksums.json is missing)" in warnings()[0]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_no_file_but_its_name(directory, warnings, make):
    path = directory / "6" / "row" / "metadata"
    path.unlink()
    make(path)
    assert newest_intact(directory) == 4  # and does not wait for who fills the pipe
    assert "(row/metadata is missing)" in warnings()[0]


def test_the_one_before_is_damaged_too(directory, warnings):
    (directory / "6" / "model" / "manifest.ocdbt").unlink()
    (directory / "4" / "train" / "_METADATA").write_bytes(b"{}")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.newest_intact() == 2
        check_restored(checkpoints, 2)
        six, four = warnings()
        assert "step 6 is damaged (model/manifest.ocdbt is missing)" in six
        assert "step 4 is damaged (train/_METADATA has 2 bytes instead of " in four
        checkpoints.set_aside(2)
        assert checkpoints.all_steps() == [2]


def test_none_is_sound(directory, warnings):
    for step in STEPS:
        (directory / str(step) / "train" / "_METADATA").unlink()
    before = sorted(directory.rglob("*"))
    with Checkpoints(directory) as checkpoints, pytest.raises(UsageError) as caught:
        checkpoints.newest_intact()
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    for step in STEPS:
        assert f"{step}: train/_METADATA is missing" in message
    assert "nothing is started over" in message
    assert "another --workdir" in message
    assert warnings() == []  # nothing is gone on from
    assert sorted(directory.rglob("*")) == before


def test_a_checkpoint_without_a_seal(directory):
    for step in STEPS:
        (directory / str(step) / "checksums.json").unlink()
    message = r"checksums\.json is missing in all .* nothing is started over"
    with pytest.raises(UsageError, match=message):
        newest_intact(directory)


def test_an_earlier_version_can_be_evaluated(directory, caplog):
    """Its checkpoints have no seal; a single one that has lost it is damaged."""
    like = state(0)
    (directory / str(STEPS[-1]) / "checksums.json").unlink()
    with Checkpoints(directory, create=False) as saved:
        with pytest.raises(UsageError, match="is damaged"):
            saved.restore_model(like.params, like.batch_stats)
        for step in STEPS[:-1]:
            (directory / str(step) / "checksums.json").unlink()
        _, params, _ = saved.restore_model(like.params, like.batch_stats)
    assert "damage cannot be detected" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, params, state(STEPS[-1]).params)


def test_what_is_restored_is_checked(directory):
    [path] = (directory / "6" / "model" / "d").iterdir()
    path.write_bytes(flip(path.read_bytes(), -9))
    saved = state(0)
    with Checkpoints(directory, create=False) as checkpoints:
        for restore in (
            lambda: checkpoints.restore(saved, 6),
            lambda: checkpoints.restore_model(saved.params, saved.batch_stats),
            lambda: checkpoints.restore_model(saved.params, {}, 6),
        ):
            with pytest.raises(UsageError) as caught:
                restore()
            assert f"is damaged (model/d/{path.name} has changed)" in str(caught.value)
            assert str(caught.value).endswith("choose another step: 2, 4.")
        assert checkpoints.row(6)["seconds"] == 3.0
        check_restored(checkpoints, 4)


def test_the_model_is_of_use_without_the_rest(directory):
    shutil.rmtree(directory / "6" / "train")
    (directory / "6" / "row" / "metadata").write_text("{}")
    with Checkpoints(directory, create=False) as checkpoints:
        _, params, _ = checkpoints.restore_model(state(0).params, {})
        jax.tree.map(np.testing.assert_array_equal, params, state(6).params)
        with pytest.raises(UsageError, match=r"damaged \(row/metadata has 2 bytes"):
            checkpoints.row(6)


def test_what_was_checked_is_not_read_twice(directory, monkeypatch):
    with Checkpoints(directory, create=False) as checkpoints:
        checkpoints.newest_intact()
        monkeypatch.setattr(hashlib, "file_digest", None)
        check_restored(checkpoints, 6)


def sealed(files):
    """The text of a seal over `files` that agrees with itself."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    seal = {"files": files, "sha256": digest}
    return json.dumps(seal, sort_keys=True, indent=1)


OUTSIDE = b"not of this checkpoint"
ENTRY = {"bytes": len(OUTSIDE), "sha256": hashlib.sha256(OUTSIDE).hexdigest()}
HOSTILE = {
    "parent": sealed({"../../outside": ENTRY}),
    "parent of a folder": sealed({"model/../../../outside": ENTRY}),
    "parent of nothing": sealed({"nothing/../../../outside": ENTRY}),
    "link": sealed({"link": ENTRY}),
    "below a link": sealed({"folder/outside": ENTRY}),
    "circle": sealed({"circle/outside": ENTRY}),
    "home": sealed({"~/outside": ENTRY}),
    "zero": sealed({"a\0b": ENTRY}),
    "new line": sealed({"a\nb": ENTRY}),
    "long": sealed({"a" * 300: ENTRY}),
    "the directory": sealed({"": ENTRY}),
    "a list": sealed([]),
    "no object": sealed("files"),
    "a number": sealed({"commit_success.txt": 7}),
    "a pair": sealed({"commit_success.txt": [["bytes", 1], ["sha256", "a"]]}),
    "text for bytes": sealed({"commit_success.txt": ENTRY | {"bytes": "9"}}),
    "true for bytes": sealed({"commit_success.txt": ENTRY | {"bytes": True}}),
    "none for a hash": sealed({"commit_success.txt": ENTRY | {"sha256": None}}),
    "no bytes": sealed({"commit_success.txt": {"sha256": ""}}),
    "no hash": sealed({"commit_success.txt": {"bytes": 1}}),
    "more": sealed({"commit_success.txt": ENTRY | {"more": 1}}),
    "another order": json.dumps({"sha256": "", "files": {}}),
    "top level": "[]",
    "null": "null",
    "nan": "NaN",
    "deep": "[" * 100_000,
    "digits": "9" * 10_000,
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_seal(directory, warnings, text):
    """It does not lead out of the checkpoint, where all would agree with it."""
    outside = directory.parent / "outside"
    outside.write_bytes(OUTSIDE)
    (directory / "6" / "link").symlink_to(outside)
    (directory / "6" / "folder").symlink_to(directory.parent)
    (directory / "6" / "circle").symlink_to("circle")
    seal = directory / "6" / "checksums.json"
    seal.write_bytes(text if isinstance(text, bytes) else text.encode())
    absolute = sealed({str(outside): ENTRY})
    for content in (seal.read_bytes(), absolute.encode()):
        seal.write_bytes(content)
        assert newest_intact(directory) == 4
        [warning] = warnings()
        assert "\n" not in warning
        checkpoints = Checkpoints(directory, create=False)
        assert checkpoints.best().step == 4
        with pytest.raises(UsageError, match="damaged"):
            checkpoints.restore(state(0), 6)


def test_a_seal_of_nothing(directory):
    """Agrees with what is there, so that reading must fail in an orderly way."""
    shutil.rmtree(directory / "6")
    (directory / "6").mkdir()
    (directory / "6" / "checksums.json").write_text(sealed({}))
    checkpoints = Checkpoints(directory, create=False)
    with pytest.raises(UsageError, match=r"checkpoint 6 .* cannot be read \(KeyError"):
        checkpoints.restore(state(0), 6)


def test_a_file_that_cannot_be_read(directory, warnings, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", broken)
        with pytest.raises(UsageError, match=r"cannot be read \(Input/output error\)"):
            newest_intact(directory)


def test_what_has_no_name_of_a_step_does_not_count(directory):
    (directory / "8").touch()
    for name in ("08", "-8", "8.5", "٨", "damaged-8", "8.unsealed"):
        (directory / name).mkdir()
    checkpoints = Checkpoints(directory, create=False)
    assert checkpoints.all_steps() == list(STEPS)
    assert checkpoints.newest_intact() == 6


# Of one change: which file, from where on, how many bytes go, and what comes instead.
CHANGES = st.tuples(
    st.integers(0, 10**4), st.integers(0, 10**6), st.integers(0, 3), st.binary()
)


@hypothesis.settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_random_damage(directory, changes):
    """Only what was saved comes back, or a line that says what is wrong."""
    before = {path: path.read_bytes() for path in files_of(directory)}
    after = dict(before)
    for number, start, length, new in changes:
        path = list(before)[number % len(before)]
        content = after[path]
        start %= len(content) + 1
        after[path] = content[:start] + new + content[start + length :]
        path.write_bytes(after[path])
    damaged = {
        path.relative_to(directory).parts[0]
        for path in before
        if after[path] != before[path]
    }
    expected = [step for step in STEPS if str(step) not in damaged]
    try:
        with Checkpoints(directory, create=False) as checkpoints:
            with contextlib.suppress(UsageError):
                check_restored(checkpoints, 6)
            if expected:
                assert checkpoints.newest_intact() == expected[-1]
                check_restored(checkpoints, expected[-1])
            else:
                with pytest.raises(UsageError):
                    checkpoints.newest_intact()
    finally:
        for path in before:
            path.write_bytes(before[path])


FULL_DISK = """
import pathlib, resource, sys
import jax.numpy as jnp
from absl import logging
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.errors import TrainingError
from duet_jax.types import TrainState

logging.set_verbosity(logging.FATAL)
big = {"a": {str(i): jnp.arange(100_000.0) for i in range(30)}}

def state(step):
    return TrainState(jnp.int32(step), big, big, (big,), jnp.bool_(True))

try:
    with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
        checkpoints.save(state(1), None)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        checkpoints.save(state(2), None)
except TrainingError as error:
    print(error)
"""


def test_a_full_disk_is_one_line(tmp_path):
    """No traceback of any thread, and the checkpoint before is as it was."""
    assert call_python(FULL_DISK, tmp_path) == (
        f"{tmp_path}: a checkpoint cannot be written (File too large); free some space "
        "or fix this, then the same command continues from step 1.\n"
    )
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_intact() == 1
    assert os.listdir(tmp_path) == ["1"]


# --- what is deleted while it is read -------------------------------------------------


def rename(step):
    """As a training does first, and in vain thereafter."""
    step.rename(step.with_name(f".deleted-{step.name}"))


def rename_and_delete(step):
    rename(step)
    shutil.rmtree(step.with_name(f".deleted-{step.name}"))


def delete_arrays(step):
    """As a user does, who is not through yet."""
    shutil.rmtree(step / "model" / "ocdbt.process_0")


def delete_files(step):
    for path in files_of(step):
        path.unlink()


def at(count, function):
    """Returns a function that is called at the `count`-th time it is called."""
    times = itertools.count(1)
    return lambda: function() if next(times) == count else None


# Before what of the reading it happens.
MOMENTS = {
    "the metadata": (ocp.PyTreeCheckpointHandler, "metadata", 1),
    "the arrays": (Checkpoints, "_restore", 1),
    "the first array": (serialization, "_read_shard", 1),
    "the last array": (serialization, "_read_shard", 3),
}
WAYS = (rename, rename_and_delete, delete_arrays, delete_files)


@pytest.fixture
def going(directory, monkeypatch):
    """Has a step of `directory` deleted at a moment of its being read."""

    def install(way, moment, step=6):
        place, name, count = MOMENTS[moment]
        original = getattr(place, name)
        go = at(count, lambda: way(directory / str(step)))
        monkeypatch.setattr(place, name, lambda *a, **k: (go(), original(*a, **k))[1])

    return install


def check_next(directory, step):
    """Finds step 4 for what means step 6 no longer."""
    saved = state(4)
    with Checkpoints(directory, create=False) as checkpoints:
        found, *model = checkpoints.restore_model(saved.params, saved.batch_stats, step)
    assert found == 4
    jax.tree.map(np.testing.assert_array_equal, model, list(saved[1:3]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_goes_makes_way_for_the_next(directory, going, way, moment):
    going(way, moment)
    check_next(directory, None)


@pytest.mark.parametrize("step", ["newest", "best"])
@pytest.mark.parametrize("way", [rename, delete_arrays])
def test_what_a_word_means_is_looked_up_again(directory, going, way, step):
    going(way, "the arrays")
    check_next(directory, step)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_asked_for_and_goes(directory, going, way, whole):
    going(way, "the arrays")
    saved = state(6)
    checkpoints = Checkpoints(directory, create=False)
    arguments = (saved,) if whole else (saved.params, saved.batch_stats)
    restore = checkpoints.restore if whole else checkpoints.restore_model
    with pytest.raises(DeletedError) as caught:
        restore(*arguments, 6)
    assert str(caught.value) == (
        f"checkpoint 6 in {directory} was deleted while it was read; choose another "
        "step: 2, 4."
    )


def test_what_goes_while_it_is_checked(directory, monkeypatch):
    """Not taken for damaged, nor its run for one of an earlier version."""
    facts = seal._facts
    go = at(3, lambda: rename(directory / "6"))
    monkeypatch.setattr(seal, "_facts", lambda f: (go(), facts(f))[1])
    with Checkpoints(directory, create=False) as checkpoints:
        step, *_ = checkpoints.restore_model(state(0).params, {})
        assert step == 4


def test_the_only_one_goes(directory, going, warnings):
    for step in (2, 4):
        shutil.rmtree(directory / str(step))
    going(rename, "the arrays")
    checkpoints = Checkpoints(directory, create=False)
    with pytest.raises(UsageError, match="holds no checkpoint; train first"):
        checkpoints.restore_model(state(0).params, {})
    assert warnings() == []


def test_the_best_makes_way_for_a_better_one(directory, monkeypatch):
    """Between the looks at the directory and at the accuracies."""
    original = Checkpoints._scored

    def scored(self, step):
        if step == 4 and (directory / "6").exists():
            (directory / "4").rename(directory / "8")
            (directory / "6").rename(directory / "gone")
        return original(self, step) if step != 2 else None

    monkeypatch.setattr(Checkpoints, "_scored", scored)
    with Checkpoints(directory, create=False) as checkpoints:
        assert checkpoints.find("best") == 8


READS = """
import pathlib, shutil, sys
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint._src.serialization import serialization
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.errors import UsageError
from duet_jax.types import TrainState

directory, way, step = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
noise = np.random.default_rng(0).normal(size=(30, 300_000)).astype(np.float32)

def state(step):
    # Large ones and small ones, so that some are still read when others have failed.
    trees = [{"a": {str(i): jnp.asarray(row[:None if i % 2 else 100]) + step}}
             for i, row in enumerate(noise)]
    merged = {"a": {name: x for tree in trees for name, x in tree["a"].items()}}
    return TrainState(jnp.int32(step), merged, merged, (), jnp.bool_(True))

def write():
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), {"online_top1": 0.5})

read, calls = serialization._read_shard, []

async def reads(**options):
    calls.append(None)
    if len(calls) == 45 and way == "rename":
        (directory / "2").rename(directory / ".deleted-2")
    elif len(calls) == 45:
        shutil.rmtree(directory / "2" / "model" / "ocdbt.process_0")
    return await read(**options)

if way == "write":
    write()
else:
    serialization._read_shard = reads
    like = state(0)
    with Checkpoints(directory, create=False) as checkpoints:
        try:
            found = checkpoints.restore_model(
                like.params, like.batch_stats, None if step == "None" else int(step)
            )
            saved = state(1).params["a"]["3"]
            print(found[0], np.array_equal(found[1]["a"]["3"], saved))
        except UsageError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    place = tmp_path_factory.mktemp("large") / "checkpoints"
    call_python(READS, place, "write", "-")
    return place


def call_python(text, *arguments):
    done = run_python(text, *arguments)
    assert done.lines == []
    return done.out


def run_python(text, *arguments):
    done = run(text, *arguments, script="-c", cwd=ROOT)
    assert done.status == 0, done.lines
    return done


@pytest.mark.parametrize("way", ["rename", "in place"])
@pytest.mark.parametrize("step", [None, 2])
def test_a_program_that_only_reads_is_quiet(large, tmp_path, way, step):
    """Of arrays that were read in vain no thread and no coroutine says anything."""
    directory = shutil.copytree(large, tmp_path / "checkpoints")
    said = call_python(READS, directory, way, step)
    if step is None:
        assert said == "1 True\n"
    else:
        assert said == (
            f"checkpoint 2 in {directory} was deleted while it was read; choose "
            "another step: 1.\n"
        )


LATE = """
import asyncio, gc, pathlib, sys
from duet_jax.runs import checkpoints, storage

checkpoints.Checkpoints(pathlib.Path("checkpoints"), create=False)

def late(start):
    loop = asyncio.new_event_loop()
    start(loop)
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()
    gc.collect()

def coroutine(file):
    scope = {}
    exec(compile("async def read(): raise ValueError('gone')", file, "exec"), scope)
    return scope["read"]()

async def gathered(coroutine):
    asyncio.gather(coroutine)

late(lambda loop: loop.create_future().set_exception(ValueError("gone")))
late(lambda loop: loop.create_task(gathered(coroutine(storage.ORBAX + "read.py"))))
late(lambda loop: loop.create_task(coroutine(storage.ORBAX + "read.py")))
print("of others:", file=sys.stderr)
late(lambda loop: loop.create_task(coroutine("others.py")))
"""


def test_errors_that_orbax_never_asked_for_are_quiet():
    """And those of others are reported as always."""
    said = run_python(LATE).lines
    assert said[0] == "of others:", said
    assert "Task exception was never retrieved" in "\n".join(said)


# --- a whole run ----------------------------------------------------------------------


def test_a_run_in_a_directory_like_a_pattern(tmp_path, monkeypatch, capfd):
    """Trained, measured, and measured while its newest checkpoint goes."""
    directory = tmp_path / "all*" / "run[1]?"
    options = (*TINY, "--config.epochs=2", "--config.compilation_cache=off")
    command = ["main.py", f"--workdir={directory}"]
    assert cli.main([*command, *options, "--mode=train,knn"]) == 0
    assert sorted(os.listdir(directory / "checkpoints")) == ["1", "2"]

    def result():
        return json.loads((directory / "eval" / "knn.json").read_text())

    before = result()
    restore, goes = Checkpoints._restore, ["2"]

    def restores(self, *arguments, **options):
        if goes:
            rename(directory / "checkpoints" / goes.pop())
        return restore(self, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "_restore", restores)
    assert cli.main([*command, options[-1], "--mode=knn"]) == 0
    after = result()
    assert (before["step"], after["step"]) == (2, 1)
    assert before["weights"] != after["weights"]
    goes.append("1")
    assert "Traceback" not in capfd.readouterr().err
    assert cli.main([*command, options[-1], "--mode=knn", "--step=1"]) == 2
    assert capfd.readouterr().err == (
        f"error: checkpoint 1 in {directory / 'checkpoints'} was deleted while it was "
        "read; choose another step: none.\n"
    )
