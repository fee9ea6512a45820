"""Names a run's directory by what the run is, so that its command finds it again."""

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from duet_jax.config import checks

# A name has 255 bytes at most; short enough here to be read.
_LONGEST = 80
_DIGITS = 8  # of the hash that stands for what is left out
_UNSAFE = re.compile(r"[^A-Za-z0-9_.@+-]|^[.-]")


def run_name(
    stem: str, before: Mapping[str, Any], after: Mapping[str, Any], **others: str
) -> str:
    """Returns `<stem>-<field><value>-...` for the fields that alter a run and differ.

    A field goes by its last part where that is unambiguous: learning_rate. Top-level
    fields come first. A name that is too long, or not safe as a file's name, is cut,
    gets _ in the place of other characters, and ends in a hash of all that it says.

    Args:
      stem: of the name.
      before: a configuration as `checks.fields` takes it, with every field.
      after: likewise, of the run; without the fields that it does not read.
      **others: what is not a field and alters the run as well, by name.

    Returns:
      Up to 80 of the characters A-Z a-z 0-9 _ . @ + -.
    """
    changed = checks.altered(before, after)
    short = _short_names(name for name, _ in checks.fields(before))
    top_first = sorted(changed, key=lambda name: (name.count("."), name))
    parts = [stem, *(_part(short[name], changed[name]) for name in top_first)]
    parts += [_part(name, value) for name, value in others.items()]
    text = "-".join(parts)
    safe = _UNSAFE.sub("_", text)
    if safe == text and len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    return f"{safe[: _LONGEST - _DIGITS - 1]}-{digest}"


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the shortest unambiguous name of each field that alters a run."""
    altering = [name for name in names if name not in checks.CHANGEABLE]
    counts = collections.Counter(name.rpartition(".")[2] for name in altering)
    return {
        name: leaf if counts[leaf] == 1 else name.replace(".", "_")
        for name in altering
        for leaf in [name.rpartition(".")[2]]
    }


def _part(name: str, value: Any) -> str:
    """Returns seed1, method_simclr, stack_sca_rot or center_crop_true."""
    if isinstance(value, list | tuple):
        text = "_".join(map(str, value))
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value).replace(",", "_")  # several codes
    return f"{name}{text}" if text[:1].isdecimal() else f"{name}_{text}"
