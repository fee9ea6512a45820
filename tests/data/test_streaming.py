"""Streamed batches: the same as those of the decoded set, from anywhere, in order."""

import dataclasses
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from prepared import Shapes, as_tfrecord, noise, png, prepare, save

from duet_jax.data import (
    Batches,
    EvaluationRows,
    StreamedDataset,
    TrainingRows,
    epoch_order,
    find_dataset,
    image_files,
    listing,
    load_dataset,
    stream_dataset,
    streaming,
)
from duet_jax.data.order import evaluation_order
from duet_jax.errors import TrainingError, UsageError
from duet_jax.types import DatasetFacts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    """Keeps the user's directories out, and workers from being left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Grey and colour, PNG and JPEG, of many shapes; 14 and 7 images."""
    root = tmp_path_factory.mktemp("streamed") / "images"
    for split, count in (("train", 7), ("test", 4)):
        for label, name in enumerate(("cat", "dög")):
            for i in range(count - (split == "test" and label)):
                pixels = noise((9 + i, 20 - 2 * i, 3), 100 * label + 10 * i)
                if i % 3 == 1:
                    pixels = pixels[:, :, 0]
                save(root / split / name / f"{i}.{('png', 'jpg')[i % 2]}", pixels)
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory.mktemp("tfds"), SPLITS={"train": 40, "test": 5})


@pytest.fixture
def sources(folder, prepared) -> dict[str, dict]:
    return {
        "folder": {"name": "folder", "path": str(folder)},
        "digits": {"name": "digits"},
        "tfds": {"name": "shapes", "path": str(prepared)},
    }


def usage_error(function, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.dataset.")
    return message


def training_rows(facts, batch: int, columns=None) -> TrainingRows:
    return TrainingRows(
        7, facts.num_train, facts.num_train // batch, batch, columns or (0, batch)
    )


# --- order


def test_order_is_pinned():
    """A run is repeated, and resumed, by later versions: this must never change."""
    np.testing.assert_array_equal(epoch_order(1, 2, 8), [4, 2, 0, 6, 1, 5, 7, 3])
    np.testing.assert_array_equal(epoch_order(2**32 - 1, 0, 5), [4, 1, 2, 0, 3])


def test_order_is_a_permutation_of_its_own_for_every_epoch_and_seed():
    orders = [epoch_order(seed, epoch, 999) for seed in (0, 1) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(999))
    # Two random permutations agree in one place on average.
    agreements = [np.sum(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreements) < 10


def test_training_rows_are_the_order_cut_into_batches():
    rows = TrainingRows(3, 11, steps_per_epoch=2, batch_size=4, columns=(0, 4))
    for step in (0, 1, 2, 5, 1000):
        epoch, batch = divmod(step, 2)
        expected = epoch_order(3, epoch, 11)[4 * batch : 4 * batch + 4]
        np.testing.assert_array_equal(rows.rows(step), expected)
        np.testing.assert_array_equal(rows.epoch(epoch)[batch], expected)
    assert rows.epoch(0).shape == (2, 4)
    assert rows.epoch(0).dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        rows.rows(0)[0] = 1


def test_evaluation_rows_repeat_the_last_example():
    rows = EvaluationRows(num_train=100, num_test=5, batch_size=4, columns=(0, 4))
    *first, last = 100 + evaluation_order(5)
    np.testing.assert_array_equal(rows.rows(0), first)
    np.testing.assert_array_equal(rows.rows(1), [last] * 4)
    assert rows.rows(1).dtype == np.int32


@pytest.mark.parametrize(
    "whole",
    [TrainingRows(3, 50, 8, 6, (0, 6)), EvaluationRows(50, 20, 6, (0, 6))],
)
def test_columns_of_processes_make_the_whole_batch(whole):
    parts = [dataclasses.replace(whole, columns=c) for c in ((0, 2), (2, 6))]
    for step in range(4):
        joined = np.concatenate([part.rows(step) for part in parts])
        np.testing.assert_array_equal(joined, whole.rows(step))


# --- batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("folder", {"image_size": 14, "center_crop": True}),
        ("digits", {"image_size": 8}),
        ("tfds", {"image_size": 8}),
    ],
)
def test_batches_are_those_of_the_decoded_set(sources, source, options, workers):
    options |= sources[source]
    whole, streamed = load_dataset(**options), stream_dataset(**options)
    assert streamed.facts == whole.facts
    rows = training_rows(whole.facts, 5)
    stop = 2 * rows.steps_per_epoch + 1  # the third epoch begins
    with Batches(streamed, rows, start=1, stop=stop, workers=workers) as made:
        made = list(made)
    assert len(made) == stop - 1
    for step, batch in enumerate(made, start=1):
        assert [type(array) for array in batch] == [np.ndarray, np.ndarray]
        assert [array.dtype for array in batch] == [np.uint8, np.int32]
        np.testing.assert_array_equal(batch.images, whole.train.images[rows.rows(step)])
        np.testing.assert_array_equal(batch.labels, whole.train.labels[rows.rows(step)])


def test_a_later_start_gives_the_tail(sources):
    dataset = stream_dataset(**sources["tfds"], image_size=8)
    rows = training_rows(dataset.facts, 2)
    with Batches(dataset, rows, start=0, stop=30, workers=0) as made:
        whole = list(made)
    # With three workers one has nothing to do.
    for start, workers in ((17, 3), (29, 0), (30, 2), (31, 0)):
        with Batches(dataset, rows, start=start, stop=30, workers=workers) as made:
            tail = list(made)
        assert len(tail) == max(0, 30 - start)
        for batch, expected in zip(tail, whole[start:], strict=True):
            np.testing.assert_array_equal(batch.images, expected.images)
            np.testing.assert_array_equal(batch.labels, expected.labels)


@pytest.mark.parametrize("source", ["folder", "digits", "tfds"])
def test_test_images_in_their_order_with_the_last_repeated(sources, source):
    options = sources[source] | {"image_size": 8}
    whole, streamed = load_dataset(**options), stream_dataset(**options)
    facts = streamed.facts
    rows = EvaluationRows(facts.num_train, facts.num_test, 4, (0, 4))
    stop = -(-facts.num_test // 4)
    with Batches(streamed, rows, start=0, stop=stop, workers=0) as made:
        images, labels = map(np.concatenate, zip(*made, strict=True))
    positions = np.minimum(np.arange(4 * stop), facts.num_test - 1)
    positions = evaluation_order(facts.num_test)[positions]
    np.testing.assert_array_equal(images, whole.test.images[positions])
    np.testing.assert_array_equal(labels, whole.test.labels[positions])


@pytest.mark.parametrize("fraction", [1.0, 0.7])
@pytest.mark.parametrize("source", ["folder", "digits", "tfds"])
def test_any_example_by_number(sources, source, fraction):
    options = sources[source] | {"image_size": 8, "train_fraction": fraction}
    whole, streamed = load_dataset(**options), stream_dataset(**options)
    streamed = pickle.loads(pickle.dumps(streamed))
    assert streamed.facts == whole.facts
    count = len(whole.train.labels)
    # out of order, and from one split to the other and back
    rows = np.array([count + 2, 1, count, 0, count - 1])
    images, labels = streamed.read(rows)
    np.testing.assert_array_equal(images[:4:2], whole.test.images[[2, 0]])
    np.testing.assert_array_equal(images[[1, 3, 4]], whole.train.images[[1, 0, -1]])
    np.testing.assert_array_equal(labels[[1, 3, 4]], whole.train.labels[[1, 0, -1]])


# --- workers


@dataclasses.dataclass(frozen=True)
class Probe:
    """A reader: labels say what is wrong in its process, and a file that it is read.

    Attributes:
      log: gets one byte for every example.
    """

    log: str

    def __call__(self, rows):
        return map(self._read, rows)

    def _read(self, index: int):
        from jax._src import xla_bridge

        with open(self.log, "ab", buffering=0) as log:
            log.write(b".")
        faults = (
            xla_bridge.backends_are_initialized(),
            "tensorflow" in sys.modules,
            signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        )
        return Image.new("L", (4, 4), index % 256), sum(
            fault << bit for bit, fault in enumerate(faults)
        )


def probe(log: pathlib.Path, side: int = 4, channels: int = 1) -> StreamedDataset:
    log.write_bytes(b"")
    facts = DatasetFacts("probe", side, channels, tuple("01234567"), 10_000, 0)
    return StreamedDataset(facts, "memory", Probe(str(log)))


def test_workers_do_no_more_than_they_must(tmp_path):
    """No accelerator, no TensorFlow, no interrupt, and few batches in advance."""
    dataset = probe(tmp_path / "log")
    rows = TrainingRows(0, 10_000, 1000, 10, (0, 10))
    with Batches(dataset, rows, start=0, stop=10**6, workers=2) as made:
        for _ in range(3):
            np.testing.assert_array_equal(next(made).labels, np.zeros(10))
        size, before = None, time.monotonic()
        while size != (size := (tmp_path / "log").stat().st_size):
            time.sleep(1)
        assert time.monotonic() - before < 20
        assert size <= 10 * (3 + streaming._MOST_WAITING)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_end_when_they_are_closed(tmp_path):
    """Also without a batch taken, twice, and by an error of the loop."""
    threads = threading.active_count()
    dataset = probe(tmp_path / "log")
    rows = TrainingRows(0, 100, 10, 10, (0, 10))
    made = Batches(dataset, rows, start=0, stop=10**6, workers=2)
    next(made)
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 2
    made.close()
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    made.close()
    with pytest.raises(StopIteration):
        next(made)
    with (
        pytest.raises(KeyboardInterrupt),
        Batches(dataset, rows, start=0, stop=10**6, workers=1),
    ):
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []
    # Grain keeps some that free shared memory.
    assert threading.active_count() <= threads + 4


def test_a_worker_that_is_killed_ends_the_training(tmp_path):
    rows = TrainingRows(0, 100, 10, 10, (0, 10))
    with Batches(probe(tmp_path / "log"), rows, start=0, stop=10**6, workers=1) as made:
        next(made)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"has died .*workers to fewer"):
            list(made)
    assert multiprocessing.active_children() == []


PROGRAM = """
import dataclasses, multiprocessing, signal, time
import jax
from duet_jax.data import Batches, TrainingRows, stream_dataset
from duet_jax.data.source import Reader

@dataclasses.dataclass(frozen=True)
class Slow:
    fast: Reader

    def __call__(self, rows):
        for example in self.fast(rows):
            time.sleep(0.2)
            yield example

if __name__ == "__main__":
    # As on a terminal; a program that is started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.numpy.zeros(3).block_until_ready()
    dataset = stream_dataset("digits", image_size=8)
    # The interrupt is to find the program waiting for a batch: Python drops one that
    # comes while an object is freed, as each batch is.
    dataset = dataclasses.replace(dataset, reader=Slow(dataset.reader))
    rows = TrainingRows(0, dataset.facts.num_train, 100, 10, (0, 10))
    with Batches(dataset, rows, start=0, stop=10**9, workers=2) as made:
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        WHEN
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        for batch in made:
            pass
"""


@pytest.mark.parametrize(
    ("how", "when"),
    [
        (signal.SIGINT, "starting"),
        (signal.SIGINT, "running"),
        (signal.SIGKILL, "running"),
    ],
)
def test_workers_end_with_the_program(tmp_path, how, when):
    script = tmp_path / "program.py"
    wait = {"starting": "", "running": "next(made)"}
    script.write_text(PROGRAM.replace("WHEN", wait[when]))
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as program:
        workers = program.stdout.readline().split()
        if how == signal.SIGINT:
            os.killpg(program.pid, how)  # as a terminal does
        else:
            program.kill()
        try:
            _, errors = program.communicate(timeout=30)
        finally:
            program.kill()
    assert len(workers) == 2, errors
    if how == signal.SIGINT:
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: str) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.split()[0] != "Z"  # nobody may be there to reap it


def test_too_little_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda path: _Free(64 * 2**20))
    dataset = probe(tmp_path / "log", side=64, channels=3)
    rows = TrainingRows(0, 10_000, 2, 1024, (0, 1024))
    message = usage_error(Batches, dataset, rows, start=0, stop=2, workers=4)
    assert (
        "workers=4: batches of 12 MiB need 72 MiB of shared memory, and /dev/shm has "
        "64 MiB free; enlarge it"
    ) in message
    Batches(dataset, rows, start=0, stop=2, workers=0).close()


@dataclasses.dataclass(frozen=True)
class _Free:
    free: int


# --- what is found


def test_a_set_is_listed_once_to_be_measured_and_used(folder, monkeypatch):
    found = find_dataset("folder", path=str(folder), image_size=8)

    def list_again(path):
        raise AssertionError("listed again")

    monkeypatch.setattr(listing, "_entries", list_again)
    whole, streamed = found.decode(), found.stream()
    assert whole.facts == streamed.facts == found.facts


def test_nothing_is_decoded_to_find_the_channels(folder, prepared, monkeypatch):
    sets = [
        find_dataset(name, path=str(path))
        for name, path in (("folder", folder), ("shapes", prepared))
    ]
    monkeypatch.setattr(Image.Image, "load", None)
    assert [found.channels for found in sets] == [3, 3]


@pytest.mark.parametrize("coloured", ["", "train", "test"])
def test_folder_is_grey_only_if_every_image_is(tmp_path, coloured):
    kinds = ("L", "1", "LA", "I;16")
    for split in ("train", "test"):
        for name in ("a", "b"):
            for kind in kinds:
                path = tmp_path / split / name / f"{kind[0] + kind[-1]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(kind, (8, 8)).save(path)
        if split == coloured:
            Image.new("P", (8, 8)).save(tmp_path / split / "b" / "palette.png")
    options = {"path": str(tmp_path), "image_size": 8}
    whole, streamed = (
        load_dataset("folder", **options),
        stream_dataset("folder", **options),
    )
    assert streamed.facts == whole.facts
    assert streamed.facts.channels == (3 if coloured else 1)


@pytest.mark.parametrize(
    ("declared", "shape", "channels"),
    [(3, (8, 8, 3), 3), (3, (8, 8), 1), (1, (8, 8), 1)],
)
def test_tfds_is_grey_only_if_every_image_is(
    tmp_path, monkeypatch, declared, shape, channels
):
    monkeypatch.setattr("prepared.shape_image", lambda split, i: noise(shape, i))
    features = {
        "image": tfds.features.Image(shape=(None, None, declared)),
        "label": Shapes.FEATURES["label"],
    }
    prepare(tmp_path, SPLITS={"train": 3, "test": 2}, FEATURES=features)
    options = {"path": str(tmp_path), "image_size": 8}
    whole, streamed = (
        load_dataset("shapes", **options),
        stream_dataset("shapes", **options),
    )
    assert streamed.facts == whole.facts
    assert streamed.facts.channels == channels


def test_a_size_is_compared_without_a_look_where_that_can_be():
    def look():
        raise AssertionError("looked")

    found = find_dataset("digits", image_size=8)
    blind = dataclasses.replace(found, source=found.source._replace(channels=look))
    pixels = 1797 * 8 * 8
    assert blind.fits(3 * pixels)
    assert not blind.fits(pixels - 1)
    assert found.fits(pixels)
    unknown = dataclasses.replace(found, source=found.source._replace(channels=None))
    assert unknown.channels == 1


def test_a_large_folder_is_cheap_to_send(tmp_path):
    files = [
        image_files.File(f"train/class{i % 1000}/image_{i:08}.jpeg", "a", 1, 1)
        for i in range(10_000)
    ]
    reader = image_files._Images("", "/", files, ("a",))
    assert len(pickle.dumps(reader)) < 60 * len(files)


# --- faults


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(tmp_path, workers):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(5):
                save(tmp_path / split / name / f"{i}.png", noise((8, 8, 3), i))
    whole = png(noise((8, 8, 3)))
    (tmp_path / "train/dog/3.png").write_bytes(whole[:-60])
    dataset = stream_dataset("folder", path=str(tmp_path), image_size=8)
    rows = training_rows(dataset.facts, 5)
    with Batches(dataset, rows, start=0, stop=4, workers=workers) as made:
        message = usage_error(list, made)
        assert multiprocessing.active_children() == []
        assert list(made) == []
    assert message.startswith(
        f"config.dataset.path={str(tmp_path)!r}: train/dog/3.png cannot be read ("
    )
    assert message.endswith("); replace or delete it.")


def test_a_damaged_header_is_named(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png", noise((8, 8), 0))
    (tmp_path / "test/cat/1.png").write_bytes(b"x")
    message = usage_error(stream_dataset, "folder", path=str(tmp_path))
    assert ": test/cat/1.png cannot be read (cannot identify image file" in message


def test_a_damaged_array_record_is_told(tmp_path):
    prepare(tmp_path, SPLITS={"train": 3, "test": 2})
    dataset = stream_dataset("shapes", path=str(tmp_path), image_size=8)
    file = tmp_path / "shapes/1.0.0/shapes-train.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-100])
    message = usage_error(dataset.read, np.arange(1))
    assert f"cannot be read from {tmp_path}/shapes/1.0.0: " in message


def test_tfrecord_has_no_random_access(prepared, tmp_path):
    tfrecord = as_tfrecord(prepared, tmp_path / "tfrecord")
    found = find_dataset("shapes", path=str(tfrecord), image_size=8)
    assert found.channels == 3
    assert usage_error(found.stream) == (
        "config.dataset.name='shapes' cannot be streamed: "
        f"{tfrecord}/shapes/1.0.0 (train and test) is not in a format with random "
        "access; prepare it again with file_format='array_record', store its images "
        "as files, or set config.dataset.placement=device."
    )


def test_withheld_labels_are_told(tmp_path):
    prepare(tmp_path, SPLITS={"train": 2, "test": 2}, LABELLED=("test",))
    dataset = stream_dataset("shapes", path=str(tmp_path), image_size=8)
    assert "has images without a valid label" in usage_error(dataset.read, np.arange(1))
    dataset.read(np.array([2, 3]))


def test_colour_in_a_grey_set_is_told(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png", noise((8, 8), 0))
    dataset = stream_dataset("folder", path=str(tmp_path), image_size=8)
    save(tmp_path / "train/dog/0.png", noise((8, 8, 3)))
    message = usage_error(dataset.read, np.arange(2))
    assert f"example 1 of {tmp_path} has color, but the set was found gray" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "config.dataset.image_size=0 must be positive"),
        ({"num_classes": 7}, "config.dataset.num_classes=7 is wrong"),
        ({"path": "/no/such", "name": "folder"}, "'/no/such' does not exist"),
    ],
)
def test_what_cannot_be_decoded_cannot_be_streamed(options, expected):
    options = {"name": "digits"} | options
    assert expected in usage_error(stream_dataset, **options)
    assert expected in usage_error(load_dataset, **options)
