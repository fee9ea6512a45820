"""Image sets of TensorFlow Datasets (TFDS), read without TensorFlow.

TFDS calls a data set prepared once it is downloaded and rewritten in TFDS's own files.
Both of their formats are read: ArrayRecord, which this module prepares, and TFRecord,
the default of `tfds.load`. Only preparing a data set needs TensorFlow.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import logging
import os
import queue
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from duet_jax.data import listing
from duet_jax.data.decoding import decode, is_gray
from duet_jax.data.source import (
    MOST_READ,
    UNLABELED,
    Example,
    Source,
    digest_of,
    short_hash,
)
from duet_jax.errors import UsageError, suggestion

logger = logging.getLogger(__name__)

_CHUNK = 256  # examples in memory at a time; larger chunks are no faster
_PROBE_SECONDS = 3.0
_MOST_PROBES = 4


def find(name: str, path: str, others: Sequence[str]) -> Source:
    """Finds a data set in TFDS's directory, and prepares it there if necessary.

    The test split is `test`, or `validation` if there is no `test` or its labels are
    withheld (ImageNet); without either, a share of `train` is held out. A set without
    a class label has no labels.

    Args:
      name: TFDS's name, with configuration and version if wanted
        (`imagenet_resized/32x32`, `cifar10:3.0.2`).
      path: TFDS's data directory; its own default (`$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`) when empty.
      others: names that are not TFDS's, for messages.

    Raises:
      UsageError: unknown name, no images, or the data are neither there nor can be
        prepared; from `examples` and `reader`, damaged files.
    """
    with _quiet():
        builder = _builder(name, path, others)
        records = _Records(name, builder)
        if not builder.is_prepared():
            _check_not_images(name, path)
            _prepare(name, builder)
        records.choose_splits()
        info, splits = builder.info, records.splits
        files = {
            split: [(f.name, f.stat()) for f in info.splits[split].filepaths]
            for split in splits
        }
        sizes = [(file, s.length) for split in splits for file, s in files[split]]
        counts = [info.splits[split].num_examples for split in splits]
        label = records.label_key
        return Source(
            class_names=tuple(map(str, info.features[label].names)) if label else (),
            num_train=counts[0],
            num_test=sum(counts[1:]),
            examples=records.examples,
            location=f"{builder.data_path} ({' and '.join(splits)})",
            identity={
                "tfds": info.full_name,
                "path": str(builder.data_path),
                "format": info.file_format.value,
                "splits": {
                    split: [
                        info.splits[split].num_examples,
                        *((file, s.length, s.mtime) for file, s in files[split]),
                    ]
                    for split in splits
                },
            },
            content=short_hash([info.full_name, sizes]),
            digests=None if sum(s for _, s in sizes) > MOST_READ else records.digests,
            reader=records if records.format == "array_record" else None,
            channels=records.channels,
        )


def is_prepared(name: str, path: str, others: Sequence[str]) -> bool:
    """Returns whether a data set is in TFDS's directory.

    Args:
      name: as in `find`.
      path: as in `find`.
      others: as in `find`.

    Raises:
      UsageError: TFDS does not know it.
    """
    with _quiet():
        return _builder(name, path, others).is_prepared()


def _builder(name: str, path: str, others: Sequence[str]) -> Any:
    """Returns TFDS's builder, which describes a data set, prepared or not."""
    try:
        # Imported here because it takes a second that other sources need not spend.
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        directory = {"data_dir": os.path.expanduser(path)} if path else {}
        builder = tfds.builder(name, **directory)
        if builder.is_prepared():
            return builder  # in the format it was prepared in
        return tfds.builder(name, file_format="array_record", **directory)
    except ImportError as error:
        raise UsageError(
            f"config.dataset.name={name!r} is none of {', '.join(others)}."
            f"{suggestion(name, others)} Others are of TFDS, which needs a package "
            f"that is not installed: pip install {error.name}"
        ) from error
    except Exception as error:  # TFDS raises whatever its parts raise
        # By name: the import itself may be what failed.
        if type(error).__name__ == "DatasetNotFoundError":
            _check_not_images(name, path)
            raise _unknown(name, path, others) from error
        raise UsageError(
            f"config.dataset.name={name!r} cannot be used: {_one_line(error)}; "
            f"{_choice(others)}."
        ) from error


def _check_not_images(name: str, path: str) -> None:
    """Raises a UsageError if the path is that of images and not TFDS's directory."""
    kind = listing.source_for(path) if path else ""
    if kind:
        raise UsageError(
            f"config.dataset.path={path!r} holds image files and no data set "
            f"{name!r} of TensorFlow Datasets; set config.dataset.name={kind} to read "
            "them."
        )


def _choice(others: Sequence[str]) -> str:
    return (
        f"choose {', '.join(others)} or an image set of TFDS such as cifar10, "
        "cifar100, mnist or svhn_cropped"
    )


def _unknown(name: str, path: str, others: Sequence[str]) -> UsageError:
    import tensorflow_datasets as tfds

    known = (*others, *tfds.list_builders(with_community_datasets=False))
    searched = f" or in config.dataset.path={path!r}" if path else ""
    return UsageError(
        f"config.dataset.name={name!r} is not known to TensorFlow Datasets{searched}; "
        f"{_choice(others)}.{suggestion(name, known)}"
    )


def _keys(name: str, builder: Any) -> tuple[str, str]:
    """Returns the names of the image and of the label, or "", in an example."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        features = {}
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    ]
    keys = builder.info.supervised_keys or ("image", "label")
    image, label = (
        next(iter([key for key in keys[:2] if key in found] or found), "")
        for found in (images, labels)
    )
    if not image:
        raise UsageError(
            f"config.dataset.name={name!r} is not an image set: its features are "
            f"{', '.join(features) or 'unnamed'}; choose one with an image, such as "
            "cifar10."
        )
    return image, label


class _Records:
    """The examples of a data set; called with numbers, it is the `Reader` of it.

    It is pickled without the builder: each process opens the directory itself.

    Attributes:
      splits: names of the training and of the test split, if there is one.
      label_key: name of the label in an example; "" without.
    """

    def __init__(self, name: str, builder: Any):
        """Raises a UsageError unless it is an image set."""
        self.splits = ()
        self._image_key, self.label_key = _keys(name, builder)
        self._name = name
        self._directory = str(builder.data_path)
        self._builder = builder
        self._opened: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_builder": None, "_opened": {}}

    @property
    def builder(self) -> Any:
        """TFDS's builder."""
        if self._builder is None:
            import tensorflow_datasets as tfds

            with _quiet():
                self._builder = tfds.builder_from_directory(self._directory)
        return self._builder

    @property
    def format(self) -> str:
        """TFDS's name of the file format."""
        return self.builder.info.file_format.value

    def choose_splits(self) -> None:
        """Sets `splits` to the training split and one whose labels are not withheld."""
        available = self.builder.info.splits
        if "train" not in available:
            raise UsageError(
                f"config.dataset.name={self._name!r} needs a split train; it has "
                f"{', '.join(available)}; choose another data set."
            )
        self.splits = ("train",)
        for test in ("test", "validation"):
            if test in available and self._is_labeled(test):
                self.splits = ("train", test)
                return

    def _is_labeled(self, split: str) -> bool:
        """Returns whether a split has the labels of the set; withheld ones are -1."""
        if not self.label_key:
            return True
        _, label = next(self._examples([split]), (None, UNLABELED))
        return label != UNLABELED

    def examples(self) -> Iterator[Example]:
        """Yields the examples of both splits, decoded by Pillow."""
        return self._examples(self.splits)

    def _examples(self, splits: Sequence[str]) -> Iterator[Example]:
        with self._named_errors():
            for split in splits:
                found, expected = 0, self._count(split)
                for example in self._encoded(split):
                    yield self._decoded(example)
                    found += 1
                if found != expected:
                    raise ValueError(f"{found} of {expected} {split} examples found")

    def __call__(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields the examples `rows`; reads neighbors of the same split together."""
        with self._named_errors():
            num_train = self._count(self.splits[0])
            for is_test, group in itertools.groupby(rows, lambda r: r >= num_train):
                positions = [row - is_test * num_train for row in group]
                split = self.splits[is_test]
                if split not in self._opened:
                    self._opened[split] = self._open(split)
                examples = _in_chunks(self._opened[split], positions)
                yield from map(self._decoded, examples)

    def channels(self) -> int:
        """Returns 3 at the first image with color, by the headers; 1 if there is none.

        A data set that is declared gray is not checked.
        """
        if self.builder.info.features[self._image_key].shape[-1] == 1:
            return 1
        with self._named_errors():
            for split in self.splits:
                for example in self._encoded(split):
                    if not is_gray(io.BytesIO(example[self._image_key])):
                        return 3
        return 1

    def digests(self) -> tuple[str, ...]:
        """Reads the files of both splits; see `Source.digests`."""
        with self._named_errors():
            return tuple(
                digest_of((f.name, functools.partial(f.open, "rb")) for f in files)
                for files in map(self._files, self.splits)
            )

    def _count(self, split: str) -> int:
        return self.builder.info.splits[split].num_examples

    def _files(self, split: str) -> Sequence[Any]:
        return self.builder.info.splits[split].filepaths

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turns any error of reading the files into a UsageError."""
        try:
            yield
        except Exception as error:  # from array_record, protobuf, TFDS or Pillow
            raise UsageError(
                f"config.dataset.name={self._name!r} cannot be read from "
                f"{self._directory}: {_one_line(error)}; delete that directory and "
                "prepare it again."
            ) from error

    def _decoded(self, example: dict[str, Any]) -> Example:
        image, _ = decode(io.BytesIO(example[self._image_key]))
        return image, int(example[self.label_key]) if self.label_key else UNLABELED

    def _encoded(self, split: str) -> Iterator[dict[str, Any]]:
        """Yields the examples of a split; images still encoded, in bytes."""
        if self.format == "array_record":
            records = self._open(split)
            yield from _in_chunks(records, range(len(records)))
        elif self.format == "tfrecord":
            decoders, features = self._decoders(), self.builder.info.features
            for file in self._files(split):
                with file.open("rb") as stream:
                    for record in _tfrecords(stream):
                        yield features.deserialize_example_np(record, decoders=decoders)
        else:
            raise ValueError(
                f"the format {self.format} is not array_record or tfrecord"
            )

    def _open(self, split: str) -> Any:
        """Returns random access to the encoded examples of an ArrayRecord split."""
        with _quiet():
            return self.builder.as_data_source(split, decoders=self._decoders())

    def _decoders(self) -> dict[str, Any]:
        """Stops TFDS from decoding images.

        Pillow decodes them, so that all sources treat gray, alpha and depth alike.
        """
        import tensorflow_datasets as tfds

        return {self._image_key: tfds.decode.SkipDecoding()}


def _in_chunks(records: Any, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the examples at some positions; one by one is slower."""
    for start in range(0, len(positions), _CHUNK):
        yield from records.__getitems__(positions[start : start + _CHUNK])


def _tfrecords(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A record is its length (8 bytes, little-endian), a checksum (4), the payload and
    another checksum (4). The checksums are not verified: the number of examples is, and
    decoding PNG and JPEG data finds most damage.
    """
    while header := stream.read(12):
        (length,) = struct.unpack("<Q4x", header)
        record = stream.read(length + 4)
        if len(record) != length + 4:
            raise ValueError(f"{stream.name} ends within a record")
        yield record[:length]


def _prepare(name: str, builder: Any) -> None:
    """Downloads a data set and writes it in ArrayRecord format."""
    import tensorflow_datasets as tfds

    missing = (
        f"config.dataset.name={name!r} is not prepared in {builder.data_path} and "
    )
    remedy = (
        "set config.dataset.path to a TFDS data directory that holds it, or prepare it "
        f'on a machine with network: python -c "import tensorflow_datasets as t; '
        f"t.builder({name!r}, file_format='array_record').download_and_prepare()\""
    )
    manual = bool(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
    # TFDS itself would retry for minutes.
    if not manual and not _reachable(builder.url_infos):
        raise UsageError(f"{missing}cannot be downloaded: no network; {remedy}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"{missing}preparing it, once, needs TensorFlow; pip install "
            f"tensorflow-cpu, or {remedy}"
        )
    logger.info("preparing %s in %s; this can take minutes", name, builder.data_path)
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # holds TFRecord
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    except Exception as error:  # from the network, the disk or the set's own code
        raise UsageError(
            f"{missing}preparing it failed: {_one_line(error)}; {remedy}"
        ) from error


def _reachable(urls: Iterable[str]) -> bool:
    """Returns whether any of the servers answers within seconds, with any status.

    Asks in threads that are left behind, since a name lookup can hang indefinitely, and
    through `requests`, which supports proxies.
    """
    import requests

    by_host = {urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    probed = list(by_host.values())[:_MOST_PROBES] or [
        "https://storage.googleapis.com"  # where TFDS keeps data without a URL
    ]
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            requests.head(url, timeout=_PROBE_SECONDS)
            answers.put(True)
        except Exception:  # whatever a network can do
            answers.put(False)

    for url in probed:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + 2 * _PROBE_SECONDS  # to connect, and to answer
    with contextlib.suppress(queue.Empty):
        return any(
            answers.get(timeout=max(0, deadline - time.monotonic())) for _ in probed
        )
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses TFDS's warnings, which go through absl's logger."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    absl = logging.getLogger("absl")
    absl.addFilter(is_error)
    try:
        yield
    finally:
        absl.removeFilter(is_error)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > 240:  # TFDS puts the cause last, after a page of context
        text = f"... {text[-236:].partition(' ')[2]}"
    return f"{type(error).__name__}: {text}"
