"""Records the accuracy by kNN over the minutes of a training, and draws it.

    python benchmarks/race.py --out=runs/race --config.seed=1

Trains the recipe `recipes/cifar10_race`, or another --config whose `knn.every` is not
0, with any fields after it, in a process of its own. In --out are then the run, in
run/, race.json and race.png: the accuracy over all minutes since the command began
(start, compilation and evaluations included) and over those of the updates alone,
beside the marks of others, which are quoted. At the end the last checkpoint is also
measured with the default of --mode=knn.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from matplotlib.figure import Figure

from duet_jax import cli
from duet_jax.config import loading
from duet_jax.errors import UsageError
from duet_jax.figures import style
from duet_jax.loggers import read_rows

ROOT = pathlib.Path(__file__).parent.parent

GOAL = 0.9
# SimCLR, ResNet-18, float32, one A100; kNN of 10, cosine, unweighted; quoted from a
# public reproduction on one GPU, after 100, 500 and 1000 epochs: minutes, accuracy.
QUOTED = ((20, 0.832), (99, 0.903), (198, 0.914))

_POLL = 0.2  # seconds
_KNN = ("k", "weights", "temperature")


def train(directory: pathlib.Path, arguments: Sequence[str]) -> dict[int, float]:
    """Trains in `directory`; returns the seconds after which each test row was there.

    Args:
      directory: the work directory.
      arguments: of main.py.

    Returns:
      Step of the row -> seconds since the program was started.

    Raises:
      SystemExit: the program has ended with an error, which it has said.
    """
    command = [sys.executable, "main.py", *arguments, f"--workdir={directory}"]
    begun, seen = time.monotonic(), {}

    def look() -> None:
        if (directory / "metrics.jsonl").exists():
            for row in read_rows(directory / "metrics.jsonl"):
                if row["split"] == "test":
                    seen.setdefault(row["step"], time.monotonic() - begun)

    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while process.poll() is None:
            look()
            time.sleep(_POLL)
    finally:
        process.terminate()
        process.wait()
    look()
    if process.returncode:
        raise SystemExit(process.returncode)
    return seen


def curve(
    rows: Sequence[Mapping], batch_size: int, seen: Mapping[int, float]
) -> list[dict[str, float]]:
    """Returns the evaluations by kNN.

    Args:
      rows: of metrics.jsonl.
      batch_size: images in an update.
      seen: step -> seconds since the beginning at which its test row was there.

    Returns:
      Of each its epoch, `knn_top1`, `minutes` since the beginning, and
      `training_minutes`, those of the updates before it alone.
    """
    found, step, seconds = [], 0, 0.0
    for row in rows:
        if row["split"] == "train":
            images = (row["step"] - step) * batch_size
            seconds, step = seconds + images / row["images_per_second"], row["step"]
        elif "knn_top1" in row:
            found.append(
                {
                    "epoch": row["epoch"],
                    "knn_top1": row["knn_top1"],
                    "minutes": seen[row["step"]] / 60,
                    "training_minutes": seconds / 60,
                }
            )
    return found


def default_knn(directory: pathlib.Path) -> dict:
    """Returns the accuracy of the last checkpoint with the default of --mode=knn."""
    default = loading.schema().knn
    fields = [f"--config.knn.{name}={default[name]}" for name in _KNN]
    command = [sys.executable, "main.py", "--mode=knn", f"--workdir={directory}"]
    subprocess.run([*command, *fields], cwd=ROOT, check=True)
    found = json.loads((directory / "eval" / "knn.json").read_text())
    return {
        "top1": found["results"]["representations"]["full"]["top1"],
        "settings": found["settings"],
        "provenance": found["provenance"],
        "device": found["device"],
    }


@style.styled
def draw(race: Mapping) -> Figure:
    """Returns the curve of a race.

    Args:
      race: the content of race.json.
    """
    figure = style.titled(7.2, 4.2, "kNN accuracy over the minutes of training")
    axes = figure.subplots()
    style.grid(axes)
    handles, names = [], []
    for key, color, name in (
        ("minutes", style.BLUE, "ours, all in all"),
        ("training_minutes", style.LIGHT, "ours, updates alone"),
    ):
        x = [row[key] for row in race["curve"]]
        y = [100 * row["knn_top1"] for row in race["curve"]]
        handles += axes.plot(x, y, color=color, marker="o", ms=3, lw=1.5)
        names.append(name)
    for minutes, accuracy in QUOTED:
        (quoted,) = axes.plot(
            minutes, 100 * accuracy, "D", color=style.ORANGE, mfc="none", ms=7
        )
        text = f"{100 * accuracy:.1f}"
        axes.annotate(
            text,
            (minutes, 100 * accuracy),
            (0, -14),
            textcoords="offset points",
            ha="center",
            color=style.ORANGE,
        )
    handles.append(quoted)
    names.append("quoted: ResNet-18, one A100, float32")
    handles.append(axes.axhline(100 * race["goal"], color=style.MUTED, lw=1, ls="--"))
    names.append(f"the goal, {100 * race['goal']:g} %")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("minutes, on " + race["default_knn"]["device"])
    axes.set_ylabel("top-1 of the test images, k = {}, %".format(race["knn"]["k"]))
    style.legend(axes, handles, names, loc="lower right")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and writes race.json and race.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a directory")
    parser.add_argument("--config", default="recipes/cifar10_race", help="as main.py")
    options, fields = parser.parse_known_args(argv)
    out = options.out.expanduser().absolute()
    directory = out / "run"
    if directory.exists():
        parser.error(f"--out={options.out} holds a race; name another directory")
    arguments = [f"--config={options.config}", *fields]
    try:
        asked = cli.parse(["main.py", *arguments]).config
    except UsageError as error:
        parser.error(str(error))
    if not asked.knn.every:
        parser.error("config.knn.every=0 gives no curve; set --config.knn.every=1, say")
    seen = train(directory, arguments)
    config = json.loads((directory / "config.json").read_text())
    rows = curve(read_rows(directory / "metrics.jsonl"), config["batch_size"], seen)
    if not rows:
        raise SystemExit(f"config.knn.every={asked.knn.every} is more than the epochs")
    race = {
        "command": " ".join(["python benchmarks/race.py", *arguments]),
        "goal": GOAL,
        "reached": next((row for row in rows if row["knn_top1"] >= GOAL), None),
        "knn": config["knn"],
        "curve": rows,
        "default_knn": default_knn(directory),
        "quoted": QUOTED,
    }
    (out / "race.json").write_text(json.dumps(race, indent=1) + "\n")
    small = style.small_print(
        config["method"],
        f"{config['dataset']['name']} · {config['encoder']['name']}",
        read_rows(directory / "metrics.jsonl")[-1]["step"],
        config["seed"],
    )
    style.save(out / "race.png", draw(race), small)
    last, reached = rows[-1], race["reached"]
    end = f"{last['knn_top1']:.1%} after epoch {last['epoch']:g}"
    print(f"{end}, {race['default_knn']['top1']:.1%} with the default of --mode=knn")
    print(f"{last['minutes']:.1f} min, {last['training_minutes']:.1f} of the updates")
    if reached:
        print(
            f"{GOAL:.0%} after epoch {reached['epoch']:g}, {reached['minutes']:.1f} min"
        )
    else:
        print(f"{GOAL:.0%} was not reached")


if __name__ == "__main__":
    main()
