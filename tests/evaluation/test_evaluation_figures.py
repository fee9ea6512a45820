"""Tests of the pictures of an evaluation: what they show, and that nothing odd fails.

Warnings are errors here, so a picture that is drawn at all divides by no zero and finds
no two equal limits.
"""

import errno
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from duet_jax.figures import (
    build_bars,
    build_confusion,
    build_embedding,
    build_marginals,
    build_polar,
    build_readout,
    build_shift,
    build_turned,
    style,
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


# Bars


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_bars_are_means_of_seeds():
    panels = {
        "probe": {
            "duet": {"rot": [50.0, 70.0], "hue": [40.0]},
            "simclr": {"": [30.0, 20.0], "rot": [10.0]},
        },
        ODD: {"duet": {"hue": [-0.5, 0.5, 0.3]}},
    }
    figure = drawn(build_bars(panels, title=ODD))
    first, second = figure.axes
    assert titles(figure) == ["probe", ODD]
    for axes in figure.axes:
        assert names(axes.get_xticklabels()) == ["rot", "hue"]
    np.testing.assert_allclose(heights(first), [10, 60, 40])  # simclr, duet, duet
    np.testing.assert_allclose(heights(second), [0.1])
    across = [line for line in first.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in across] == [25.0]
    legend = names(figure.legends[0].get_texts())
    assert legend == ["SimCLR", "DUET", "SimCLR without it", "one seed"]


def test_bars_show_each_seed_and_the_deviation():
    figure = drawn(build_bars({"x": {"duet": {"a": [1.0, 2.0, 6.0]}}}))
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.sort(dots[0].get_ydata()), [1, 2, 6])
    (whisker,) = axes.collections
    ((_, low), (_, high)) = whisker.get_segments()[0]
    spread = np.std([1.0, 2.0, 6.0], ddof=1)
    np.testing.assert_allclose([low, high], [3 - spread, 3 + spread])


def test_a_method_without_cases_has_one_bar():
    figure = drawn(build_bars({"x": {"simclr": {"": [40.0]}}}))
    (axes,) = figure.axes
    np.testing.assert_allclose(heights(axes), [40])
    assert names(axes.get_xticklabels()) == ["(none)"]
    assert names(figure.legends[0].get_texts()) == ["SimCLR", "one seed"]


def test_many_cases_fit():
    cases = {f"code-{n}": [float(n)] for n in range(40)}
    drawn(build_bars({"x": {"other": cases, "duet": cases, "essl": cases}}))


# Confusion


def test_rows_of_the_confusion_are_percentages_of_their_class():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 398]])
    figure = drawn(build_confusion(matrix, ["cat", ODD, "dog"], title=ODD))
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
    axes = drawn(build_confusion(np.eye(2), ["a", "b"])).axes[0]
    assert axes.get_ylabel() == "true class"


@pytest.mark.parametrize(
    ("classes", "named", "numbers"), [(20, 20, True), (21, 21, False), (100, 25, False)]
)
def test_many_classes_have_no_numbers_and_few_names(classes, named, numbers):
    axes = drawn(build_confusion(np.eye(classes), ["a"] * classes)).axes[0]
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
    axes = drawn(build_confusion(np.eye(2), ["x" * 50, "y" * 20])).axes[0]
    assert names(axes.get_xticklabels()) == ["x" * 19 + "…", "y" * 20]


def test_more_classes_than_pixels_show_the_largest_share_of_a_block():
    matrix = np.eye(1001)
    matrix[5] = 0
    matrix[6, 6], matrix[6, 700] = 3, 1
    matrix[[10, 11]] = 0
    axes = drawn(build_confusion(matrix, ["n"] * 1001)).axes[0]
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
    figure = drawn(build_marginals(parameters, marginals, targets, **options))
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
    figure = drawn(build_marginals(degrees, marginals, targets, **options))
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
    assert figure._supxlabel.get_text() == "parameter [degrees]"


@pytest.mark.parametrize("n", [1, 2, 30])
def test_marginals_of_equal_parameters_make_one_stripe(n):
    marginals = np.full((n, 4), 0.25)
    options = {"unit": ODD, "topology": "line"}
    figure = drawn(build_marginals(np.full(n, 3.0), marginals, marginals, **options))
    shown = figure.axes[0].images[0].get_array()
    filled = ~np.ma.getmaskarray(shown)
    assert filled.any(axis=0).sum() == 1
    np.testing.assert_allclose(shown.compressed(), 0.25)


# Read-out


def test_the_reading_is_a_share_of_its_column():
    true = np.repeat([0.1, 0.9], [30, 10])
    predicted = np.concatenate([np.full(15, 0.1), np.full(15, 0.6), np.full(10, 7.0)])
    options = {"unit": "factor", "topology": "line", "limits": (0, 1)}
    axes = drawn(build_readout(true, predicted, **options)).axes[0]
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
    axes = drawn(build_readout(true, predicted, **options)).axes[0]
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
    axes = drawn(build_readout(true, true, **options)).axes[0]
    percent = axes.collections[0].get_array().reshape(8, 4)
    np.testing.assert_array_equal(percent.argmax(axis=0), [1, 3, 5, 7])
    np.testing.assert_array_equal(percent.max(axis=0), 100)
    assert names(axes.get_xticklabels()) == ["0", "1", "2", "3"]


def test_a_column_of_few_images_does_not_set_the_colours():
    rng = np.random.default_rng(0)
    true = np.append(rng.uniform(0, 0.5, 600), 0.99)
    predicted = np.append(rng.uniform(0, 1, 600), 0.99)
    options = {"unit": "factor", "topology": "line", "limits": (0, 1)}
    mesh = drawn(build_readout(true, predicted, **options)).axes[0].collections[0]
    assert mesh.get_array().max() == 100
    assert mesh.get_clim()[1] < 40


# Circles


def test_the_error_is_wrapped_and_told_by_sector():
    true = np.deg2rad([170.0, 172, 90, 90, 90, -1])
    read = np.deg2rad([-170.0, -168, 100, 110, 90, 178])
    figure = drawn(build_polar(true, read))
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
    figure = drawn(build_polar(true, np.deg2rad(np.linspace(160, 200, 101))))
    bars = figure.axes[0].patches
    # One band, seen at both edges of the ring.
    ends = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars)
    np.testing.assert_allclose(ends, [(-196, -164), (164, 196)], atol=1e-6)
    assert figure.axes[0].get_ylim() == (-180, 180)


@pytest.mark.parametrize(("size", "limit"), [(0, 30), (29, 30), (31, 60), (100, 180)])
def test_the_ring_is_as_wide_as_the_errors(size, limit):
    figure = drawn(build_polar(np.zeros(1), np.deg2rad([size])))
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


def test_curves_by_shift_with_and_without_a_band():
    shifts = np.arange(4)
    band = np.array([[0.4, 0.5, 0.6, 0.7], [0.3, 0.4, 0.5, 0.6], [0.5, 0.6, 0.7, 0.8]])
    curves = {"shifted bins": [0.1, 0.1, np.nan, 0.2], ODD: band}
    figure = drawn(build_shift(shifts, curves, ylabel="relative error", title=ODD))
    (axes,) = figure.axes
    shifted, odd = axes.lines[:2]
    np.testing.assert_array_equal(shifted.get_ydata(), curves["shifted bins"])
    np.testing.assert_array_equal(odd.get_ydata(), band[0])
    np.testing.assert_array_equal(odd.get_xdata(), shifts)
    (area,) = axes.collections
    assert area.get_datalim(axes.transData).extents.tolist() == [0, 0.3, 3, 0.8]
    assert in_legend(axes) == ["shifted bins", ODD]
    assert axes.get_title(loc="left") == "relative error"
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines[:2]}
    assert len(looks) == 2
    below = axes.get_legend().get_window_extent().y1
    assert below <= axes.xaxis.label.get_window_extent().y0
    assert axes.get_legend().get_window_extent().y0 >= 0


def test_one_shift_is_visible():
    figure = drawn(build_shift([3], {"no shift": [0.5]}, ylabel="cosine"))
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
    options = {"values": values, "name": "rotation", "unit": "degrees"}
    options |= {"circular": True, "limits": (-180, 180), "title": ODD}
    class_names = ["cat", ODD, "x" * 40]
    figure = build_embedding(
        places, classes=classes, class_names=class_names, **options
    )
    found = panels(drawn(figure))
    assert list(found) == [
        "PCA, by class",
        "t-SNE, by class",
        "PCA, by rotation",
        "t-SNE, by rotation",
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
    options = {"values": [0.0, 1.0], "name": "a", "circular": True}
    figure = build_embedding(points(2), classes=[0, 0], class_names=["a"], **options)
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


# All of them

LEVELS = {"unit": "mirrored", "topology": "circle", "levels": (0, 1)}
ONE = np.ones((1, 1))
# What an evaluation of next to nothing hands over.
DEGENERATE = {
    "one class": lambda: build_confusion([[5]], ["a"]),
    "no examples": lambda: build_confusion(np.zeros((3, 3)), ["a", "b", "c"]),
    "one bin": lambda: build_marginals(ONE[0], ONE, ONE, unit="a", topology="line"),
    "two levels": lambda: build_marginals(
        np.array([0, 1, 1]), *np.full((2, 3, 2), 0.5), **LEVELS
    ),
    "one level seen": lambda: build_marginals(
        np.array([1]), *np.full((2, 1, 2), 0.5), **LEVELS
    ),
    "one reading": lambda: build_readout(
        [0], [5], unit="a", topology="line", limits=(0, 1)
    ),
    "two levels read": lambda: build_readout(
        [0, 1], [0, 0], limits=(-0.5, 1.5), **LEVELS
    ),
    "one angle": lambda: build_polar([0.0], [0.0]),
    "one step": lambda: build_turned(np.zeros((1, 1, 1, 1)), ONE, ONE, [ODD]),
    "large images": lambda: build_turned(np.zeros((1, 300, 300, 3)), ONE, ONE, ["a"]),
    "constant curve": lambda: build_shift([0, 1], {"a": [0.0, 0.0]}, ylabel="b"),
    "nothing finite": lambda: build_shift([0, 1], {"a": [np.nan] * 2}, ylabel="b"),
    "one point": lambda: build_embedding(
        {"PCA": np.zeros((1, 2))},
        classes=[0],
        class_names=["a"],
        values=[1.0],
        name="b",
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
    "confusion": (build_confusion, ([[5]], ["a"]), {}),
    "marginals": (
        build_marginals,
        (ONE[0], ONE, ONE),
        {"unit": "a", "topology": "line"},
    ),
    "readout": (
        build_readout,
        ([0], [1]),
        {"unit": "a", "topology": "line", "limits": (0, 1)},
    ),
    "polar": (build_polar, ([0.0], [0.0]), {}),
    "turned": (build_turned, (np.zeros((1, 8, 8, 1)), ONE, ONE, ["a"]), {}),
    "shift": (build_shift, ([0], {"a": [1.0]}), {"ylabel": "b"}),
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
