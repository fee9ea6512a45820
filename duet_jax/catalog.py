"""What there is to choose from, with a line for each: what `--list` prints."""

import sys
from collections.abc import Mapping

from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.config import loading
from duet_jax.data import SOURCES
from duet_jax.methods import METHODS
from duet_jax.models.encoders import ENCODERS

_OTHER = "any other"


def overview(modes: Mapping[str, str]) -> str:
    """Returns the names that the program takes, under the flag that takes them.

    Args:
      modes: name of each mode -> what it does.
    """
    sections = {
        "--mode": modes,
        "--config.method": {name: _first_line(each) for name, each in METHODS.items()},
        "--config.augmentation.stack": {
            code: each.summary for code, each in AUGMENTATIONS.items()
        },
        "--config.encoder.name": {
            name: spec.summary for name, spec in ENCODERS.items()
        },
        "--config.dataset.name": {
            **{name: _source(find) for name, find in SOURCES.items()},
            _OTHER: "An image set of TensorFlow Datasets, such as cifar10.",
        },
    }
    parts = [f"--config\n{_indented(loading.overview())}"]
    for flag, entries in sections.items():
        width = max(map(len, entries))
        lines = [f"{name:<{width}}  {about}" for name, about in entries.items()]
        parts.append(f"{flag}\n{_indented(chr(10).join(lines))}")
    return "\n\n".join(parts)


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


def _source(find: object) -> str:
    return _first_line(sys.modules[find.__module__])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
