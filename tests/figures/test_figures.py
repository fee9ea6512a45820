"""Tests of the pictures: what is drawn, where, and that files are whole."""

import errno
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from layout import check_apart
from PIL import Image

from duet_jax.augmentations import Options, make_stack
from duet_jax.figures import (
    build_curves,
    build_overlay,
    build_views,
    draw_curves,
    draw_views,
    style,
)
from duet_jax.figures.canvas import HEADER, MARGIN
from duet_jax.types import View

# Views


def make_view(codes, *, n=8, side=32, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-0.5, 0.5, (n, side, side, channels)).astype(np.float32)
    return View(
        jnp.asarray(images), {code: jnp.asarray(rng.uniform(size=n)) for code in codes}
    )


def shown_images(figure):
    return [image for axes in figure.axes for image in axes.images]


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("channels", [1, 3])
def test_both_views_are_drawn_above_each_other(channels):
    view1 = make_view(["sca"], channels=channels, seed=1)
    view2 = make_view(["sca"], channels=channels, seed=2)
    images = shown_images(build_views(view1, view2))
    assert len(images) == 16
    for number, image in enumerate(images):
        view = (view1, view2)[number // 8]
        expected = np.asarray(view.images[number % 8]) + 0.5
        expected = expected[..., 0] if channels == 1 else expected
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
        assert image.get_clim() == (0, 1)
    boxes = [image.axes.get_position() for image in images]
    for above, below in zip(boxes[:8], boxes[8:], strict=True):
        assert above.x0 == below.x0
        assert above.y0 > below.y1
    lefts = [box.x0 for box in boxes[:8]]
    assert lefts == sorted(lefts)


def test_pixels_outside_of_the_range_are_clipped():
    view = View(np.array([-1.0, 0.0, 2.0]).reshape(3, 1, 1, 1), {})
    images = shown_images(build_views(view, view))
    assert [float(image.get_array()[0, 0]) for image in images[:3]] == [0, 0.5, 1]


@pytest.mark.parametrize(("side", "drawn"), [(28, 112), (32, 128), (36, 108)])
def test_every_pixel_is_a_whole_number_of_pixels(tmp_path, side, drawn):
    """The file holds the image's own values, each `drawn / side` pixels wide."""
    view = make_view([], n=2, side=side)
    draw_views(tmp_path / "views.png", view, view)
    picture = np.asarray(Image.open(tmp_path / "views.png").convert("RGB"))
    top, left, step = HEADER, MARGIN, drawn // side
    cut = picture[top : top + drawn, left : left + drawn]
    expected = np.asarray(view.images[0]) + 0.5
    enlarged = expected.repeat(step, axis=0).repeat(step, axis=1)
    np.testing.assert_allclose(cut / 255, enlarged, atol=1 / 255)


def test_the_original_comes_first_at_its_own_size():
    """Images may be larger than the views that are cut from them."""
    view, rng = make_view(["sca"], n=3, side=16), np.random.default_rng(5)
    original = rng.uniform(-0.5, 0.5, (3, 24, 24, 3)).astype(np.float32)
    figure = build_views(view, view, original=original)
    images = shown_images(figure)
    assert len(images) == 9
    for image, expected in zip(images[:3], original, strict=True):
        np.testing.assert_allclose(image.get_array(), expected + 0.5, atol=1e-6)
    pixels = [image.axes.get_window_extent().width for image in (images[0], images[3])]
    np.testing.assert_allclose(pixels, [120, 128])  # five and eight for one
    assert {"original", "view 1", "view 2"} <= set(texts(figure))


def test_parameters_are_in_their_own_units():
    stack = make_stack(
        ("sca", "rot", "fli", "gra"),
        input_side=32,
        image_size=32,
        channels=3,
        options=Options(),
    )
    values = {
        "sca": jnp.array([0.0, 0.5]),
        "rot": jnp.array([0.25, 0.499]),
        "fli": jnp.array([0.25, 0.75]),
        "gra": jnp.array([0.0, 1.0]),
    }
    view = View(make_view([], n=2).images, values)
    figure = build_views(view, view, learned=("rot",), scales=stack.scales)
    written = texts(figure)
    assert {"rot -90°", "rot 0°"} <= set(written)  # not minus zero
    assert {"sca 1.00  fli 0", "sca 0.52  fli 1", "gra 0", "gra 1"} <= set(written)
    units = "sca: side of the crop / side of the image · rot: degrees · fli: mirrored"
    assert " ".join(written).find(units) > 0
    gauges = [axes for axes in figure.axes if axes.lines]
    marks = [axes.lines[-1].get_xdata()[0] for axes in gauges]
    np.testing.assert_allclose(marks, [0.25, 0.499] * 2)


def test_every_value_is_written_and_the_learned_one_stands_out():
    codes = ["sca", "rot", "fli", "gra"]
    view1, view2 = make_view(codes, seed=1), make_view(codes, seed=2)
    figure = build_views(view1, view2, learned=("rot",), title="a title")
    written = texts(figure)
    assert written[0] == "a title"
    bold = [t.get_text() for t in figure.texts[1:] if t.get_weight() == "bold"]
    values = [v for view in (view1, view2) for v in np.asarray(view.structure["rot"])]
    assert bold == [f"rot {value:.2f}" for value in values]
    gauges = [axes for axes in figure.axes if axes.lines]
    marks = [axes.lines[-1].get_xdata()[0] for axes in gauges]
    np.testing.assert_allclose(marks, values, rtol=1e-6)
    for view in (view1, view2):
        for n in range(8):
            sca, fli, gra = (float(view.structure[c][n]) for c in ("sca", "fli", "gra"))
            assert f"sca {sca:.2f}  fli {fli:.2f}" in written
            assert f"gra {gra:.2f}" in written
    assert sum(text.startswith("rot") for text in written) == 16


def test_a_view_without_the_learned_value_has_no_gauge():
    view = make_view(["sca"], n=2)
    figure = build_views(view, view, learned=("rot",))
    assert len(figure.axes) == 4
    assert not any("rot" in text for text in texts(figure))


def test_the_half_size_view_is_half_the_size():
    view = make_view(["sca"], n=4)
    half = make_view([], n=4, side=16, seed=3)
    for targets, written in (
        (np.arange(4), ["ron 0", "ron 1", "ron 2", "ron 3"]),
        (np.array([-0.5, 0.25, 1.4, 0.0]), ["ron -0.50", "ron 0.25", "ron 1.40"]),
    ):
        targets = jnp.asarray(targets)
        half = View(half.images, {"ron": targets})
        figure = build_views(view, view, half_size=half, learned=("ron",))
        widths = [image.axes.get_position().width for image in shown_images(figure)]
        np.testing.assert_allclose(widths, [widths[0]] * 8 + [widths[0] / 2] * 4)
        assert set(written) <= set(texts(figure))
        assert len(figure.axes) == 12


@pytest.mark.parametrize(("given", "drawn"), [(1, 1), (3, 3), (8, 8), (20, 8)])
def test_at_most_eight_images_are_drawn(given, drawn):
    view = make_view(["sca"], n=given, side=8)
    assert len(shown_images(build_views(view, view))) == 2 * drawn


ALL_CODES = [
    "sca",
    "rot",
    "ron",
    "fli",
    "flv",
    "gra",
    "blu",
    "bri",
    "con",
    "sat",
    "hue",
]


@pytest.mark.parametrize("n", [3, 8])
def test_nothing_written_overlaps_or_leaves_the_picture(n):
    view = make_view(ALL_CODES, n=n, side=28)
    half = View(view.images[:, ::2, ::2], {"blu": np.arange(n)})
    stack = make_stack(
        tuple(ALL_CODES),
        input_side=28,
        image_size=28,
        channels=3,
        options=Options(),
    )
    figure = build_views(
        view,
        view,
        learned=("rot",),
        half_size=half,
        title="the first views",
        original=np.asarray(view.images),
        scales=stack.scales,
    )
    style.sign(figure, style.small_print("duet", "cifar10", 0, 0))
    plots = [axes for axes in figure.axes if axes.lines]
    check_apart(figure, [*shown_images(figure), *plots])


# Curves


# What a test row has of augmented views too.
AUGMENTED = ("loss", "nt_xent", "online_top1")


def make_rows(epochs, per_epoch=1, part="structure_loss", test_every=2):
    rows = []
    for step in range(1, epochs * per_epoch + 1):
        epoch = step / per_epoch
        row = {
            "step": step,
            "epoch": epoch,
            "nt_xent": 5 - epoch / epochs,
            "loss": 6 - epoch / epochs,
            "online_top1": 0.5 * epoch / epochs,
            "online_top5": 0.9 * epoch / epochs,
        }
        row |= {part: 0.1 * epoch} if part else {}
        own = {"split": "train", "learning_rate": 4e-4, "images_per_second": 800.0}
        rows.append(row | own)
        if epoch % test_every == 0:
            augmented = {f"augmented_{name}": row[name] for name in AUGMENTED}
            test = row | augmented | {"split": "test", "loss": row["loss"] + 1}
            rows.append(test | {"augmented_loss": row["loss"] + 0.5})
    return rows


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def curve(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_xdata(), line.get_ydata()


AUGMENTED_TOP1 = "online probe, augmented images [%]"
PLAIN_TOP1 = "online probe, plain images [%]"
SHARED = [
    "loss",
    "NT-Xent",
    AUGMENTED_TOP1,
    PLAIN_TOP1,
    "learning rate",
    "images per second",
]


@pytest.mark.parametrize(
    ("part", "panel"),
    [
        (None, None),
        ("structure_loss", "structure loss (Jensen-Shannon)"),
        ("prediction_loss", "prediction loss"),
        ("equivariance_loss", "equivariance loss"),
    ],
)
def test_each_method_gets_the_panels_of_its_losses(part, panel):
    figure = build_curves(make_rows(6, part=part))
    expected = [*SHARED[:2], *([panel] if panel else []), *SHARED[2:]]
    assert list(panels(figure)) == expected


def test_panels_hold_the_rows():
    rows = make_rows(6, per_epoch=3)
    drawn = panels(build_curves(rows, num_classes=10))
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    for panel, split, name, scale in (
        ("loss", "train", "loss", 1),
        ("loss", "test", "augmented_loss", 1),
        ("NT-Xent", "train", "nt_xent", 1),
        ("NT-Xent", "test", "augmented_nt_xent", 1),
        ("structure loss (Jensen-Shannon)", "train", "structure_loss", 1),
        ("structure loss (Jensen-Shannon)", "test", "structure_loss", 1),
        (AUGMENTED_TOP1, "train", "online_top1", 100),
        (AUGMENTED_TOP1, "test", "augmented_online_top1", 100),
        (PLAIN_TOP1, "test", "online_top1", 100),
        (PLAIN_TOP1, "test", "online_top5", 100),
    ):
        of_split = train if split == "train" else test
        x, y = curve(drawn[panel], f"{split} {name}")
        np.testing.assert_allclose(x, [row["epoch"] for row in of_split])
        np.testing.assert_allclose(y, [scale * row[name] for row in of_split])
    # Like with like: no plain test loss beside that of augmented training images.
    assert {line.get_label() for line in drawn["loss"].lines} == {
        "train loss",
        "test augmented_loss",
    }
    np.testing.assert_allclose(
        curve(drawn["learning rate"], "train learning_rate")[1], 4e-4
    )
    np.testing.assert_allclose(
        curve(drawn["images per second"], "train images_per_second")[1], 800
    )
    for panel in (AUGMENTED_TOP1, PLAIN_TOP1):
        assert curve(drawn[panel], "chance")[1] == [10, 10]
    assert {axes.get_xlabel() for axes in drawn.values()} == {"epoch"}


def test_colours_tell_splits_and_strokes_tell_accuracies():
    drawn = panels(build_curves(make_rows(6)))
    style = {
        line.get_label(): (line.get_color(), line.get_linestyle())
        for axes in drawn.values()
        for line in axes.lines
    }
    blue, orange = style["train loss"][0], style["test augmented_loss"][0]
    assert blue != orange
    for label, (colour, stroke) in style.items():
        assert colour == (blue if label.startswith("train") else orange)
        assert stroke == ("--" if label.endswith("top5") else "-")


def test_the_legend_is_above_all_panels():
    figure = build_curves(make_rows(6), num_classes=10, title="duet")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "train",
        "test",
        "top-1",
        "top-5",
        "chance",
    ]
    bottom = legend.get_window_extent().y0
    assert all(axes.get_tightbbox().y1 <= bottom for axes in figure.axes)
    assert all(axes.get_legend() is None for axes in figure.axes)
    assert legend.get_window_extent().x0 > figure._suptitle.get_window_extent().x1


def test_one_row_is_visible():
    axes = panels(build_curves(make_rows(1)))["loss"]
    (line,) = axes.lines
    assert line.get_marker() == "o"
    assert line.get_ydata() == [5]
    assert [
        t.get_text() for t in build_curves(make_rows(1)).legends[0].get_texts()
    ] == [
        "train",
        "top-1",
        "top-5",
    ]


def test_without_rows_it_says_so():
    figure = build_curves([])
    assert figure.axes == []
    assert "no metrics yet" in texts(figure)


def test_values_that_are_not_finite_leave_a_gap():
    rows = make_rows(5, test_every=10)
    for row, value in zip(rows[1:4], (None, np.nan, np.inf), strict=True):
        row["loss"] = value
    del rows[4]["nt_xent"]
    drawn = panels(build_curves(rows))
    np.testing.assert_allclose(
        curve(drawn["loss"], "train loss")[1], [5.8, np.nan, np.nan, np.nan, 5]
    )
    assert len(curve(drawn["NT-Xent"], "train nt_xent")[0]) == 4


def test_a_quantity_that_is_never_finite_has_no_panel():
    rows = [row | {"loss": None, "augmented_loss": None} for row in make_rows(5)]
    assert "loss" not in panels(build_curves(rows))


def test_without_epochs_the_axis_counts_steps():
    rows = [{"step": 3, "split": "train", "loss": 1.0}]
    axes = panels(build_curves(rows))["loss"]
    assert axes.get_xlabel() == "step"
    assert curve(axes, "train loss")[0] == [3]


def test_ten_thousand_rows_are_smoothed_and_still_all_there():
    rows = make_rows(500, per_epoch=20)
    assert len(rows) > 10_000
    rng = np.random.default_rng(0)
    for row in rows:
        row["loss"] += 0.2 * rng.normal()
    drawn = panels(build_curves(rows))
    x, y = curve(drawn["loss"], "train loss")
    expected = [row["loss"] for row in rows if row["split"] == "train"]
    np.testing.assert_allclose(y, expected)
    mean_x, mean_y = curve(drawn["loss"], "train loss, mean")
    assert len(mean_x) == 10_000 - 200 + 1
    np.testing.assert_allclose(mean_x[0], np.mean(x[:200]))
    np.testing.assert_allclose(mean_y[-1], np.mean(expected[-200:]))
    assert np.abs(mean_y - (6 - mean_x / 500)).max() < 0.08  # 5 deviations of a mean
    assert len(drawn["learning rate"].lines) == 1  # known exactly, so not smoothed


def test_runs_lie_over_each_other():
    """A color is a run, a stroke is a split."""
    runs = {"a": make_rows(6), "b": make_rows(9, part="prediction_loss")}
    figure = build_overlay(runs, num_classes=10)
    drawn = panels(figure)
    assert "structure loss (Jensen-Shannon)" in drawn
    assert len(drawn["prediction loss"].lines) == 2
    lines = drawn["loss"].lines
    looks = [(line.get_label(), line.get_linestyle()) for line in lines]
    assert looks == [("train loss", "-"), ("test augmented_loss", "--")] * 2
    first, second = ({line.get_color() for line in lines[i : i + 2]} for i in (0, 2))
    assert len(first) == len(second) == len(first - second) == 1
    assert [len(line.get_xdata()) for line in lines] == [6, 3, 9, 4]
    # The longer run is not cut where the shorter one ends.
    assert drawn["loss"].get_xlim()[1] >= 9
    assert drawn[AUGMENTED_TOP1].get_ylim()[1] >= 50
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["a", "b", "train", "test", "chance"]


def test_monitors_have_three_panels():
    """In rows that have them: those of older runs have none."""
    names = ("rank_me", "lidar", "alpha_req", "uniformity", "alignment")
    rows = make_rows(4, part=None)
    later = [row for row in rows if row["split"] == "test"][1:]
    for row in later:
        row |= {name: number + row["epoch"] for number, name in enumerate(names)}
    drawn = panels(build_curves(rows))
    assert list(drawn) == [
        *SHARED[:4],
        "RankMe (solid), LiDAR (dashed)",
        "alpha-ReQ",
        "uniformity (solid), alignment (dashed)",
        *SHARED[4:],
    ]
    for axes in [*drawn.values()][4:7]:
        for line, stroke in zip(axes.lines, ["-", "--"], strict=False):
            name = line.get_label().removeprefix("test ")
            assert line.get_linestyle() == stroke
            assert [*line.get_ydata()] == [row[name] for row in later]
    alone = panels(build_overlay({"a": rows, "b": make_rows(4, part=None)}))
    for title, name in (("RankMe", "rank_me"), ("uniformity", "uniformity")):
        (line,) = alone[title].lines
        assert line.get_label() == f"test {name}"


def test_many_rows_of_runs_are_only_their_mean():
    runs = {name: make_rows(250, test_every=300) for name in "ab"}
    lines = panels(build_overlay(runs))["loss"].lines
    assert [line.get_label() for line in lines] == ["train loss, mean"] * 2


# Files


def test_files_are_whole_and_of_the_right_size(tmp_path):
    view = make_view(["sca"], n=8)
    draw_views(tmp_path / "new" / "views.png", view, view, title="t")
    draw_curves(tmp_path / "new" / "curves.png", make_rows(6))
    draw_curves(tmp_path / "new" / "curves.png", make_rows(7))
    assert sorted(os.listdir(tmp_path / "new")) == [
        "curves.png",
        "curves.svg",
        "views.png",
        "views.svg",
    ]
    expected = {
        "views.png": (78 + 8 * (128 + 16), 48 + 2 * (128 + 14 + 20) + style.FOOT),
        "curves.png": (1200, 1000 + style.FOOT),
    }
    for name, size in expected.items():
        with Image.open(tmp_path / "new" / name) as picture:
            picture.load()
            assert picture.size == size
            assert picture.convert("L").getextrema() != (255, 255)


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    draw_curves(path, make_rows(3))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(style.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(path, make_rows(4))
    assert path.read_bytes() == before


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in "ab":
        draw_curves(tmp_path / f"{name}.png", make_rows(3), small_print="duet · digits")
    for suffix in ("png", "svg"):
        one, other = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in "ab")
        assert one == other


def test_no_window_system_is_touched():
    script = "import sys, duet_jax.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
