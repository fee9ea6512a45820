r"""Draws the grids of docs/results.md: one picture of several runs, on one scale.

    python benchmarks/readme_figures.py equivariance_rot_readout readout.png \
        CIFAR-10=runs/duet CIFAR-10=runs/simclr CIFAR-10=runs/essl

Nothing is trained or measured: the runs have stored the result, --mode=equivariance.
A panel is titled by its method and the name of the data that is given here. An SVG file
is written beside the PNG.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from duet_jax import figures
from duet_jax.errors import UsageError
from duet_jax.evaluation import store
from duet_jax.evaluation.compare import drawing
from duet_jax.figures.dots import NAMES
from duet_jax.figures.style import save


def panel(picture: str, run: str) -> tuple[str, figures.Drawing, str]:
    """Returns the title of a run's panel, its drawing, and its small print.

    Args:
      picture: name of the picture in `eval/`, such as equivariance_rot_readout.
      run: <data>=<work directory>.

    Raises:
      UsageError: the run has not stored the picture as data.
    """
    data, _, directory = run.rpartition("=")
    stem = picture.partition("_")[0]
    found = store.read(pathlib.Path(directory) / "eval", stem)
    try:
        if found is None:
            raise ValueError("there is no such result")
        drawn = drawing(found, stem, f"{picture}.png")
    except ValueError as error:
        raise UsageError(
            f"{run}: {picture} cannot be drawn ({error}); measure it with "
            f"--workdir={directory} --mode={stem}."
        ) from error
    method = NAMES.get(found["method"], found["method"])
    return f"{method}, {data}", drawn, store.about_run(found)


def main() -> int:
    """Reads the command line and draws; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="such as equivariance_rot_readout")
    parser.add_argument("out", type=pathlib.Path, help="PNG file to write")
    parser.add_argument("runs", nargs="+", metavar="DATA=WORKDIR")
    arguments = parser.parse_args()
    try:
        panels = [panel(arguments.picture, run) for run in arguments.runs]
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    drawings = {title: drawn for title, drawn, _ in panels}
    about = dict.fromkeys(text for _, _, text in panels)
    figure = figures.draw(drawings, title=panels[0][1].title)
    save(arguments.out, figure, "; ".join(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
