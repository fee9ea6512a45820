"""Tests of the pictures of an evaluation: what they show, and that nothing odd fails.

Warnings are errors here, so a picture that is drawn at all divides by no zero and finds
no two equal limits.
"""

import errno
import itertools
import json

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from duet_jax.evaluation.store import plain
from duet_jax.figures import (
    Coloring,
    Confusion,
    Control,
    Drawing,
    Shift,
    build_confusion,
    build_control,
    build_dots,
    build_embedding,
    build_marginals,
    build_polar,
    build_readout,
    build_shift,
    build_turned,
    draw,
    restored,
    style,
    summarize_marginals,
    summarize_polar,
    summarize_readout,
)

ODD = "_a$b$<c>"  # mathematics, a hidden label and a tag, to those who take it for one


def drawn(figure):
    """Lays it out, as saving does, and returns it."""
    figure.draw_without_rendering()
    return figure


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def written(axes):
    return [text.get_text() for text in axes.texts]


def names(labels):
    return [label.get_text() for label in labels]


def in_legend(owner):
    return names(owner.get_legend().get_texts())


def confusion(matrix, class_names, **options):
    return build_confusion({"": Confusion(matrix, class_names)}, **options)


def marginals_of(parameters, marginals, targets, title="", **options):
    summary = summarize_marginals(parameters, marginals, targets, **options)
    return build_marginals({"": summary}, title=title)


def readout(true, predicted, title="", **options):
    return build_readout(
        {"": summarize_readout(true, predicted, **options)}, title=title
    )


def polar(true, predicted, **options):
    return build_polar({"": summarize_polar(true, predicted)}, **options)


def shift(bins, shifts, curves, **options):
    return build_shift({"": Shift(bins, np.asarray(shifts), curves)}, **options)


def control(parameters, errors, title="", chance=0.5):
    each = {"shift": errors}
    summary = Control("a", "circle", np.array(parameters), each, each, chance, False)
    return build_control({"": summary}, title=title)


# Dots


def dots(axes):
    """Heights of the large dots, the means."""
    large = [line for line in axes.lines if line.get_markersize() == 6]
    return [line.get_ydata()[0] for line in large if line.get_marker() == "o"]


def test_dots_are_means_of_seeds():
    panels = {
        "probe": {
            "duet": {"rot": [50.0, 70.0], "hue": [40.0]},
            "simclr": {"": [30.0, 20.0], "rot": [10.0]},
        },
        ODD: {"duet": {"hue": [-0.5, 0.5, 0.3]}},
    }
    figure = drawn(build_dots(panels, title=ODD))
    first, second = figure.axes
    assert titles(figure) == ["probe", ODD]
    for axes in figure.axes:
        assert names(axes.get_xticklabels()) == ["rot", "hue"]
    np.testing.assert_allclose(dots(first), [10, 60, 40])  # simclr, duet, duet
    np.testing.assert_allclose(dots(second), [0.1])
    across = [line for line in first.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in across] == [25.0]
    legend = names(figure.legends[0].get_texts())
    assert legend == [
        "SimCLR",
        "DUET",
        "SimCLR without it",
        "± standard deviation",
        "one seed",
    ]


def test_dots_show_each_seed_and_the_deviation():
    figure = drawn(build_dots({"x": {"duet": {"a": [1.0, 2.0, 6.0]}}}))
    (axes,) = figure.axes
    rings = [line for line in axes.lines if line.get_markersize() == 3]
    np.testing.assert_allclose(np.sort(rings[0].get_ydata()), [1, 2, 6])
    (whisker,) = axes.collections
    ((_, low), (_, high)) = whisker.get_segments()[0]
    spread = np.std([1.0, 2.0, 6.0], ddof=1)
    np.testing.assert_allclose([low, high], [3 - spread, 3 + spread])


def test_a_method_without_cases_has_one_dot():
    figure = drawn(build_dots({"x": {"simclr": {"": [40.0]}}}))
    (axes,) = figure.axes
    np.testing.assert_allclose(dots(axes), [40])
    assert names(axes.get_xticklabels()) == ["(none)"]
    assert names(figure.legends[0].get_texts()) == ["SimCLR"]


@pytest.mark.parametrize(("chance", "line"), [(95.0, True), (10.0, False)])
def test_the_axis_begins_where_differences_are_seen(chance, line):
    """A guess far below the values is told in words instead."""
    cases = {"a": [96.0], "b": [98.0]}
    figure = drawn(build_dots({"x": {"duet": cases}}, chance={"x": chance}))
    (axes,) = figure.axes
    assert axes.get_ylim()[0] > 90
    dotted = [each.get_ydata()[0] for each in axes.lines if each.get_linestyle() == ":"]
    assert dotted == ([chance] if line else [])
    assert written(axes) == ([] if line else ["chance 10, below"])
    assert names(figure.legends[0].get_texts()) == ["DUET", "chance"]


def test_many_cases_fit():
    cases = {f"code-{n}": [float(n)] for n in range(40)}
    drawn(build_dots({"x": {"other": cases, "duet": cases, "essl": cases}}))


# Confusion


def test_rows_of_the_confusion_are_percentages_of_their_class():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 398]])
    figure = drawn(confusion(matrix, ["cat", ODD, "dog"], title=ODD))
    axes, bar = figure.axes
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown[0], [75, 25, 0])
    np.testing.assert_allclose(shown[2], [0.25, 0.25, 99.5])
    assert shown.mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    at = {text.get_position(): text.get_text() for text in axes.texts}
    # (predicted, true); nothing counted, nothing written.
    expected = {(0, 0): "75", (1, 0): "25", (0, 2): "<1", (1, 2): "<1", (2, 2): "100"}
    assert at == expected
    assert names(axes.get_xticklabels()) == ["cat", ODD, "dog"]
    assert axes.get_ylabel() == "true class (hatched: no examples)"
    assert axes.patch.get_hatch()
    assert figure._suptitle.get_text() == ODD
    assert bar.get_ylabel() == "share of the true class [%]"
    # True classes from above, and a cell in the middle of its tick.
    assert axes.get_ylim() == (2.5, -0.5)


def test_without_empty_classes_nothing_is_said_of_them():
    axes = drawn(confusion(np.eye(2), ["a", "b"])).axes[0]
    assert axes.get_ylabel() == "true class"


@pytest.mark.parametrize(
    ("classes", "named", "numbers"), [(20, 20, True), (21, 21, False), (100, 25, False)]
)
def test_many_classes_have_no_numbers_and_few_names(classes, named, numbers):
    axes = drawn(confusion(np.eye(classes), ["a"] * classes)).axes[0]
    assert len(axes.texts) == (classes if numbers else 0)
    labels = axes.get_yticklabels()
    assert len(labels) == named
    boxes = sorted(
        label.get_window_extent().extents[[1, 3]].tolist() for label in labels
    )
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(boxes))
    if classes == 100:
        assert names(labels)[:2] == ["a · 0", "a · 4"]


def test_long_names_are_cut():
    axes = drawn(confusion(np.eye(2), ["x" * 50, "y" * 20])).axes[0]
    assert names(axes.get_xticklabels()) == ["x" * 19 + "…", "y" * 20]


def test_more_classes_than_pixels_show_the_largest_share_of_a_block():
    matrix = np.eye(1001)
    matrix[5] = 0
    matrix[6, 6], matrix[6, 700] = 3, 1
    matrix[[10, 11]] = 0
    axes = drawn(confusion(matrix, ["n"] * 1001)).axes[0]
    shown = axes.images[0].get_array()
    blocks = -(-1001 // 3)
    assert shown.shape == (blocks, blocks)
    assert shown[0, 0] == 100
    assert shown[2, 2] == 100  # classes 6 to 8
    assert shown[2, 700 // 3] == 25
    assert not shown.mask.any()  # every block has a class with examples
    assert tuple(axes.get_xlim()) == (-0.5, 1000.5)


# Marginals


def circle_case(n=200, bins=8, seed=0):
    rng = np.random.default_rng(seed)
    degrees = rng.uniform(-180, 180, n)
    targets = rng.dirichlet(np.ones(bins), n)
    return degrees, rng.dirichlet(np.ones(bins), n), targets


def test_marginals_are_means_by_level_in_the_order_given():
    parameters = np.array([180.0, 0, 0, 90])
    marginals = np.array([[1.0, 0], [0.5, 0.5], [0, 1], [0.25, 0.75]])
    targets = np.array([[0.0, 1], [1, 0], [1, 0], [0.5, 0.5]])
    options = {"unit": "degrees", "topology": "circle", "levels": (0, 90, 180, 270)}
    figure = drawn(marginals_of(parameters, marginals, targets, **options))
    predicted, prescribed, distance = figure.axes[:3]
    shown = predicted.images[0].get_array()
    # [bins, levels]; nothing was turned by 270 degrees.
    np.testing.assert_allclose(shown[:, :3], [[0.25, 0.25, 1], [0.75, 0.75, 0]])
    assert shown.mask[:, 3].all()
    np.testing.assert_allclose(
        prescribed.images[0].get_array()[:, :3], [[1, 0.5, 0], [0, 0.5, 1]]
    )
    assert names(predicted.get_xticklabels()) == ["0", "90", "180", "270"]
    means, uniform = (line.get_ydata() for line in distance.lines[-2:])
    np.testing.assert_allclose(means, [0.75, 0.25, 1, np.nan])
    np.testing.assert_allclose(uniform, [0.5, 0, 0.5, np.nan])
    assert predicted.images[0].origin == "lower"
    assert "neighbors" in predicted.get_ylabel()


def test_marginals_of_a_continuous_parameter_lie_within_its_limits():
    degrees, marginals, targets = circle_case(400)
    options = {"unit": "degrees", "topology": "line", "limits": (-180, 180)}
    figure = drawn(marginals_of(degrees, marginals, targets, **options))
    predicted, prescribed, distance, bar = figure.axes
    shown = predicted.images[0].get_array()
    assert shown.shape == (8, 15)
    assert predicted.images[0].get_extent() == [-180, 180, -0.5, 7.5]
    first = degrees < -180 + 360 / 15
    np.testing.assert_allclose(shown[:, 0], marginals[first].mean(axis=0))
    last = degrees >= 180 - 360 / 15
    target = prescribed.images[0].get_array()
    np.testing.assert_allclose(target[:, -1], targets[last].mean(axis=0))
    apart = np.abs(marginals - targets)[first].sum(axis=1).mean() / 2
    np.testing.assert_allclose(distance.lines[0].get_ydata()[0], apart)
    assert predicted.images[0].get_clim() == prescribed.images[0].get_clim()
    assert predicted.images[0].get_clim()[1] == max(shown.max(), target.max())
    assert bar.get_ylabel() == "probability"
    assert predicted.get_ylabel() == "bin"
    assert list(distance.get_xticks()) == [-180, -90, 0, 90, 180]
    assert "parameter [degrees]" in names(figure.texts)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_marginals_of_equal_parameters_make_one_stripe(n):
    marginals = np.full((n, 4), 0.25)
    options = {"unit": ODD, "topology": "line"}
    figure = drawn(marginals_of(np.full(n, 3.0), marginals, marginals, **options))
    shown = figure.axes[0].images[0].get_array()
    filled = ~np.ma.getmaskarray(shown)
    assert filled.any(axis=0).sum() == 1
    np.testing.assert_allclose(shown.compressed(), 0.25)


# Read-out


def test_the_reading_is_a_share_of_its_column():
    true = np.repeat([0.1, 0.9], [30, 10])
    predicted = np.concatenate([np.full(15, 0.1), np.full(15, 0.6), np.full(10, 7.0)])
    options = {"unit": "factor", "topology": "line", "limits": (0, 1)}
    axes = drawn(readout(true, predicted, **options)).axes[0]
    percent = axes.collections[0].get_array().reshape(8, 8)
    low, high = int(0.1 * 8), int(0.9 * 8)
    assert percent[int(0.1 * 8), low] == percent[int(0.6 * 8), low] == 50
    # What lies beyond the limits is in the outermost cell.
    assert percent[7, high] == 100
    others = [column for column in range(8) if column not in (low, high)]
    assert percent.mask[:, others].all()
    assert percent[:, [low, high]].sum() == 200
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [1, 1]])
    assert axes.get_xlabel() == "applied [factor]"
    assert axes.get_ylabel() == "read [factor]"


def test_angles_wrap_into_the_limits():
    true, predicted = np.full(4, 190.0), np.array([190.0, -170, 550, 170])
    options = {"unit": "degrees", "topology": "circle", "limits": (-180, 180)}
    axes = drawn(readout(true, predicted, **options)).axes[0]
    percent = axes.collections[0].get_array().reshape(8, 8)
    assert percent[0, 0] == 75
    assert percent[7, 0] == 25
    assert len(axes.lines) == 3
    assert in_legend(axes) == ["exact", "half a turn off"]
    for line, half in zip(axes.lines[1:], (180, -180), strict=True):
        np.testing.assert_array_equal(line.get_ydata() - line.get_xdata(), half)


def test_levels_get_a_column_each():
    true = np.array([0, 1, 2, 3, 3])
    options = {
        "unit": "quarter turns",
        "topology": "circle",
        "limits": (-0.5, 3.5),
        "levels": (0, 1, 2, 3),
    }
    axes = drawn(readout(true, true, **options)).axes[0]
    percent = axes.collections[0].get_array().reshape(8, 4)
    np.testing.assert_array_equal(percent.argmax(axis=0), [1, 3, 5, 7])
    np.testing.assert_array_equal(percent.max(axis=0), 100)
    assert names(axes.get_xticklabels()) == ["0", "1", "2", "3"]


def test_a_column_of_few_images_does_not_set_the_colours():
    rng = np.random.default_rng(0)
    true = np.append(rng.uniform(0, 0.5, 600), 0.99)
    predicted = np.append(rng.uniform(0, 1, 600), 0.99)
    options = {"unit": "factor", "topology": "line", "limits": (0, 1)}
    mesh = drawn(readout(true, predicted, **options)).axes[0].collections[0]
    assert mesh.get_array().max() == 100
    assert mesh.get_clim()[1] < 40


# Circles


def test_the_error_is_wrapped_and_told_by_sector():
    true = np.deg2rad([170.0, 172, 90, 90, 90, -1])
    read = np.deg2rad([-170.0, -168, 100, 110, 90, 178])
    figure = drawn(polar(true, read))
    ring, near, errors = figure.axes
    median = ring.lines[1].get_ydata()
    known = {6: 10, 11: 20, 0: 179}  # sector of 15 degrees -> median error
    for sector, expected in known.items():
        np.testing.assert_allclose(median[sector], expected, atol=1e-9)
    assert np.isnan(np.delete(median, [0, 6, 11, 24])).all()
    assert median[24] == median[0]
    heights = [bar.get_height() for bar in near.patches]
    # Right in sectors 0, 6 and 11, then half a turn off in the same.
    np.testing.assert_allclose(heights, [0, 100, 100, 100, 0, 0])
    sectors = [bar.get_x() + bar.get_width() / 2 for bar in near.patches[:3]]
    np.testing.assert_allclose(sectors, np.deg2rad([0, 90, 165]))
    shares = np.array([bar.get_height() for bar in errors.patches])
    np.testing.assert_allclose(shares.sum(), 100)
    assert errors.get_title(loc="left") == (
        "all errors: median size 20°\n83 % within 30°, 17 % half a turn off"
    )


def test_the_band_of_a_sector_holds_four_fifths_of_its_errors():
    """Errors on both sides of half a turn are neighbours, not opposites."""
    true = np.zeros(101)
    figure = drawn(polar(true, np.deg2rad(np.linspace(160, 200, 101))))
    bars = figure.axes[0].patches
    # One band, seen at both edges of the ring.
    ends = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars)
    np.testing.assert_allclose(ends, [(-196, -164), (164, 196)], atol=1e-6)
    assert figure.axes[0].get_ylim() == (-180, 180)


@pytest.mark.parametrize(("size", "limit"), [(0, 30), (29, 30), (31, 60), (100, 180)])
def test_the_ring_is_as_wide_as_the_errors(size, limit):
    figure = drawn(polar(np.zeros(1), np.deg2rad([size])))
    assert figure.axes[0].get_ylim() == (-limit, limit)


def turned_case(steps, side=16, bins=6, channels=3):
    rng = np.random.default_rng(0)
    images = rng.uniform(-0.5, 0.5, (steps, side, side, channels)).astype(np.float32)
    marginals, targets = rng.dirichlet(np.ones(bins), (2, steps))
    labels = [f"{number}°" for number in range(steps)]
    return images, marginals, targets, labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (8, 8), (12, 6), (17, 6)])
def test_every_step_has_its_image_and_its_marginal(channels, steps, columns):
    images, marginals, targets, labels = turned_case(steps, channels=channels)
    figure = drawn(build_turned(images, marginals, targets, labels, title=ODD))
    assert len(figure.axes) == 2 * steps
    for step in range(steps):
        image, bars = figure.axes[2 * step : 2 * step + 2]
        expected = images[step] + 0.5
        expected = expected[..., 0] if channels == 1 else expected
        np.testing.assert_allclose(image.images[0].get_array(), expected, atol=1e-6)
        *patches, outline = bars.patches
        heights = [patch.get_height() for patch in patches]
        np.testing.assert_allclose(heights, marginals[step])
        np.testing.assert_allclose(outline.get_data().values, targets[step])
        assert image.get_position().y0 > bars.get_position().y1
        assert image.get_position().x0 == bars.get_position().x0
    lefts = {axes.get_position().x0 for axes in figure.axes}
    assert len(lefts) == columns
    assert len({axes.get_ylim() for axes in figure.axes[1::2]}) == 1
    assert set(labels) | {ODD} <= {text.get_text() for text in figure.texts}


def test_turned_images_are_pixel_exact(tmp_path):
    case = turned_case(2, side=32)
    style.save(tmp_path / "turned.png", build_turned(*case))
    picture = np.asarray(Image.open(tmp_path / "turned.png").convert("RGB"))
    left, top = 78, 48 + 18
    cut = picture[top : top + 128, left : left + 128] / 255
    enlarged = (case[0][0] + 0.5).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(cut, enlarged, atol=1 / 255)


# Shifts


def test_shifts_lie_on_a_circle():
    curves = {"shifted bins": [0.1, np.nan, 0.2], ODD: [0.4, 0.5, 0.6]}
    figure = drawn(shift(4, [1, 2, 3], curves, title=ODD))
    (axes,) = figure.axes
    for line, values in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [np.pi / 2, np.pi, 3 * np.pi / 2])
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert names(axes.get_xticklabels()) == ["no shift", "1", "2", "3"]
    assert axes.get_theta_offset() == np.pi / 2  # no shift is on top
    assert axes.get_ylim() == (0, pytest.approx(1.05 * 0.6))
    assert in_legend(axes) == ["shifted bins", ODD]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 2
    assert axes.get_legend().get_window_extent().y0 >= style.FOOT


def test_one_shift_is_visible():
    figure = drawn(shift(8, [3], {"no shift": [0.5]}))
    assert figure.axes[0].lines[0].get_marker() == "o"


# Embeddings


def points(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"PCA": rng.normal(size=(n, 2)), "t-SNE": rng.normal(size=(n, 2))}


def panels(figure):
    pairs = zip(titles(figure), figure.axes, strict=True)
    return {title: axes for title, axes in pairs if title}


def test_columns_are_projections_and_rows_are_colourings():
    places, classes = points(40), np.arange(40) % 3
    values = np.linspace(-180, 170, 40)
    parameters = [
        Coloring("rotation", values, "degrees", True, (-180, 180)),
        Coloring("hue", values / 360),
    ]
    class_names = ["cat", ODD, "x" * 40]
    options = {"class_names": class_names, "parameters": parameters, "title": ODD}
    figure = build_embedding(
        places,
        classes=classes,
        **options,
    )
    found = panels(drawn(figure))
    assert list(found) == [
        "PCA, by class",
        "t-SNE, by class",
        "PCA, by rotation",
        "t-SNE, by rotation",
        "PCA, by hue",
        "t-SNE, by hue",
    ]
    for name, where in places.items():
        groups = found[f"{name}, by class"].collections
        for number, group in enumerate(groups):
            np.testing.assert_array_equal(group.get_offsets(), where[classes == number])
        (cloud,) = found[f"{name}, by rotation"].collections
        np.testing.assert_array_equal(cloud.get_offsets(), where)
        np.testing.assert_array_equal(cloud.get_array(), values)
        assert cloud.get_clim() == (-180, 180)
        # Colours meet where the circle closes.
        ends = cloud.get_cmap()([0.0, 1.0])
        np.testing.assert_allclose(ends[0], ends[1], atol=0.02)
    (place,) = [axes for axes in figure.axes if axes.get_legend()]
    assert in_legend(place) == ["cat", ODD, "x" * 15 + "…"]
    assert "rotation [degrees]" in [axes.get_ylabel() for axes in _with_insets(figure)]


def _with_insets(figure):
    return [axes for each in figure.axes for axes in (each, *each.child_axes)]


def test_no_colour_of_the_cycle_is_lost_on_white():
    parameters = [Coloring("a", np.array([0.0, 1.0]), circular=True)]
    options = {"class_names": ["a"], "parameters": parameters}
    figure = build_embedding(points(2), classes=[0, 0], **options)
    (cloud,) = panels(figure)["PCA, by a"].collections
    colours = cloud.get_cmap()(np.linspace(0, 1, 64))[:, :3]
    assert (colours @ [0.2126, 0.7152, 0.0722]).max() < 0.7


def test_twenty_classes_look_different_and_more_are_numbered():
    figure = build_embedding(
        points(40), classes=np.arange(40) % 20, class_names=["c"] * 20
    )
    groups = panels(drawn(figure))["PCA, by class"].collections
    looks = {
        (*group.get_facecolor()[0], group.get_paths()[0].vertices.tobytes())
        for group in groups
    }
    assert len(looks) == 20
    classes = np.arange(40) % 21
    figure = build_embedding(points(40), classes=classes, class_names=["c"] * 21)
    (cloud,) = panels(drawn(figure))["t-SNE, by class"].collections
    np.testing.assert_array_equal(cloud.get_array(), classes)
    assert cloud.get_clim() == (0, 20)
    assert "number of the class" in [axes.get_ylabel() for axes in _with_insets(figure)]


# Several runs in one picture


def readouts():
    """A sharp and a faint reading of the same angles."""
    angles = np.linspace(-179, 179, 400)
    rng = np.random.default_rng(0)
    return {
        name: summarize_readout(
            angles,
            angles + rng.normal(0, noise, 400),
            unit="degrees",
            topology="circle",
            limits=(-180, 180),
        )
        for name, noise in (("sharp", 5), (ODD, 100))
    }


def test_readings_share_one_color_scale():
    both = readouts()
    figure = drawn(build_readout(both, title="t"))
    first, second, *bars = figure.axes
    assert len(bars) == 1
    assert titles(figure)[:2] == ["sharp", ODD]
    tops = [axes.collections[0].get_clim()[1] for axes in (first, second)]
    assert tops == [both["sharp"].top] * 2
    alone = drawn(build_readout({"": both[ODD]})).axes[0].collections[0]
    assert alone.get_clim()[1] == both[ODD].top < both["sharp"].top / 2
    np.testing.assert_array_equal(alone.get_array(), second.collections[0].get_array())


def test_marginals_share_one_color_scale():
    targets = np.eye(4)[np.arange(40) % 4]
    flat = np.full((40, 4), 0.25)
    options = {"unit": "degrees", "topology": "circle"}
    panels = {
        name: summarize_marginals(np.arange(40) % 4, marginals, target, **options)
        for name, marginals, target in (("a", targets, targets), ("b", flat, flat))
    }
    figure = drawn(build_marginals(panels))
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    assert limits == {(0, 1)}
    assert titles(figure)[::3][:2] == [f"{n}: predicted marginal, mean" for n in "ab"]


def test_errors_share_their_axes():
    angles = np.linspace(0, 6, 200)
    panels = {
        "a": summarize_polar(angles, angles),
        "b": summarize_polar(angles, angles + 1),
    }
    figure = drawn(build_polar(panels))
    ring1, _, errors1, ring2, _, errors2 = figure.axes
    assert ring1.get_ylim() == ring2.get_ylim() == (-60, 60)  # a radian is 57 degrees
    assert errors1.get_ylim() == errors2.get_ylim() == (0, 105)


def test_shifts_share_their_axis():
    panels = {
        name: Shift(4, np.arange(1, 4), {"shifted": [x, x, x]})
        for name, x in (("a", 0.2), ("b", 2.0))
    }
    figure = drawn(build_shift(panels))
    assert [axes.get_ylim()[1] for axes in figure.axes] == [2.1, 2.1]
    assert titles(figure) == ["a", "b"]


@pytest.mark.parametrize("kind", ["readout", "shift", "marginals", "polar"])
def test_a_drawing_comes_back_from_json(kind, tmp_path):
    """What is kept of a picture draws the same picture."""
    angles = np.linspace(-170, 170, 300)
    rows = np.random.default_rng(0).dirichlet(np.ones(4), (2, 300))
    axis = {"unit": "degrees", "topology": "circle", "limits": (-180, 200)}
    summary = {
        "readout": lambda: readouts()["sharp"],
        "shift": lambda: Shift(4, np.array([1, 2]), {"a": np.array([0.5, np.nan])}),
        "marginals": lambda: summarize_marginals(angles, *rows, **axis),
        "polar": lambda: summarize_polar(np.deg2rad(angles) / 8, np.zeros(300)),
    }[kind]()
    stored = json.loads(json.dumps(plain(Drawing(kind, ODD, summary).stored())))
    assert len(json.dumps(stored)) < 30_000
    again = restored(stored)
    assert (again.kind, again.title) == (kind, ODD)
    pictures = []
    for each in (Drawing(kind, ODD, summary), again):
        style.save(tmp_path / "picture.png", draw({"": each}))
        with Image.open(tmp_path / "picture.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB"), int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.05


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"kind": "pie", "title": "", "summary": {}},
        {"kind": "shift", "title": "", "summary": {"bins": 4}},
        {"kind": "shift", "title": "", "summary": []},
    ],
)
def test_what_is_no_drawing_is_refused(stored):
    with pytest.raises(ValueError, match="no drawing"):
        restored(stored)


def test_small_print_is_below_everything(tmp_path):
    text = style.small_print("duet", "digits", 880, 0)
    assert text == "duet · digits · step 880 · seed 0"
    for figure in (
        readout([0], [1], unit="a", topology="line", limits=(0, 1)),
        marginals_of(*(np.ones(1), ONE, ONE), unit="a", topology="line"),
        polar([0.0], [0.0]),
        shift(8, [1], {"a": [1.0]}),
        control([0.0], np.ones((3, 1))),
        confusion(np.eye(2), ["a", "b"]),
        build_turned(np.zeros((1, 8, 8, 1)), ONE, ONE, ["a"]),
    ):
        style.save(tmp_path / "picture.png", figure, text)
        figure.draw_without_rendering()
        print_ = figure.texts[-1]
        assert print_.get_text() == text
        lowest = [axes.get_tightbbox().y0 for axes in figure.axes if axes.axison]
        lowest += [t.get_window_extent().y0 for t in figure.texts[:-1]]
        assert print_.get_window_extent().y1 <= min(lowest) + 1
        assert (tmp_path / "picture.svg").read_bytes().startswith(b"<?xml")


# All of them

LEVELS = {"unit": "mirrored", "topology": "circle", "levels": (0, 1)}
ONE = np.ones((1, 1))
# What an evaluation of next to nothing hands over.
DEGENERATE = {
    "one class": lambda: confusion([[5]], ["a"]),
    "no examples": lambda: confusion(np.zeros((3, 3)), ["a", "b", "c"]),
    "one bin": lambda: marginals_of(ONE[0], ONE, ONE, unit="a", topology="line"),
    "two levels": lambda: marginals_of(
        np.array([0, 1, 1]), *np.full((2, 3, 2), 0.5), **LEVELS
    ),
    "one level seen": lambda: marginals_of(
        np.array([1]), *np.full((2, 1, 2), 0.5), **LEVELS
    ),
    "one reading": lambda: readout([0], [5], unit="a", topology="line", limits=(0, 1)),
    "two levels read": lambda: readout([0, 1], [0, 0], limits=(-0.5, 1.5), **LEVELS),
    "one angle": lambda: polar([0.0], [0.0]),
    "one step": lambda: build_turned(np.zeros((1, 1, 1, 1)), ONE, ONE, [ODD]),
    "large images": lambda: build_turned(np.zeros((1, 300, 300, 3)), ONE, ONE, ["a"]),
    "constant curve": lambda: shift(8, [1, 2], {"a": [0.0, 0.0]}),
    "one parameter": lambda: control([0.0], np.zeros((3, 1)), chance=0.0),
    "no error": lambda: control(range(6), np.zeros((3, 6)), chance=0.0),
    "no error finite": lambda: control(range(6), np.full((3, 6), np.nan)),
    "nothing finite": lambda: shift(8, [1, 2], {"a": [np.nan] * 2}),
    "one point": lambda: build_embedding(
        {"PCA": np.zeros((1, 2))},
        classes=[0],
        class_names=["a"],
        parameters=[Coloring("b", np.array([1.0]))],
    ),
    "absent classes": lambda: build_embedding(
        points(3), classes=[1, 1, 1], class_names=["a", "b"]
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_is_drawn(tmp_path, case):
    style.save(tmp_path / "picture.png", DEGENERATE[case]())
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.convert("L").getextrema()[0] < 128
        assert picture.width <= 1300


DRAWN = {
    "confusion": (confusion, ([[5]], ["a"]), {}),
    "marginals": (
        marginals_of,
        (ONE[0], ONE, ONE),
        {"unit": "a", "topology": "line"},
    ),
    "readout": (
        readout,
        ([0], [1]),
        {"unit": "a", "topology": "line", "limits": (0, 1)},
    ),
    "polar": (polar, ([0.0], [0.0]), {}),
    "turned": (build_turned, (np.zeros((1, 8, 8, 1)), ONE, ONE, ["a"]), {}),
    "shift": (shift, (8, [1], {"a": [1.0]}), {}),
    "control": (control, ([0.0], np.ones((3, 1))), {}),
    "embedding": (
        build_embedding,
        (points(2),),
        {"classes": [0, 1], "class_names": ["a", "b"]},
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_whole_or_not_there(tmp_path, name, monkeypatch):
    """Until the new one is whole the old file stays, and no setting has changed."""
    build, positional, options = DRAWN[name]
    before, path = dict(matplotlib.rcParams), tmp_path / "new" / "drawn.png"
    style.save(path, build(*positional, title=ODD, **options))
    assert dict(matplotlib.rcParams) == before
    with Image.open(path) as picture:
        picture.load()

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(style.os, "replace", fail)
    whole = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        style.save(path, build(*positional, title="other", **options))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", DRAWN)
def test_dollars_are_dollars(name):
    build, positional, options = DRAWN[name]
    figure = build(*positional, title=ODD, **options)
    odd = [text for text in figure.findobj(Text) if ODD in text.get_text()]
    assert odd
    assert not any(text.get_parse_math() for text in odd)
