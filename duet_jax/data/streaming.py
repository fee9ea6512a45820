"""Streams batches of a data set that is never in memory as a whole.

Worker processes read, decode and crop the images of the next few batches. The number of
a batch determines its examples (`data/order.py`): batches do not depend on the number
of workers, and a run can start at any of them.
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
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker

import numpy as np
from absl import flags

from duet_jax.data.decoding import in_channels, square
from duet_jax.data.order import EvaluationRows, TrainingRows
from duet_jax.data.source import UNLABELED, Reader, without_labels
from duet_jax.errors import TrainingError, UsageError
from duet_jax.types import DatasetFacts, Split

_SHARED_MEMORY = "/dev/shm"
# An upper bound of the batches in shared memory. The parts of a worker are: one being
# written, one waiting for room in its queue, one in the queue, one fetched by the main
# process, and one being joined to a batch.
_MOST_WAITING = 6
_LONGEST_FREEING = 5.0  # seconds
# Seconds until workers are killed. They normally exit after their current part.
_LONGEST_CLOSING = 10.0
# Seconds that a worker outlives a SIGTERM, unless the main process ends it.
_LONGEST_WORK = 30.0


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """An image set whose images are decoded on access; training images first.

    Attributes:
      facts: what is known without the images.
      location: where the data come from, for messages.
      reader: random access to the examples of the source.
      used: number in the source of each example, int [examples]; None for all.
      converted: color is converted to gray where the facts say so; otherwise an error.
    """

    facts: DatasetFacts
    location: str
    reader: Reader
    used: np.ndarray | None = None
    converted: bool = False

    streamed = True

    def read(self, rows: np.ndarray) -> Split:
        """Returns the examples `rows`, int [count], in that order.

        Raises:
          UsageError: an image is damaged, has color in a gray set, or has no label.
        """
        side, channels = self.facts.side, self.facts.channels
        images = np.empty((len(rows), side, side, channels), np.uint8)
        labels = np.empty(len(rows), np.int32)
        numbers = rows if self.used is None else self.used[rows]
        for index, (image, label) in enumerate(self.reader(numbers.tolist())):
            pixels = square(image, side)
            if pixels.shape[2] > channels:
                if not self.converted:
                    raise self._colored(numbers[index])
                pixels = in_channels(pixels, channels)
            images[index] = pixels  # a gray image is repeated in all channels
            labels[index] = label
        classes = self.facts.num_classes
        if not classes:
            labels[:] = UNLABELED
        elif len(rows) and not 0 <= labels.min() <= labels.max() < classes:
            raise without_labels(self.facts.name, self.location)
        return Split(images, labels)

    def _colored(self, row: int) -> UsageError:
        return UsageError(
            f"config.dataset.name={self.facts.name!r}: example {row} of "
            f"{self.location} has color, but the set was found gray; rerun if its "
            "files have changed, or set config.dataset.placement=device."
        )


class Batches(Iterator[Split]):
    """Prefetched batches, in order; to be closed, or used in `with`.

    Images are uint8, [batch, side, side, channels], and labels int32, [batch]. A
    damaged image raises a UsageError, a worker that was killed a TrainingError; an
    error and the call after the last batch close the iterator. Every worker decodes its
    part of each batch: memory then holds a few batches in all, rather than a few for
    each worker.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        rows: TrainingRows | EvaluationRows,
        *,
        start: int,
        stop: int,
        workers: int,
    ):
        """Starts to prefetch.

        Workers are spawned processes, which import the main script: it needs the usual
        `if __name__ == "__main__"`.

        Args:
          dataset: provides the images.
          rows: which examples are in which batch.
          start: number of the first batch.
          stop: one past the number of the last batch.
          workers: number of processes that decode; 0 decodes in this process.

        Raises:
          UsageError: shared memory is too small for the prefetched batches.
        """
        if workers:
            facts = dataset.facts
            image_bytes = facts.side**2 * facts.channels
            _check_shared_memory(len(rows.rows(start)) * image_bytes, workers)
            _start_quiet_tracker()
        if not flags.FLAGS.is_parsed():  # as in a notebook; Grain defines flags
            flags.FLAGS.mark_as_parsed()
        self._in_workers = workers > 0
        self._workers: list[multiprocessing.Process] = []
        self._parts: list[Iterator[Split]] = []
        if start < stop:
            numbers = range(start, stop)
            self._parts = [
                iter(_pipeline(dataset, rows, numbers, part, workers))
                for part in range(max(1, workers))
            ]
        self._start()

    def _start(self) -> None:
        others = multiprocessing.active_children()
        try:
            for part in self._parts:
                part.get_state()  # Grain creates what is to be started
            with _interrupts_blocked():
                for part in self._parts:
                    part.start_prefetch()
            started = multiprocessing.active_children()
            self._workers = [each for each in started if each not in others]
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Split:
        if not self._parts:
            raise StopIteration
        try:
            parts = [next(part) for part in self._parts]
            return Split(*map(np.concatenate, zip(*parts, strict=True)))
        except UsageError as error:
            # A new exception: the traceback of the worker's leads through Grain and
            # would keep shared memory alive.
            failure = UsageError(str(error))
        except RuntimeError as error:
            if "exit code" not in str(error):  # Grain's message for a dead worker
                self.close()
                raise
            failure = TrainingError(
                f"a process that reads images has died ({' '.join(str(error).split())}"
                "), perhaps for lack of memory; set config.dataset.workers to fewer."
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
        """Ends the workers, which finish the parts they are at; kills hanging ones."""
        # Drops Grain's iterators: they would otherwise be closed again at exit, when it
        # is too late.
        parts, self._parts = self._parts, []
        if not parts:
            return
        closing = [threading.Thread(target=each.close, daemon=True) for each in parts]
        parts.clear()
        for thread in closing:
            thread.start()
        deadline = time.monotonic() + _LONGEST_CLOSING
        for thread in closing:
            thread.join(max(0, deadline - time.monotonic()))
        # An interrupt that hits the main thread within a queue of Grain's can leave one
        # of Grain's threads waiting forever.
        if any(thread.is_alive() for thread in closing):
            for worker in self._workers:
                worker.kill()
        if self._in_workers:
            _free_shared_memory()


def _pipeline(
    dataset: StreamedDataset,
    rows: TrainingRows | EvaluationRows,
    batches: range,
    part: int,
    workers: int,
) -> Iterable[Split]:
    """Returns one part of every batch, read by a process of its own if `workers`."""

    def read(batch: int) -> tuple[np.ndarray, np.ndarray]:
        parts = np.array_split(rows.rows(batch), max(1, workers))
        return tuple(dataset.read(parts[part]))

    # Sequential; by default Grain would read 500 elements ahead.
    import grain  # an extra, and a second to import

    sequential = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    numbers = grain.MapDataset.range(batches.start, batches.stop)
    pipeline = numbers.map(read).to_iter_dataset(sequential)
    if not workers:
        return pipeline
    options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=1)
    return pipeline.mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(index: int, count: int) -> None:
    """Makes this worker exit when the main process does, even if that is killed.

    But not before: a scheduler sends SIGTERM to every process, and the main process
    needs images until it has saved the run. Then it ends its workers itself.
    """
    del index, count

    def exit_later(*_: object) -> None:
        timer = threading.Timer(_LONGEST_WORK, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGTERM, exit_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in the threads and processes that are started inside.

    A terminal interrupts every process; only the main one should report it, and end the
    others. SIGTERM waits until a worker has installed its handler. Python unblocks both
    when it starts the resource tracker, which must therefore be running already.
    """
    both = [signal.SIGINT, signal.SIGTERM]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_quiet_tracker() -> None:
    """Starts the process that frees shared memory at exit, if it does not run yet.

    A worker that is stopped may hold a part that it has not handed over. The tracker
    frees it, as it should, and must not warn of it.
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
    """Waits until dropped arrays of Grain are freed; at exit they would count as leaks.

    Grain's last exceptions are in reference cycles, and their frames hold the last
    arrays. A thread frees these in order: when the latest is gone, all are.
    """
    import grain

    gc.collect()
    latest = grain.multiprocessing.SharedMemoryArray((1,), np.uint8)
    latest.unlink_on_del()
    file = os.path.join(_SHARED_MEMORY, latest.metadata.name)
    del latest
    deadline = time.monotonic() + _LONGEST_FREEING
    while os.path.exists(file) and time.monotonic() < deadline:
        time.sleep(0.01)


def _check_shared_memory(batch: int, workers: int) -> None:
    """Raises a UsageError unless batches of `batch` bytes can be prefetched."""
    if not os.path.isdir(_SHARED_MEMORY):
        return  # not Linux: shared memory has no limit of its own
    free, needed = shutil.disk_usage(_SHARED_MEMORY).free, _MOST_WAITING * batch
    if free < needed:
        raise UsageError(
            f"config.dataset.workers={workers}: batches of {batch / 2**20:.0f} MiB "
            f"need {needed / 2**20:.0f} MiB of shared memory, and {_SHARED_MEMORY} has "
            f"{free / 2**20:.0f} MiB free; enlarge it (docker run --shm-size), or set "
            "config.dataset.workers=0 or config.dataset.placement=device."
        )
