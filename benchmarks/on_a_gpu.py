"""The first half hour on a card: what matters most is measured first, in one command.

    python benchmarks/on_a_gpu.py --out=runs/card --minutes=25 --data=<CIFAR-10>

It goes through the rows of `rows`, in the order of their worth: does the card compute
what a CPU does, how fast are products and steps, how fast is PyTorch, and how long does
SimCLR take to 90 % by kNN. Each row is a process of its own. After each, state.json and
benchmarks.md are replaced in --out; the second is ready for docs/benchmarks.md.

The same command goes on: what is measured is kept, and what failed is tried again after
everything else. A row does not begin if the minutes left are fewer than it is expected
to take, which is what the last one like it took. --rows='step-*,race' takes some rows
only. --data is a directory of class folders, or <dataset.name>[:<dataset.path>].
"""

import argparse
import collections
import contextlib
import fcntl
import fnmatch
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.card_rows import KINDS, Row, has_reached, rows
from duet_jax.errors import UsageError
from duet_jax.runtime import files

ROOT = pathlib.Path(__file__).parent.parent

_LONGEST = 480.0  # seconds of a row other than the race: what hangs does not take all
_PATIENCE = 60.0  # seconds in which a process that is asked to end may save its run
_POLL = 0.1  # seconds

# What is compared with the state of --out, and what else is known of the machine.
_ABOUT = """
import contextlib, importlib.metadata as metadata, json, pathlib, sys
import jax
from duet_jax.runtime import provenance
found = provenance.describe()
for name in ("torch", "kornia"):
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["versions"][name] = metadata.version(name)
driver = pathlib.Path("/proc/driver/nvidia/version")
found |= {
    "platform": jax.default_backend(),
    "runtime": " ".join(jax.devices()[0].client.platform_version.split()),
    "driver": driver.read_text().splitlines()[0] if driver.exists() else "",
}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
"""

# --- Rows, one after another ----------------------------------------------------------


class State:
    """What has been measured so far, in a directory.

    Attributes:
      about: the card and the versions.
      records: by name of the row: status (done, failed, stopped, skipped), said (why),
        seconds, result and commit.
    """

    def __init__(self, place: pathlib.Path, about: dict, rows: Sequence[Row]):
        """Reads the state in `place`, if there is one.

        Raises:
          UsageError: it is of another card, other versions or sizes.
        """
        self.about, self.records, self._rows = about, {}, rows
        self._place = place
        path = place / "state.json"
        if path.exists():
            before = json.loads(path.read_text())
            _check_same(before["about"], about, place)
            self.records = before["records"]

    def keep(self, name: str, record: dict) -> None:
        """Adds a record, and replaces both files."""
        self.records[name] = record
        text = json.dumps({"about": self.about, "records": self.records}, indent=1)
        page = fragment(self.about, self._rows, self.records)
        for file, content in (("state.json", text), ("benchmarks.md", page)):
            with files.replacing(self._place / file) as partial:
                partial.write_text(content + "\n")

    def expected(self, row: Row) -> float:
        """Returns the seconds that a row may take: as the last one of its kind."""
        kinds = {each.name: each.kind for each in self._rows}
        known = [
            record["seconds"]
            for name, record in self.records.items()
            if record["status"] == "done" and kinds.get(name) == row.kind
        ]
        return known[-1] if known else row.guess


def _check_same(before: dict, now: dict, place: pathlib.Path) -> None:
    old, new = ({**x["versions"], **x} for x in (before, now))
    names = (
        "device",
        "driver",
        "runtime",
        "tiny",
        *{**before["versions"], **now["versions"]},
    )
    for name in names:
        if old.get(name) != new.get(name):
            raise UsageError(
                f"--out={place} holds what was measured with {name} {old.get(name)}, "
                f"and here it is {new.get(name)}; use another --out."
            )


def fragment(about: dict, rows: Sequence[Row], records: Mapping[str, dict]) -> str:
    """Returns everything measured so far as tables in Markdown."""
    commits = {each["commit"] for each in records.values() if each.get("commit")}
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    card = {
        "card": about["device"],
        "driver": about["driver"],
        "runtime": about["runtime"],
        "versions": versions,
        "commit": ", ".join(sorted(commits)),
        "date": about["date"][:10],
    }
    parts = [_table(("", ""), [(k, v) for k, v in card.items() if v])]
    by_kind = collections.defaultdict(list)
    for row in rows:
        by_kind[row.kind] += _lines(row, records.get(row.name))
    for name, kind in KINDS.items():
        parts.append(
            f"**{kind.title}**\n\n{_table(kind.head.split(' | '), by_kind[name])}"
        )
    return "\n\n".join(parts)


def _lines(row: Row, record: dict | None) -> list[tuple[str, ...]]:
    """Returns the lines of a row in its table."""
    cells = (row.name,) if row.kind == "tests" else row.cells
    if record is None:
        return [(*(cells or (row.name,)), "not measured")]
    if record.get("result") is None:
        return [(*(cells or (row.name,)), record["said"])]
    lines = [(*cells, *each) for each in KINDS[row.kind].lines(record["result"])]
    if row.kind == "race":
        return [(*each, f"{record['seconds']:.0f}") for each in lines]
    return lines


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    filled = [(*line, *[""] * (len(head) - len(line))) for line in lines]
    whole = [head, ["---"] * len(head), *filled]
    cells = ([cell.replace("|", "/") for cell in line] for line in whole)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


@contextlib.contextmanager
def claimed(place: pathlib.Path) -> Iterator[None]:
    """Keeps others out of `place`, also while a row of a killed start still runs.

    Raises:
      UsageError: it is in use.
    """
    (place / "rows").mkdir(parents=True, exist_ok=True)
    with (place / "rows" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"--out={place} is in use, by another start or by a row that is left "
                "of one that was killed; wait for its end, or end it."
            ) from error
        os.set_inheritable(lock.fileno(), True)  # a row holds it as well
        yield


def start(
    command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts Python with `command`, out of reach of a Ctrl-C that is meant for us."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment, **os.environ},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,
        )


def wait(
    process: subprocess.Popen, seconds: float, enough: Callable[[], bool]
) -> str | None:
    """Waits for the end of a process; returns why it was ended, None if by itself."""
    reason, deadline = None, time.monotonic() + seconds
    try:
        while reason is None and process.poll() is None:
            time.sleep(_POLL)
            if enough():
                reason = "enough"
            elif time.monotonic() > deadline:
                reason = "the time is up"
    except KeyboardInterrupt:
        reason = "interrupted"
    if reason:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
    return reason


def measure(
    row: Row, place: pathlib.Path, seconds: float, about: dict, before: dict | None
) -> dict:
    """Measures a row in a process of its own; returns its record.

    Args:
      row: to measure.
      place: --out.
      seconds: after which it is stopped.
      about: the machine.
      before: its record of an earlier start. A race goes on from there.
    """
    kind, goes_on = KINDS[row.kind], row.kind == "race"
    out = place / row.name if goes_on else place / "rows" / f"{row.name}.json"
    log = place / "rows" / f"{row.name}.log"
    if not goes_on:
        out.unlink(missing_ok=True)
    environment = {} if about["platform"] == "cpu" else kind.environment
    command = [each.replace("{out}", str(out)) for each in row.command]
    clock = time.monotonic()
    process = start(command, log, environment)
    enough = (lambda: has_reached(out)) if goes_on else (lambda: False)
    reason = wait(process, seconds, enough)
    spent = time.monotonic() - clock
    if goes_on and before and before["status"] == "stopped":
        spent += before["seconds"]
    text, status, result = log.read_text(errors="replace"), "done", None
    try:
        result, fault = kind.read(out, text)
    except (OSError, ValueError, LookupError):
        fault = last_error(text, process.returncode)
    if reason in ("the time is up", "interrupted"):
        status, fault = "stopped", f"stopped after {spent:.0f} s: {reason}"
    elif fault or (goes_on and reason is None and process.returncode):
        status = "failed"
        fault = f"failed: {fault or last_error(text, process.returncode)}"
    record = {"status": status, "said": fault, "seconds": spent, "result": result}
    changed = "" if about["clean"] else "+"
    commit = about["commit"][:7] + changed if about["commit"] else ""
    return {**record, "commit": commit}


def last_error(text: str, status: int) -> str:
    """Returns the last line of an output that tells of an error, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [x for x in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", x)]
    said = (telling or lines or ["nothing was said"])[-1].removeprefix("error: ")
    by_signal = f", ended by {signal.Signals(-status).name}" if status < 0 else ""
    return said[:240] + by_signal


def missing(row: Row) -> str:
    """Returns why a row cannot be measured here, or ""."""
    for name in row.needs:
        if importlib.util.find_spec(name) is None:
            return f"skipped: {name} is not installed"
    return row.skip and f"skipped: {row.skip}"


def look(place: pathlib.Path, tiny: bool) -> dict:
    """Returns what is known of the machine.

    Raises:
      UsageError: JAX does not start, or there is no card.
    """
    out, log = place / "rows" / "about.json", place / "rows" / "about.log"
    out.unlink(missing_ok=True)
    process = start(("-c", _ABOUT, str(out)), log, {})
    if wait(process, _LONGEST, lambda: False) == "interrupted":
        raise KeyboardInterrupt
    if not out.exists():
        said = last_error(log.read_text(errors="replace"), process.returncode)
        raise UsageError(f"JAX does not start here: {said}; see {log}.")
    about = json.loads(out.read_text()) | {"tiny": tiny}
    if about["platform"] == "cpu" and not tiny:
        raise UsageError(
            f"JAX finds no GPU here, only {about['device']}; install jax[cuda12] on a "
            "machine with an NVIDIA driver, or try this script with --tiny."
        )
    return about


def in_order(rows: Sequence[Row], records: Mapping[str, dict]) -> Iterator[Row]:
    """Yields the rows that are left; those that failed before come last."""
    left = [x for x in rows if records.get(x.name, {}).get("status") != "done"]
    yield from sorted(
        left, key=lambda x: records.get(x.name, {}).get("status") == "failed"
    )


def go_through(options: argparse.Namespace) -> int:
    """Measures what is left, as far as the minutes go; returns the exit status."""
    deadline = time.monotonic() + 60 * options.minutes
    everything = rows(options.tiny, options.data)
    patterns = options.rows.split(",")
    chosen = [
        x for x in everything if any(fnmatch.fnmatch(x.name, p) for p in patterns)
    ]
    if not chosen:
        names = ", ".join(each.name for each in everything)
        raise UsageError(f"--rows={options.rows} is none of {names}.")
    place = files.local(options.out, "--out").absolute()
    with claimed(place):
        state = State(place, look(place, options.tiny), everything)
        for row in in_order(chosen, state.records):
            try_one(row, place, state, deadline - time.monotonic())
    status = [state.records.get(each.name, {}).get("status") for each in everything]
    print(f"{status.count('done')} of {len(status)} rows are in {place}/benchmarks.md")
    return 1 if "failed" in status else 0


def try_one(row: Row, place: pathlib.Path, state: State, left: float) -> None:
    """Measures a row if that can be done in the `left` seconds, and keeps its record.

    Raises:
      KeyboardInterrupt: it was interrupted.
    """
    needed = state.expected(row)
    if said := missing(row):
        record = {"status": "skipped", "said": said, "seconds": 0.0}
    elif needed > left:
        _say(
            row.name, f"not begun: may take {needed:.0f} s, {max(left, 0):.0f} are left"
        )
        return
    else:
        print(f"{row.name} ...", flush=True)
        most = left if row.kind == "race" else min(left, _LONGEST)
        before = state.records.get(row.name)
        record = measure(row, place, most, state.about, before)
    state.keep(row.name, record)
    _say(row.name, f"{record['seconds']:4.0f} s  {_in_short(row, record)}")
    if record["said"].endswith("interrupted"):
        raise KeyboardInterrupt


def _say(name: str, text: str) -> None:
    print(f"{name:40} {text}", flush=True)


def _in_short(row: Row, record: dict) -> str:
    if record["said"]:
        return record["said"]
    lines = KINDS[row.kind].lines(record["result"])
    if row.kind == "checks":
        return f"{len(lines)} within their limits"
    return "; ".join(", ".join(filter(None, line)) for line in lines)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of it")
    parser.add_argument("--out", default="runs/on_a_gpu", help="directory to write in")
    parser.add_argument("--data", help="CIFAR-10 for the race, which needs it")
    parser.add_argument("--rows", default="*", help="patterns of names, with commas")
    parser.add_argument("--tiny", action="store_true", help="try everything, on a CPU")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        parser.error(f"--minutes={options.minutes} must be above 0")
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the script and returns the exit status; 1 if a row has failed."""
    options = arguments(argv[1:])
    try:
        return go_through(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped; what is measured is in {options.out}, and the same command goes "
            "on from there",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv))
