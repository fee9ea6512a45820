"""Image classification sets of TensorFlow Datasets (TFDS), read without TensorFlow.

TFDS calls a set prepared once it is downloaded and rewritten in TFDS's own files. Files
in ArrayRecord format, which this module prepares, and in TFRecord format, the default
of `tfds.load`, are read; only preparing a set needs TensorFlow.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from duet_jax.data.decoding import decode, is_grey
from duet_jax.data.source import (
    MOST_READ,
    Example,
    Reader,
    Source,
    content_of,
    digest_of,
)
from duet_jax.errors import UsageError, suggestion

logger = logging.getLogger(__name__)

_CHOICE = (
    "choose digits, folder or a TFDS image classification set such as cifar10, "
    "cifar100, mnist or svhn_cropped"
)
_CHUNK = 256  # examples in memory at a time; larger chunks are no faster
_PROBE_SECONDS = 3.0
_MOST_PROBES = 4


def find(name: str, path: str) -> Source:
    """Finds a data set in TFDS's directory, and prepares it there if it must.

    The test split is `test`, or `validation` where there is no `test` or its labels are
    withheld (ImageNet).

    Args:
      name: TFDS's name, with configuration and version if wanted
        (`imagenet_resized/32x32`, `cifar10:3.0.2`).
      path: TFDS's data directory; its own default (`$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`) when empty.

    Raises:
      UsageError: unknown name, no image classification set, data that are neither
        there nor to be had; from `examples` and `reader`, damaged files.
    """
    with _quiet():
        builder = _builder(name, path)
        image_key, label_key = _keys(name, builder)
        if not builder.is_prepared():
            _prepare(name, builder)
        splits = _splits(name, builder, image_key, label_key)
        info = builder.info
        return Source(
            class_names=tuple(map(str, info.features[label_key].names)),
            num_train=info.splits[splits[0]].num_examples,
            num_test=info.splits[splits[1]].num_examples,
            examples=lambda: _examples(name, builder, splits, image_key, label_key),
            location=f"{builder.data_path} ({' and '.join(splits)})",
            identity={
                "tfds": info.full_name,
                "path": str(builder.data_path),
                "format": info.file_format.value,
                "splits": {split: _fingerprint(info.splits[split]) for split in splits},
            },
            content=_content(info, splits),
            digests=_digests(name, info, splits),
            reader=_reader(name, builder, splits, image_key, label_key),
            channels=lambda: _channels(name, builder, splits, image_key),
        )


def is_prepared(name: str, path: str) -> bool:
    """Returns whether a data set is in TFDS's directory.

    Args:
      name: as in `find`.
      path: likewise.

    Raises:
      UsageError: TFDS does not know it.
    """
    with _quiet():
        return _builder(name, path).is_prepared()


def _builder(name: str, path: str) -> Any:
    """Returns TFDS's builder, which knows a data set, prepared or not."""
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
            f"config.dataset.name={name!r} needs a package that is not installed: "
            f"pip install {error.name}"
        ) from error
    except Exception as error:  # TFDS raises whatever its parts raise
        # By name: the import itself may be what failed.
        if type(error).__name__ == "DatasetNotFoundError":
            raise _unknown(name, path) from error
        raise UsageError(
            f"config.dataset.name={name!r} cannot be used: {_one_line(error)}; "
            f"{_CHOICE}."
        ) from error


def _unknown(name: str, path: str) -> UsageError:
    import tensorflow_datasets as tfds

    known = ("digits", "folder", *tfds.list_builders(with_community_datasets=False))
    searched = f" or in config.dataset.path={path!r}" if path else ""
    return UsageError(
        f"config.dataset.name={name!r} is not known to TensorFlow Datasets{searched}; "
        f"{_CHOICE}.{suggestion(name, known)}"
    )


def _keys(name: str, builder: Any) -> tuple[str, str]:
    """Returns the names of the image and of the label in an example."""
    import tensorflow_datasets as tfds

    keys = builder.info.supervised_keys or ("image", "label")
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        features = {}
    image, label = (
        features[key] if isinstance(key, str) and key in features else None
        for key in keys[:2]
    )
    if (
        not isinstance(image, tfds.features.Image)
        or not isinstance(label, tfds.features.ClassLabel)
        or not label.num_classes
    ):
        raise UsageError(
            f"config.dataset.name={name!r} is not an image classification set: its "
            f"features are {', '.join(features) or 'unnamed'}; choose one with an "
            "image and a class label, such as cifar10."
        )
    return keys[0], keys[1]


def _splits(name: str, builder: Any, image_key: str, label_key: str) -> tuple[str, str]:
    """Returns the names of the training split and of the labelled test split."""
    available = builder.info.splits
    for test in ("test", "validation"):
        if "train" in available and test in available:
            examples = _examples(name, builder, [test], image_key, label_key)
            if next(examples, (None, 0))[1] >= 0:  # withheld labels are -1
                return "train", test
    raise UsageError(
        f"config.dataset.name={name!r} needs a split train and a labelled split test "
        f"or validation; it has {', '.join(available)}; choose another data set."
    )


def _fingerprint(split: Any) -> list:
    """Returns what changes when the files of a split are written again."""
    stats = [(file.name, file.stat()) for file in split.filepaths]
    return [split.num_examples, *((name, s.length, s.mtime) for name, s in stats)]


def _content(info: Any, splits: Sequence[str]) -> str:
    """Returns what changes when other examples are prepared, not when they move."""
    files = [
        (file.name, file.stat().length)
        for split in splits
        for file in info.splits[split].filepaths
    ]
    return content_of([info.full_name, files])


def _digests(
    name: str, info: Any, splits: Sequence[str]
) -> Callable[[], tuple[str, str]] | None:
    """Returns what reads the files of the splits, unless they are too large for it."""
    files = {split: info.splits[split].filepaths for split in splits}
    if sum(f.stat().length for split in splits for f in files[split]) > MOST_READ:
        return None

    def read() -> tuple[str, str]:
        with _damage_told(name, info.data_dir):
            first, second = (
                digest_of((f.name, functools.partial(f.open, "rb")) for f in files[s])
                for s in splits
            )
            return first, second

    return read


def _examples(
    name: str, builder: Any, splits: Sequence[str], image_key: str, label_key: str
) -> Iterator[Example]:
    """Yields the examples of the splits, decoded by Pillow."""
    with _damage_told(name, builder.data_path):
        for split in splits:
            found, expected = 0, builder.info.splits[split].num_examples
            for example in _read(builder, split, image_key):
                image, _ = decode(io.BytesIO(example[image_key]))
                yield image, int(example[label_key])
                found += 1
            if found != expected:
                raise ValueError(f"{found} of {expected} {split} examples found")


@contextlib.contextmanager
def _damage_told(name: str, directory: os.PathLike | str) -> Iterator[None]:
    """Turns whatever is raised while examples are read into a UsageError."""
    try:
        yield
    except Exception as error:  # from array_record, protobuf, TFDS or Pillow
        raise UsageError(
            f"config.dataset.name={name!r} cannot be read from {directory}: "
            f"{_one_line(error)}; delete that directory and prepare it again."
        ) from error


def _channels(name: str, builder: Any, splits: Sequence[str], image_key: str) -> int:
    """Returns 3 at the first image with colour, from the headers; 1 if none has any.

    A set that is declared grey is taken at its word.
    """
    if builder.info.features[image_key].shape[-1] == 1:
        return 1
    with _damage_told(name, builder.data_path):
        for split in splits:
            for example in _read(builder, split, image_key):
                if not is_grey(io.BytesIO(example[image_key])):
                    return 3
    return 1


def _read(builder: Any, split: str, image_key: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split; images still encoded, in bytes."""
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        records = _array_records(builder, split, image_key)
        yield from _in_chunks(records, range(len(records)))
    elif file_format == "tfrecord":
        decoders = _decoders(image_key)
        for file in builder.info.splits[split].filepaths:
            with file.open("rb") as stream:
                for record in _tfrecords(stream):
                    yield builder.info.features.deserialize_example_np(
                        record, decoders=decoders
                    )
    else:
        raise ValueError(f"the format {file_format} is not array_record or tfrecord")


def _decoders(image_key: str) -> dict[str, Any]:
    """Returns what keeps TFDS from decoding images.

    Pillow does, so that all sources treat grey, alpha and depth alike.
    """
    import tensorflow_datasets as tfds

    return {image_key: tfds.decode.SkipDecoding()}


def _array_records(builder: Any, split: str, image_key: str) -> Any:
    """Returns the examples of a split, to be read by number."""
    return builder.as_data_source(split, decoders=_decoders(image_key))


def _in_chunks(records: Any, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the examples at some positions; one by one they would take longer."""
    for start in range(0, len(positions), _CHUNK):
        yield from records.__getitems__(positions[start : start + _CHUNK])


def _reader(
    name: str, builder: Any, splits: tuple[str, str], image_key: str, label_key: str
) -> Reader | None:
    """Returns random access to the examples, which only ArrayRecord has."""
    if builder.info.file_format.value != "array_record":
        return None
    num_train = builder.info.splits[splits[0]].num_examples
    return _Records(
        name, str(builder.data_path), splits, num_train, image_key, label_key
    )


class _Records(Reader):
    """Reads a directory of ArrayRecord files, which each process opens itself.

    The directory alone says what is in it, so that no builder has to be pickled.
    """

    def __init__(
        self,
        name: str,
        directory: str,
        splits: tuple[str, str],
        num_train: int,
        image_key: str,
        label_key: str,
    ):
        self._name = name
        self._directory = directory
        self._splits = splits
        self._num_train = num_train
        self._image_key = image_key
        self._label_key = label_key
        self._opened: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __getitem__(self, index: int) -> Example:
        return next(self.read([index]))

    def read(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields several examples; their records are read together."""
        with _damage_told(self._name, self._directory):
            for is_test, group in itertools.groupby(
                map(int, rows), lambda row: row >= self._num_train
            ):
                positions = [row - is_test * self._num_train for row in group]
                records = self._open(self._splits[is_test])
                for example in _in_chunks(records, positions):
                    image, _ = decode(io.BytesIO(example[self._image_key]))
                    yield image, int(example[self._label_key])

    def _open(self, split: str) -> Any:
        if split not in self._opened:
            import tensorflow_datasets as tfds

            with _quiet():
                builder = tfds.builder_from_directory(self._directory)
                records = _array_records(builder, split, self._image_key)
            self._opened[split] = records
        return self._opened[split]


def _tfrecords(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Each is its length (8 bytes, little-endian), a checksum (4), the payload and another
    checksum (4). The checksums are not verified: the number of examples is, and PNG and
    JPEG data find most damage by themselves.
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
    # TFDS itself would try again for minutes.
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

    The questions are asked in threads that are left behind, since a name look-up can
    hang for as long as it likes; through `requests`, which knows of proxies.
    """
    import requests

    by_host = {urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    questions = list(by_host.values())[:_MOST_PROBES] or [
        "https://storage.googleapis.com"  # where TFDS keeps what has no address
    ]
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask(url: str) -> None:
        answered = False
        with contextlib.suppress(Exception):
            requests.head(url, timeout=_PROBE_SECONDS)
            answered = True
        answers.put(answered)

    for url in questions:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + 2 * _PROBE_SECONDS  # to connect, and to be answered
    for _ in questions:
        try:
            if answers.get(timeout=max(0, deadline - time.monotonic())):
                return True
        except queue.Empty:
            return False
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's warnings back, which it gives through absl's logger."""

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
    if len(text) > 240:  # TFDS puts the cause last, behind a page on what it was doing
        text = f"... {text[-236:].partition(' ')[2]}"
    return f"{type(error).__name__}: {text}"
