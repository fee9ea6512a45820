"""Image files, and data sets that TFDS has prepared."""

import io
import pathlib
import struct
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: pathlib.Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Not registered: TFDS knows it by its files alone, like a set somebody brought along.
with tfds.core.registered.skip_registration():

    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Every split holds the images `split_seed + index`, labelled index % 2."""

        VERSION = tfds.core.Version("1.0.0")
        SPLITS: ClassVar = {}
        LABELLED = ("train", "test", "validation")
        FEATURES: ClassVar = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["round", "square"]),
        }

        def _info(self):
            features = tfds.features.FeaturesDict(self.FEATURES)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in self.SPLITS}

        def _generate_examples(self, split):
            for i in range(self.SPLITS[split]):
                # A file object: arrays would be encoded by TensorFlow.
                label = i % 2 if split in self.LABELLED else -1
                example = {
                    "image": io.BytesIO(png(shape_image(split, i))),
                    "label": label,
                }
                yield i, {key: example[key] for key in self.FEATURES}


def shape_image(split: str, index: int) -> np.ndarray:
    return noise((8, 10, 3), 1000 * len(split) + index)


def prepare(directory: pathlib.Path, **attributes) -> pathlib.Path:
    """Prepares a data set `shapes` of which only the files are known to TFDS."""
    with tfds.core.registered.skip_registration():
        builder_class = type("Shapes", (Shapes,), attributes)
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return directory


def as_tfrecord(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Rewrites a prepared directory in TFRecord format; checksums are left at 0."""
    builder = tfds.builder("shapes", data_dir=source)
    (target / "shapes/1.0.0").mkdir(parents=True)
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        text = (source / "shapes/1.0.0" / name).read_text()
        (target / "shapes/1.0.0" / name).write_text(
            text.replace('"array_record"', '"tfrecord"')
        )
    for split in builder.info.splits:
        raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = (bytes(raw[i]) for i in range(len(raw)))
        (target / f"shapes/1.0.0/shapes-{split}.tfrecord-00000-of-00001").write_bytes(
            b"".join(struct.pack("<Q4x", len(r)) + r + b"\0" * 4 for r in records)
        )
    return target
