"""What a source tells about a data set before anything is decoded."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

# A grey (mode L) or colour (mode RGB) image of any size, and its label.
Example = tuple[Image.Image, int]


class Source(NamedTuple):
    """A labelled image set that has been found.

    Attributes:
      class_names: one name per label.
      num_train: number of training examples.
      num_test: number of test examples.
      examples: yields all training examples and then all test examples.
      location: where the data come from, for messages.
      identity: JSON-able; everything the examples depend on, so that a changed source
        has a changed identity. None when decoding is too fast to be worth a cache.
      files: where each example comes from, in the same order, relative to the location;
        empty if examples are not files of their own.
    """

    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    examples: Callable[[], Iterator[Example]]
    location: str
    identity: dict[str, Any] | None
    files: tuple[str, ...] = ()
