"""The pytrees that pass between modules."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array

# The axis of the mesh of devices, along which a batch is split.
BATCH_AXIS = "data"


class Split(NamedTuple):
    """One split of a labelled image set, whole and in memory.

    Attributes:
      images: uint8, [examples, side, side, channels]; channels is 1 or 3.
      labels: int32, [examples], from 0 to the number of classes - 1.
    """

    images: np.ndarray | Array
    labels: np.ndarray | Array


# Which images a set holds, wherever they lie: `content` and `digests` of its facts.
Identity = tuple[str, ...]


def same_images(one: Identity, other: Identity) -> bool:
    """Returns whether two sets hold the same images, as far as is known of both."""
    known = min(len(one), len(other))
    return one[:known] == other[:known]


class DatasetFacts(NamedTuple):
    """What is known of an image set without its images.

    Attributes:
      name: how messages call it.
      side: of the stored square images in pixels.
      channels: 1 for grey images, 3 for RGB.
      class_names: one name per label.
      num_train: training images.
      num_test: test images.
      content: changes with the names and sizes of their files; "" where they are
        always the same.
      digests: of the training and of the test images: change with their files' names
        and bytes. Empty where they are always the same, or too many to be read for it.
    """

    name: str
    side: int
    channels: int
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    content: str = ""
    digests: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def identity(self) -> Identity:
        """Which images they are."""
        return self.content, *self.digests


class Dataset(NamedTuple):
    """A labelled image set, decoded and resized.

    Attributes:
      name: how messages call it.
      train: the split the networks are trained on.
      test: the split they are evaluated on.
      class_names: one name per label.
      files: where the images of both splits came from, training images first, relative
        to the folder of the set; empty where they are not files of their own.
      content: as in `DatasetFacts`.
      digests: likewise.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    content: str = ""
    digests: tuple[str, ...] = ()

    streamed = False

    @property
    def facts(self) -> DatasetFacts:
        """What remains to be known without the images."""
        return DatasetFacts(
            self.name,
            self.side,
            self.channels,
            self.class_names,
            len(self.train.labels),
            len(self.test.labels),
            self.content,
            self.digests,
        )

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[1]

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train.images.shape[3]


class View(NamedTuple):
    """One augmented view of a batch.

    Attributes:
      images: [batch, side, side, channels], normalised to [-0.5, 0.5].
      structure: for every code of the stack that has one, the structure value of
        the parameter that was actually drawn, [batch], in [0, 1].
    """

    images: Array
    structure: Mapping[str, Array]


class TrainState(NamedTuple):
    """Everything that training changes; arrays only.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: nested dict of float32 parameters.
      batch_stats: nested dict of float32 running statistics.
      opt_state: the optimiser's state.
      sound: bool scalar; False after an update of this run was not finite under
        on_nonfinite=stop: nothing changes the state any more.
    """

    step: Array
    params: dict
    batch_stats: dict
    opt_state: tuple
    sound: Array
