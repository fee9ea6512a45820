"""Batches of a data set that is never in memory as a whole.

Worker processes read, decode and cut the images of the next few batches. Which examples
those are is known from the number of the batch (`data/order.py`), so that the batches
do not depend on the number of workers, and any of them can be the first.
"""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from duet_jax.data.decoding import square
from duet_jax.data.source import FoundDataset, Reader, without_labels
from duet_jax.errors import TrainingError, UsageError
from duet_jax.types import DatasetFacts, Split

_SHARED_MEMORY = "/dev/shm"
# Parts of as many batches are in shared memory at once: one being written, one that
# waits for room, and one in the queue of a worker; one fetched, and one being joined.
_MOST_WAITING = 6
_LONGEST_FREEING = 5.0  # seconds
# Until workers are killed; on their own they end with the part they are making.
_LONGEST_CLOSING = 10.0
# After a SIGTERM, of a worker that the main process has not ended.
_LONGEST_WORK = 30.0


class Rows(Protocol):
    """Says which examples a batch holds: `TrainingRows`, `EvaluationRows`."""

    def rows(self, step: int, /) -> np.ndarray:
        """Returns the examples of a batch: int32, [batch]."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a set, decoded when they are asked for; training images first.

    Attributes:
      name: of the data set, for messages.
      location: where it is, for messages.
      num_classes: labels are smaller.
      reader: random access to the images.
      side: of the squares that are cut from them, in pixels.
      channels: 1 for grey, or 3, where grey images are repeated.
    """

    name: str
    location: str
    num_classes: int
    reader: Reader
    side: int
    channels: int

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns one image, uint8, [side, side, channels], and its label."""
        images, labels = self.read([index])
        return images[0], int(labels[0])

    def nbytes(self, count: int) -> int:
        """Returns the size of `count` images in bytes."""
        return count * self.side**2 * self.channels

    def read(self, rows: Sequence[int]) -> Split:
        """Returns some examples in the order of `rows`.

        Raises:
          UsageError: an image is damaged, in colour in a grey set, or has no label.
        """
        images = np.empty((len(rows), self.side, self.side, self.channels), np.uint8)
        labels = np.empty(len(rows), np.int32)
        with warnings.catch_warnings():
            # Pillow warns, file by file, of odd metadata that do not touch the pixels.
            warnings.simplefilter("ignore")
            for index, (image, label) in enumerate(self.reader.read(rows)):
                pixels = square(image, self.side)
                if pixels.shape[2] > self.channels:
                    raise self._coloured(rows[index])
                images[index] = pixels  # a grey image is repeated in all channels
                labels[index] = label
        if len(rows) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise without_labels(self.name, self.location)
        return Split(images, labels)

    def _coloured(self, row: int) -> UsageError:
        return UsageError(
            f"config.dataset.name={self.name!r}: example {row} of {self.location} has "
            "colour, but the set was found grey; start again if its files have "
            "changed, or set config.dataset.placement=device."
        )


class StreamedDataset(NamedTuple):
    """A labelled image set that is read while it is used.

    Attributes:
      facts: what is known of it without its images.
      examples: the images and labels, of both splits, training images first.
    """

    facts: DatasetFacts
    examples: Examples


def stream(found: FoundDataset) -> StreamedDataset:
    """Returns a data set to take batches of; decodes nothing.

    Raises:
      UsageError: the examples can only be read in order, or a header is damaged.
    """
    source = found.source
    if source.reader is None:
        raise UsageError(
            f"config.dataset.name={found.name!r} cannot be streamed: {source.location} "
            "is not in a format with random access; prepare it again with "
            "file_format='array_record', or set config.dataset.placement=device."
        )
    examples = Examples(
        found.name,
        source.location,
        len(source.class_names),
        found.reader,
        found.side,
        found.channels,
    )
    return StreamedDataset(found.facts, examples)


def batches(
    examples: Examples, rows: Rows, *, start: int, stop: int, workers: int
) -> "Batches":
    """Starts to make batches.

    Workers are new processes, which import the script that runs: it needs the usual
    `if __name__ == "__main__"`.

    Args:
      examples: the data set.
      rows: which examples are in a batch.
      start: number of the first batch.
      stop: one past the number of the last one.
      workers: processes that decode; 0 decodes in this one.

    Returns:
      An iterator over the batches, to be closed, or used in `with`: images uint8,
      [batch, side, side, channels], and labels int32, [batch]. It raises a UsageError
      at a damaged image, a TrainingError when a worker is killed.

    Raises:
      UsageError: shared memory is too small for the batches that wait to be used.
    """
    if workers:
        _check_shared_memory(examples.nbytes(len(rows.rows(start))), workers)
        _start_quiet_tracker()
    if not flags.FLAGS.is_parsed():  # as in a notebook; Grain asks for flags of its own
        flags.FLAGS.mark_as_parsed()
    parts, in_workers = max(1, workers), workers > 0
    numbers = range(start, max(start, stop))
    pipelines = [
        _pipeline(_Part(examples, rows, numbers, part, parts), in_worker=in_workers)
        for part in range(parts)
        if numbers
    ]
    return Batches(pipelines, len(numbers), in_workers=in_workers)


class Batches(Iterator[Split]):
    """Batches that are made in advance, in order, until they are closed.

    Every worker makes its part of each batch. What waits to be used is thereby some
    batches in all, rather than some for each worker. The last batch and an error end
    the workers like `close`.
    """

    def __init__(
        self, pipelines: Sequence[grain.IterDataset], count: int, *, in_workers: bool
    ):
        """Starts the workers.

        Args:
          pipelines: each gives one part of every batch.
          count: number of batches.
          in_workers: each is a process of its own.
        """
        self._in_workers = in_workers
        self._remaining = count
        self._parts = [iter(pipeline) for pipeline in pipelines]
        self._workers: list[multiprocessing.Process] = []
        others = multiprocessing.active_children()
        try:
            for part in self._parts:
                part.get_state()  # Grain makes what is to be started
            with _interrupts_blocked():
                for part in self._parts:
                    part.start_prefetch()
            started = multiprocessing.active_children()
            self._workers = [each for each in started if each not in others]
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Split:
        try:
            if not self._remaining:
                raise StopIteration
            parts = [next(part) for part in self._parts]
            self._remaining -= 1
            return Split(*map(np.concatenate, zip(*parts, strict=True)))
        except UsageError as error:
            # Not the worker's own, of which the traceback leads through Grain and keeps
            # shared memory.
            failure = UsageError(str(error))
        except RuntimeError as error:
            if "exit code" not in str(error):  # Grain's words for a worker that died
                self.close()
                raise
            failure = TrainingError(
                f"a process that reads images has ended ({' '.join(str(error).split())}"
                "), perhaps for want of memory; set config.dataset.workers to fewer."
            )
        except BaseException:
            self.close()
            raise
        self.close()
        raise failure

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, which takes each as long as the part it is making."""
        # None is kept: Grain's would be closed again, too late, when the program ends.
        parts, self._parts, self._remaining = self._parts, [], 0
        self._close(parts)
        if parts and self._in_workers:
            parts.clear()
            _free_shared_memory()

    def _close(self, parts: Sequence[grain.DatasetIterator]) -> None:
        """Closes the parts side by side, and kills workers that do not end."""
        closing = [threading.Thread(target=each.close, daemon=True) for each in parts]
        for thread in closing:
            thread.start()
        deadline = time.monotonic() + _LONGEST_CLOSING
        for thread in closing:
            thread.join(max(0, deadline - time.monotonic()))
        # An interrupt that hits the main thread within a queue of Grain's can leave a
        # thread of Grain's waiting for ever.
        if any(thread.is_alive() for thread in closing):
            for worker in self._workers:
                worker.kill()


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part of every batch, by number: a data source, as Grain calls it."""

    examples: Examples
    rows: Rows
    batches: range
    part: int
    parts: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows.rows(self.batches[index])
        return tuple(self.examples.read(np.array_split(rows, self.parts)[self.part]))


def _pipeline(part: _Part, *, in_worker: bool) -> grain.IterDataset:
    """Returns what makes one part of every batch, in a process of its own or here."""
    # One after the other; by default Grain would read 500 in advance.
    one_by_one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(part).to_iter_dataset(one_by_one)
    if not in_worker:
        return dataset
    options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=1)
    return dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(index: int, count: int) -> None:
    """Has this worker end when the main process does, even if that is killed.

    And not before: a scheduler sends SIGTERM to every process, but the main one needs
    images until it has saved its work. It ends its workers itself.
    """
    del index, count
    signal.signal(signal.SIGTERM, lambda *_: _end_later())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_later() -> None:
    """Ends this worker if nobody does so in time."""
    timer = threading.Timer(_LONGEST_WORK, os._exit, (1,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keeps Ctrl-C from the threads and processes that are started meanwhile.

    A terminal interrupts every process; only the main one should say so, and it ends
    the others. SIGTERM waits until a worker knows what to do at it. Python itself
    unblocks when it starts the tracker of shared memory, which is therefore to have
    happened before.
    """
    both = [signal.SIGINT, signal.SIGTERM]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_quiet_tracker() -> None:
    """Starts the process that frees shared memory at exit, if it is not there yet.

    A worker that is told to stop may hold a part that it has not handed over. The
    tracker frees it, as it should, and is not to warn of it.
    """
    name, quiet = "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"
    before = os.environ.get(name)
    os.environ[name] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _free_shared_memory() -> None:
    """Waits until what Grain has dropped is freed; at exit it would count as leaked.

    Grain's last exceptions hold themselves, and through their frames the last arrays.
    A thread frees those one after the other: when the latest is gone, all are.
    """
    gc.collect()
    latest = grain.multiprocessing.SharedMemoryArray((1,), np.uint8)
    latest.unlink_on_del()
    file = os.path.join(_SHARED_MEMORY, latest.metadata.name)
    del latest
    deadline = time.monotonic() + _LONGEST_FREEING
    while os.path.exists(file) and time.monotonic() < deadline:
        time.sleep(0.01)


def _check_shared_memory(batch: int, workers: int) -> None:
    """Raises a UsageError unless there is room for the batches that wait.

    Args:
      batch: size of a batch in bytes.
      workers: number of processes.
    """
    if not os.path.isdir(_SHARED_MEMORY):
        return  # not Linux, where it has no limit of its own
    free, needed = shutil.disk_usage(_SHARED_MEMORY).free, _MOST_WAITING * batch
    if free < needed:
        raise UsageError(
            f"config.dataset.workers={workers}: batches of {batch / 2**20:.0f} MiB "
            f"need {needed / 2**20:.0f} MiB of shared memory, and {_SHARED_MEMORY} has "
            f"{free / 2**20:.0f} MiB free; enlarge it (docker run --shm-size), or set "
            "config.dataset.workers=0 or config.dataset.placement=device."
        )
