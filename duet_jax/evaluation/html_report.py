"""A report on a run: one HTML page that needs no network."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures
from duet_jax.config.checks import fields
from duet_jax.evaluation import foot, headlines, monitors, page
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import (
    by_code,
    default_codes,
    joint_stack,
    make_code,
    spaced,
)
from duet_jax.evaluation.options import BASIC
from duet_jax.evaluation.result import Result, Table
from duet_jax.figures.style import remove, save, small_print
from duet_jax.methods.base import feature_spread
from duet_jax.runs import workdir
from duet_jax.runs.trained_run import Run
from duet_jax.runtime import files
from duet_jax.training import health

_log = logging.getLogger(__name__)

# Images on the map: t-SNE takes seconds for these and minutes for ten times as many.
_MAPPED_IMAGES = 2000
_FEWEST_MAPPED = 3
# Titles of results, in the order of the page; other results follow under their names.
TITLES = {
    "linear_probe": "Linear probe",
    "linear_probe_sgd": "Linear probe, SGD",
    "knn": "Nearest neighbors",
    "monitors": "Spread of the features",
    "equivariance": "Equivariance",
    "generation": "Controlled generation",
    "transfer": "Transfer",
}
# Stored results that are not shown.
LEFT_OUT = ("features", "export", "report")

# What a picture shows, by its kind.
CAPTIONS = {
    "confusion": "Each row holds the test images of one class, by the class that the "
    "probe names; the diagonal is right.",
    "marginals": "The structure by the parameter that was applied, beside its target; "
    "the more alike the two, the better.",
    "turned": "One test image at several parameters. Bars are its structure, the "
    "outline is the target.",
    "polar": "How far the parameter that is read off the structure is from the one "
    "that was applied.",
    "shift": "The representation of the transformed image, predicted from that of the "
    "original with its bins shifted, from it as it is, or from another image's. "
    "Smaller is better.",
    "readout": "The parameter that a regression reads off the full features, by the "
    "one that was applied; the narrower the diagonal, the better.",
    "reconstructions": "Test images, augmented like in training, above what is decoded "
    "from each representation.",
    "control": "The error of the decoded image and of the parameter read off it, by "
    "the parameter that was asked for.",
    "knob": "Test images truly transformed, above what is decoded from features that "
    "were changed instead.",
    "crosstalk": "What moves the reading of each code (rows): the others, applied "
    "(columns). Ideally only the diagonal of what moves is dark.",
    "matrix": "What each representation (columns) knows of every augmentation (rows): "
    "▲ where it is trained to, ▽ where it should not.",
    "map": "A point is a transformed test image. Colors that lie together are what the "
    "features tell apart.",
    "curves": "What was measured while training.",
    "views": "What the first step was trained on, below the images as they are.",
}


def measure(evaluation: Evaluation) -> Result:
    """Writes `report.html` in the work directory.

    It holds the configuration, curves, views, the tables and pictures of the linear
    probe, kNN, the monitors, the equivariance and other stored results, and a map of
    the test features. Results that are not stored for this checkpoint are measured
    first.

    Raises:
      UsageError: the page cannot be written, or an evaluator fails.
    """
    path = evaluation.run.directory / "report.html"
    workdir.check_writable(path.parent, "--workdir")
    codes = default_codes(evaluation.run.method)
    results = _results(evaluation, codes)
    with evaluation.timed("map"):
        # A method that learns no code may have many in its stack: the first.
        learned = getattr(evaluation.run.method, "learned", ())
        picture, reason = _map(evaluation, codes if learned else codes[:1])
    if picture is None:
        _log.warning("the report has no map: %s", reason)
    with workdir.writing(path, "--workdir"):
        evaluation.directory.mkdir(parents=True, exist_ok=True)
        map_path = evaluation.directory / "report_map.png"
        if picture is None:
            remove(map_path)  # that of an earlier report
        else:
            save(map_path, picture, _small_print(evaluation))
        note = f"No map: {reason}." if reason else ""
        pictures = page.read_picture(map_path, CAPTIONS["map"])
        about_map = page.Section("Map of the test features", (), pictures, note)
        text = _page(evaluation, results, about_map)
        with files.replacing(path) as partial:
            # The name of a directory may hold any bytes.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    rows = ((str(path), f"{path.stat().st_size / 1e6:.1f} MB"),)
    table = Table("report", ("page", "size"), rows)
    return Result({"page": str(path), "parts": [*results]}, (table,), {})


def _small_print(evaluation: Evaluation) -> str:
    run = evaluation.run
    return small_print(run.config.method, run.facts.name, run.step, run.config.seed)


def _results(evaluation: Evaluation, codes: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the results to show, by name; measures what is missing."""
    found = {}
    if evaluation.run.facts.num_classes:
        for name in ("linear_probe", "knn"):
            found[name] = evaluation.load_or_evaluate(name)
    if monitors.can_measure(evaluation):
        found["monitors"] = evaluation.load_or_evaluate("monitors")
    if codes:
        # Codes that were measured before are kept.
        known = evaluation.load_valid("equivariance")
        names, own = [*codes], {"measures": BASIC}
        if known is not None:
            names += by_code(known["results"])
            own = {k: x for k, x in known["options"].items() if k == "measures"}
        own["codes"] = ",".join(dict.fromkeys(names))
        found["equivariance"] = evaluation.load_or_evaluate(
            "equivariance", codes, **own
        )
    for name in sorted(file.stem for file in evaluation.directory.glob("[!.]*.json")):
        if name in found or name in LEFT_OUT:
            continue
        if other := evaluation.load_valid(name, any_settings=True):
            found[name] = other
    return found


def _map(evaluation: Evaluation, codes: list[str]) -> tuple[Figure | None, str]:
    """Draws the test features in two dimensions, by class and by each parameter.

    Returns:
      The figure and "", or None and the reason.
    """
    images, labels = (spaced(rows, _MAPPED_IMAGES) for rows in evaluation.split("test"))
    parameters: list[figures.Coloring] = []
    if not codes:
        features = evaluation.run(images)["full"]
    else:
        measured = [make_code(evaluation, code) for code in codes]
        stack = joint_stack(evaluation, measured)
        draws = stack.draw(jax.random.key(0), len(images))
        features = evaluation.run.encoder(images, stack, draws)["full"]
        values = stack.structure(draws)
        parameters = [
            figures.Coloring(
                code.record.summary,
                code.parameter(np.asarray(values[code.name])),
                code.record.scale.unit,
                code.circular,
                code.limits,
            )
            for code in measured
        ]
    reason = why_no_map(features)
    if reason:
        return None, reason
    picture = figures.build_embedding(
        _projections(features),
        classes=labels,
        class_names=evaluation.dataset.class_names,
        parameters=parameters,
        title="full features of transformed test images",
    )
    return picture, ""


def why_no_map(features: np.ndarray) -> str:
    """Returns why features cannot be mapped to the plane; "" if they can.

    t-SNE crashes the process if all features are equal, and shows only rounding errors
    if they almost are.
    """
    if len(features) < _FEWEST_MAPPED:
        return f"it takes {_FEWEST_MAPPED} test images or more"
    if not np.isfinite(features).all():
        return "some features are not finite"
    spread = float(feature_spread(jnp.asarray(features), None))
    if spread < health.COLLAPSED or not features.std(axis=0, dtype=float).any():
        return (
            f"the features of all test images are almost equal (feature_spread="
            f"{spread:.2g}); they have collapsed"
        )
    return ""


def _projections(features: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the standardized features in two dimensions, each [n, 2]."""
    from sklearn.decomposition import PCA  # slow to import; only reports need it
    from sklearn.manifold import TSNE

    features = features.astype(float)
    spread = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    linear = PCA(2, svd_solver="full").fit_transform(standard)
    # At most a third of the points are neighbors; 30 is the usual number.
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=0)
    return {"PCA": linear, "t-SNE": tsne.fit_transform(standard)}


def _page(
    evaluation: Evaluation, results: dict[str, Any], about_map: page.Section
) -> str:
    run = evaluation.run
    sections = []
    for name in sorted(results, key=lambda name: [*TITLES, name].index(name)):
        sections += _sections(evaluation, name, results[name])
    training = [
        picture
        for name in ("curves", "views")
        for picture in page.read_picture(
            run.directory / "figures" / f"{name}.png", CAPTIONS[name]
        )
    ]
    rows = tuple((name, shown(value)) for name, value in fields(run.config))
    configuration = Table("config.json", ("field", "value"), rows)
    sections += [
        about_map,
        page.Section("Training", (), training),
        page.Section("Configuration", (configuration,), folded=True),
    ]
    about = ", ".join([run.config.method, *getattr(run.method, "learned", ())])
    facts = run.facts
    images = f"{facts.num_train:,} training and {facts.num_test:,} test images"
    return page.build(
        sections,
        title=run.directory.absolute().name,
        subtitle=f"{about} on {facts.name}, {images}: checkpoint of step {run.step}",
        headlines=headlines.headlines(results),
        foot=foot.lines(run.directory, results),
    )


def _sections(
    evaluation: Evaluation, name: str, found: Mapping[str, Any]
) -> list[page.Section]:
    """Returns the section of a result, or one for each code if it is about several.

    What is about no code, or about all of them together, comes first.
    """
    title, note = title_of(name), _settings(evaluation.run, found)
    tables = [Table(**table) for table in found["tables"]]
    codes = [*dict.fromkeys(table.about for table in tables if table.about)]
    codes = codes if len(codes) > 1 else []
    knobs = knobs_of(found)
    sections = []
    for code in ("", *codes):
        files = [f for f in found["pictures"] if _code_of(f, name, codes) == code]
        pictures = [
            picture
            for file in files
            for picture in page.read_picture(
                evaluation.directory / file, CAPTIONS.get(kind_of(file), "")
            )
        ]
        section = page.Section(
            f"{title}: {code}" if code else title,
            [table for table in tables if not codes or table.about == code],
            pictures,
            "" if code else note,
            knobs=[k for n, k in knobs.items() if _code_of(n, "", codes) == code],
        )
        if section.tables or section.pictures or section.knobs or not codes:
            sections.append(section)
    return sections


def _code_of(file: str, result: str, codes: list[str]) -> str:
    """Returns which of the codes a picture of a result is of; "" for none of them."""
    stem = pathlib.PurePath(file).stem.removeprefix(f"{result}_")
    code = stem.rpartition("_")[0]
    return code if code in codes else ""


def _settings(run: Run, found: Mapping[str, Any]) -> str:
    """Returns with which settings a result was measured, where they are not the run's.

    It is a remark on the section, "" if there are none.
    """
    own, measured = dict(fields(run.config)), found.get("settings") or {}
    others = [
        f"config.{name}={shown(value)}"
        for name, value in measured.items()
        if name not in own or own[name] != value
    ]
    return f"Measured with {', '.join(others)}." if others else ""


def knobs_of(found: Mapping[str, Any]) -> dict[str, figures.Knob]:
    """Returns the knobs of a stored result by name; damaged ones are left out."""
    drawings = found.get("drawings")
    knobs = {}
    for name, stored in drawings.items() if isinstance(drawings, Mapping) else ():
        if kind_of(name) != "knob":
            continue
        try:
            drawing = figures.restored(stored)
            if not isinstance(drawing.summary, figures.Knob):
                raise ValueError(f"it is of the kind {drawing.kind}")
            knobs[name] = figures.check_knob(drawing.summary)
        except ValueError as error:
            # A result may have been edited.
            _log.warning("%s cannot be turned: %s", name, error)
    return knobs


def title_of(name: str) -> str:
    """Returns the heading of a result, such as "Linear probe"."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def kind_of(file: str) -> str:
    """Returns the kind of a picture: "readout" for equivariance_rot_readout.png."""
    return pathlib.PurePath(file).stem.rpartition("_")[2]


def shown(value: Any) -> str:
    """Returns the value of a field as text."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
