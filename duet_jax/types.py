"""Types that are shared by the packages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jax import Array
else:  # jax takes longer to import than a command line to be checked
    Array = Any

# The axis of the device mesh along which a batch is split.
BATCH_AXIS = "data"


class Split(NamedTuple):
    """One split of an image set, in memory.

    Attributes:
      images: uint8, [examples, side, side, channels]; channels is 1 or 3.
      labels: int32, [examples], from 0 to the number of classes - 1; all -1 without
        labels.
    """

    images: np.ndarray | Array
    labels: np.ndarray | Array


# Identifies the images of a data set, wherever they lie: its `content` and `digests`.
Identity = tuple[str, ...]


def same_images(one: Identity, other: Identity) -> bool:
    """Returns True if two sets hold the same images, as far as both are known."""
    known = min(len(one), len(other))
    return one[:known] == other[:known]


class DatasetFacts(NamedTuple):
    """Describes an image set without holding its images.

    Attributes:
      name: its name in messages.
      side: of the stored square images, in pixels.
      channels: 1 for grayscale images, 3 for RGB.
      class_names: one name per label; empty without labels.
      num_train: number of training images.
      num_test: number of test images.
      content: a hash of the names and sizes of its files; "" for a set that never
        changes.
      digests: hashes of the names and bytes of the training and of the test files, or
        one of all files; empty for a set that never changes, or that is too large to be
        read for this.
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
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    def identity(self) -> Identity:
        """Identifies the images; see `same_images`."""
        return self.content, *self.digests


class Dataset(NamedTuple):
    """An image set, decoded and resized.

    Attributes:
      name: its name in messages.
      train: the split the networks are trained on.
      test: the split they are evaluated on.
      class_names: one name per label; empty without labels.
      files: paths of the images, those of the training split first, relative to the
        folder of the set; empty if the images are not single files.
      content: as in `DatasetFacts`.
      digests: as in `DatasetFacts`.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    content: str = ""
    digests: tuple[str, ...] = ()

    @property
    def streamed(self) -> bool:
        """False: the images are in memory."""
        return False

    @property
    def facts(self) -> DatasetFacts:
        """The description without the images."""
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
        """1 for grayscale images, 3 for RGB."""
        return self.train.images.shape[3]


class View(NamedTuple):
    """One augmented view of a batch.

    Attributes:
      images: [batch, side, side, channels], normalized to [-0.5, 0.5].
      structure: for every code of the stack that has one, the structure value of the
        parameter that was drawn, [batch], in [0, 1].
      parameters: for the same codes, all that an image shows of what was drawn,
        [batch, k], in [0, 1]: of a crop, say, also its place.
    """

    images: Array
    structure: Mapping[str, Array]
    parameters: Mapping[str, Array] = {}


class TrainState(NamedTuple):
    """The state that training updates; arrays only.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: nested dict of float32 parameters.
      batch_stats: nested dict of float32 running statistics.
      opt_state: the optimizer's state.
      sound: bool scalar; False once an update was not finite under on_nonfinite=stop.
        The state no longer changes then.
    """

    step: Array
    params: dict
    batch_stats: dict
    opt_state: tuple
    sound: Array
