"""Everything that is known of a run on one page that needs no network."""

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures
from duet_jax.config.checks import fields
from duet_jax.evaluation import equivariance, page
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.figures.style import save
from duet_jax.methods.base import feature_spread
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.training import health

_log = logging.getLogger(__name__)

# Images on the map: t-SNE takes seconds for these and minutes for ten times as many.
_MAPPED_IMAGES = 2000
_FEWEST_MAPPED = 3
# What a report measures if it has not been measured, besides the equivariance.
_MEASURED = ("linear_probe", "knn")
# What it does not show of what else there is in eval/.
_LEFT_OUT = ("features", "report")


def measure(evaluation: Evaluation) -> Result:
    """Writes `report.html` in the work directory.

    Holds the configuration, curves, views, the tables and pictures of the linear probe,
    of kNN and of the equivariance, and a map of the test features. What has been
    measured of this checkpoint is taken from `eval/`, the rest is measured first.

    Raises:
      UsageError: the page cannot be written, or what an evaluator raises.
    """
    path = evaluation.run.directory / "report.html"
    workdir.check_writable(path.parent, "--workdir")
    codes = equivariance.default_codes(evaluation.run.method)
    found = {name: evaluation.stored(name) for name in _MEASURED}
    if codes:
        found["equivariance"] = _equivariance(evaluation, codes)
    for name in sorted(file.stem for file in evaluation.directory.glob("[!.]*.json")):
        if name not in _LEFT_OUT and (other := evaluation.valid(name)):
            found.setdefault(name, other)
    with evaluation.timed("map"):
        picture, reason = _map(evaluation, codes[0] if codes else None)
    if picture is None:
        _log.warning("the report has no map: %s", reason)
    with workdir.writing(path, "--workdir"):
        evaluation.directory.mkdir(parents=True, exist_ok=True)
        _keep_map(evaluation.directory / "report_map.png", picture)
        sections = _sections(evaluation, found, f"No map: {reason}." if reason else "")
        text = page.build(sections, **_head(evaluation, found))
        with files.replacing(path) as partial:
            # A directory may have any bytes for a name.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    rows = ((str(path), f"{path.stat().st_size / 1e6:.1f} MB"),)
    table = Table("report", ("page", "size"), rows)
    return Result({"page": str(path), "parts": [*found]}, (table,), {})


def _equivariance(evaluation: Evaluation, codes: list[str]) -> dict[str, Any]:
    """Returns the equivariance to `codes`, and to what else has been measured."""
    found = evaluation.valid("equivariance") or {"results": {}}
    names = dict.fromkeys([*codes, *found["results"]])
    return evaluation.stored("equivariance", codes, codes=",".join(names))


def _keep_map(path: pathlib.Path, picture: Figure | None) -> None:
    """Saves the map, or removes that of an earlier report."""
    if picture is None:
        path.unlink(missing_ok=True)
    else:
        save(path, picture)


def _map(evaluation: Evaluation, code: str | None) -> tuple[Figure | None, str]:
    """Draws the test features in two dimensions, by class and by parameter.

    Returns:
      The picture, or None and the reason in words.
    """
    split = evaluation.split("test")
    images = equivariance.spaced(split.images, _MAPPED_IMAGES)
    labels = equivariance.spaced(split.labels, _MAPPED_IMAGES)
    about: dict[str, Any] = {}
    if code is None:
        features = evaluation.run(images)["full"]
    else:
        measured = equivariance.make_code(evaluation, code)
        draws = measured.stack.draw(jax.random.key(0), len(images))
        features = evaluation.run.encoder(images, measured.stack, draws)["full"]
        about = {
            "values": measured.parameter(measured.stack.structure(draws)[code]),
            "name": measured.record.summary,
            "unit": measured.record.scale.unit,
            "circular": measured.circular,
            "limits": measured.limits,
        }
    reason = why_no_map(features)
    if reason:
        return None, reason
    picture = figures.build_embedding(
        _projections(features),
        classes=labels,
        class_names=evaluation.dataset.class_names,
        title="full features of transformed test images",
        **about,
    )
    return picture, ""


def why_no_map(features: np.ndarray) -> str:
    """Returns why features cannot be laid out in the plane; "" if they can.

    t-SNE ends the whole process where all of them are equal, and shows nothing but
    rounding where they almost are.
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
    """Returns the standardised features in two dimensions, each [n, 2]."""
    from sklearn.decomposition import PCA  # takes a second that others need not spend
    from sklearn.manifold import TSNE

    features = features.astype(float)
    spread = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    linear = PCA(2, svd_solver="full").fit_transform(standard)
    # At most a third of the points are neighbours; 30 is the usual number.
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=0)
    return {"PCA": linear, "t-SNE": tsne.fit_transform(standard)}


def _head(evaluation: Evaluation, found: dict[str, Any]) -> dict[str, Any]:
    run = evaluation.run
    learned = getattr(run.method, "learned", None)
    about = f"{run.config.method}{f', {learned}' if learned else ''}"
    return {
        "title": run.directory.absolute().name,
        "subtitle": f"{about} on {run.facts.name}: checkpoint of step {run.step}",
        "headlines": _headlines(found),
    }


def _headlines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers one asks for first, each with its name."""
    lines = []
    for name, title in (("linear_probe", "linear probe"), ("knn", "kNN")):
        for kind, scores in found[name]["results"]["representations"].items():
            lines.append((f"{percent(scores['top1'])} %", f"{title} on {kind}"))
    for code, each in found.get("equivariance", {}).get("results", {}).items():
        source, scores = "full features", each["regression"]["full"]
        if "marginal" in each:
            source, scores = "structure", each["marginal"]["mean"]
        if "accuracy" in scores:
            number = f"{percent(scores['accuracy'])} %"
        else:
            number = f"{scores['error']:.3g} {each['unit']}"
        what = "right" if "accuracy" in scores else "error"
        lines.append((number, f"{code} read off the {source}: {what}"))
    return lines


def _sections(
    evaluation: Evaluation, found: dict[str, Any], about_map: str
) -> list[page.Section]:
    own = evaluation.run.directory / "figures"
    sections = [
        page.Section("Training", (), _existing(own, ("curves.png", "views.png"))),
    ]
    titles = {
        "linear_probe": "Linear probe",
        "linear_probe_sgd": "Linear probe, SGD",
        "knn": "Nearest neighbours",
        "equivariance": "Equivariance",
        "transfer": "Transfer",
    }
    for name in sorted(found, key=lambda name: [*titles, name].index(name)):
        tables = tuple(Table(**each) for each in found[name]["tables"])
        pictures = _existing(evaluation.directory, found[name]["pictures"])
        title = titles.get(name, name.replace("_", " ").capitalize())
        sections.append(page.Section(title, tables, pictures))
    picture = _existing(evaluation.directory, ("report_map.png",))
    sections.append(page.Section("Map of the test features", (), picture, about_map))
    sections.append(page.Section("Configuration", (_configuration(evaluation),), ()))
    return sections


def _existing(directory: pathlib.Path, names) -> tuple[pathlib.Path, ...]:
    """Returns the pictures that are in `directory` itself, and nothing else.

    The page is given away, and a stored result may name any file.
    """
    plain = [name for name in names if pathlib.PurePath(name).name == name]
    return tuple(path for name in plain if page.is_picture(path := directory / name))


def _configuration(evaluation: Evaluation) -> Table:
    known = fields(evaluation.run.config)
    rows = tuple((name, _shown(value)) for name, value in known)
    return Table("config.json", ("field", "value"), rows)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
