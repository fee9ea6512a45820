"""Where a run and its results come from, for the foot of a page."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def lines(
    directory: pathlib.Path, results: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Returns one entry for the training and one for each result, with its name.

    What was not recorded is left out.

    Args:
      directory: of the run; the last line of its provenance.jsonl counts.
      results: stored results by name.
    """
    found = {"training": _of_training(directory)}
    for name, content in results.items():
        # Before there was a record of its own, a result had device and versions.
        plain = {key: content.get(key) for key in ("device", "versions")}
        found[name] = content.get("provenance") or plain
    texts = {name: _text(record) for name, record in found.items()}
    return [(name, text) for name, text in texts.items() if text]


def _of_training(directory: pathlib.Path) -> Any:
    try:
        text = (directory / "provenance.jsonl").read_text(encoding="utf-8")
        return json.loads(text.splitlines()[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return {}


def _text(record: Any) -> str:
    if not isinstance(record, Mapping):
        return ""
    parts = []
    if record.get("commit"):
        changed = "" if record.get("clean", True) else " with changes"
        parts.append(f"commit {record['commit']}{changed}")
    parts += [str(record[key]) for key in ("date", "device") if record.get(key)]
    versions = record.get("versions")
    if versions and isinstance(versions, Mapping):
        parts.append(", ".join(f"{name} {each}" for name, each in versions.items()))
    if record.get("command"):
        command = record["command"]
        parts.append(" ".join(command) if isinstance(command, list) else str(command))
    return " · ".join(parts)
