"""Tests of the pictures of decoded images: their values, colors, marks and ranges."""

import json

import numpy as np
import pytest
from layout import check_apart
from matplotlib.colors import to_hex

from duet_jax.evaluation.store import plain
from duet_jax.figures import (
    Control,
    Drawing,
    build_control,
    build_reconstructions,
    draw,
    restored,
    style,
)
from duet_jax.metrics.knobs import KNOBS, best_knob

PREDICTIONS = (*KNOBS, "oracle", "unchanged", "another image", "real image")
PLAIN = PREDICTIONS[2:]  # of an encoder without bins


def angles(number=24):
    """Over the whole circle, that of the image as it is first."""
    turned = 360 * np.arange(number) / number
    return (turned + 180) % 360 - 180


def errors(names, parameters, scale, seed):
    """A mean within its interval for every prediction."""
    rng = np.random.default_rng(seed)
    low, middle, high = np.sort(
        rng.uniform(0, scale, (len(names), 3, len(parameters))), axis=1
    ).transpose(1, 0, 2)
    each = zip(names, middle, low, high, strict=True)
    return {name: np.stack(values) for name, *values in each}


def control(names=PREDICTIONS, parameters=None, *, scale=1.0, seed=0, **changes):
    parameters = angles() if parameters is None else np.asarray(parameters, float)
    mse = errors(names, parameters, 0.1 * scale, seed)
    error = errors(names, parameters, 120 * scale, seed + 1)
    made = Control("degrees", "circle", parameters, mse, error, 90.0, False)
    return made._replace(**changes)


def with_mse(panel, **means):
    """The same with constant squared errors."""
    flat = {name.replace("_", " "): value for name, value in means.items()}
    ones = np.ones_like(panel.parameters)
    return panel._replace(
        mse=panel.mse
        | {name: np.stack([value * ones] * 3) for name, value in flat.items()}
    )


def levels(names=PREDICTIONS, number=4, **changes):
    """A parameter of few values."""
    mse, error = (errors(names, range(number), top, 3) for top in (0.1, 1.0))
    made = control(names, range(number), unit="quarter turns", mse=mse, error=error)
    return made._replace(chance=0.75, levels=True, **changes)


def lines(axes):
    """Of the predictions, by name."""
    named = {line.get_label(): line for line in axes.lines}
    return {name: line for name, line in named.items() if name[0] != "_"}


def dotted(axes):
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def in_legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def pairs(figure):
    return list(zip(figure.axes[::2], figure.axes[1::2], strict=True))


def band(axes, number):
    """Lower and upper end of a band along its parameters, [2, F]."""
    corners = axes.collections[number].get_paths()[0].vertices
    x = np.unique(corners[:, 0])
    ends = [corners[corners[:, 0] == each, 1] for each in x]
    return np.array([(each.min(), each.max()) for each in ends]).T


# Control


def test_lines_hold_the_errors_in_the_order_of_the_parameter():
    panel = control()
    figure = build_control({"": panel}, title="t")
    ((left, right),) = pairs(figure)
    order = np.argsort(panel.parameters)
    for axes, values in ((left, panel.mse), (right, panel.error)):
        for number, (name, line) in enumerate(lines(axes).items()):
            # The end of the circle is its beginning.
            np.testing.assert_allclose(line.get_xdata()[:-1], panel.parameters[order])
            assert line.get_xdata()[-1] == pytest.approx(180)
            np.testing.assert_allclose(line.get_ydata()[:-1], values[name][0, order])
            assert line.get_ydata()[-1] == line.get_ydata()[0]
            ends = values[name][1:, order]
            np.testing.assert_allclose(band(axes, number)[:, :-1], ends)
    # It is not decoded.
    assert [*lines(left)] == [*PREDICTIONS[:-1]]
    assert [*lines(right)] == in_legend(right)[:-1] == [*PREDICTIONS]
    assert in_legend(right)[-1] == "chance"
    assert dotted(right) == [90]
    assert dotted(left) == []
    assert left.get_ylim()[0] == right.get_ylim()[0] == 0
    assert right.get_ylabel() == "error [degrees]"
    assert left.get_legend() is None


def test_a_line_that_is_no_circle_is_not_closed():
    panel = control(("linear map",), np.linspace(0, 1, 9), topology="line")
    ((left, _),) = pairs(build_control({"": panel}))
    np.testing.assert_array_equal(
        lines(left)["linear map"].get_xdata(), panel.parameters
    )


def test_few_parameters_are_points_with_bars():
    panel = levels()
    ((left, right),) = pairs(build_control({"": panel}))
    for axes, values in ((left, panel.mse), (right, panel.error)):
        apart = []
        for bars, (name, line) in zip(
            axes.collections, lines(axes).items(), strict=True
        ):
            assert line.get_linestyle() == "None"
            np.testing.assert_array_equal(line.get_ydata(), values[name][0])
            np.testing.assert_array_equal(np.round(line.get_xdata()), range(4))
            apart.append(line.get_xdata()[0])
            ends = np.array([each[:, 1] for each in bars.get_segments()]).T
            np.testing.assert_array_equal(ends, values[name][1:])
        assert len({*apart}) == len(apart)
        shown = [text.get_text() for text in axes.get_xticklabels()]
        assert shown == ["0", "1", "2", "3"]
    assert right.get_ylabel() == "share of wrong levels"
    assert dotted(right) == [0.75]


def look(line):
    return to_hex(line.get_color()), line.get_marker(), line.get_linestyle()


def test_a_prediction_looks_the_same_everywhere():
    """Whichever others a run has; and no two look alike, also without colors."""
    figure = build_control({"a": control(), "b": control(PLAIN, seed=4)})
    seen = {}
    for axes in figure.axes[2:]:
        for name, line in lines(axes).items():
            assert seen.setdefault(name, look(line)) == look(line)
    assert [seen[name][0] for name in PREDICTIONS] == [*style.SERIES[:7]]
    assert len({mark for _, mark, _ in seen.values()}) == len(seen)
    handles = figure.axes[3].get_legend().legend_handles
    assert [look(each) for each in handles[:-1]] == [seen[n] for n in PREDICTIONS]
    ((alone, _),) = pairs(build_control({"": control(PLAIN)}))
    for name, line in lines(alone).items():
        assert look(line) == seen[name]
    for name, line in lines(pairs(build_control({"": levels(PLAIN)}))[0][1]).items():
        assert look(line)[:2] == seen[name][:2]


def test_runs_are_compared_by_their_best_knobs():
    panels = {
        "duet": with_mse(control(), steer=0.3, shift=0.01, linear_map=0.02),
        "simclr": with_mse(control(PLAIN, seed=4), linear_map=0.03, oracle=0.001),
        "none": control(("oracle", "unchanged"), seed=6),
    }
    figure = build_control(panels)
    first, *rows = pairs(figure)
    best = {"duet: shift": "duet", "simclr: linear map": "simclr"}
    assert [*lines(first[0])] == [*lines(first[1])] == in_legend(first[1]) == [*best]
    for axes, kind in zip(first, ("mse", "error"), strict=True):
        for name, line in lines(axes).items():
            panel, prediction = panels[best[name]], name.partition(": ")[2]
            values = getattr(panel, kind)[prediction][0, np.argsort(panel.parameters)]
            np.testing.assert_allclose(line.get_ydata()[:-1], values)
            assert look(line)[0] == look(lines(rows[0][0])[prediction])[0]
    assert len({look(line) for line in lines(first[0]).values()}) == 2
    names = [f"{name}: decoded image" for name in ("best knobs", *panels)]
    assert titles(figure)[::2] == names
    # One legend of the predictions, and chance in every row.
    assert [axes.get_legend() is None for _, axes in rows] == [False, True, True]
    assert all({*dotted(axes)} == {90} for _, axes in (first, *rows))


def test_without_a_knob_nothing_is_compared():
    panels = {name: control(("oracle",)) for name in "ab"}
    assert titles(build_control(panels))[::2] == [f"{n}: decoded image" for n in "ab"]


@pytest.mark.parametrize("make", [control, levels])
def test_panels_share_their_ranges(make):
    small = make()
    large = small._replace(
        mse={name: 3 * values for name, values in small.mse.items()},
        error={name: 2 * values for name, values in small.error.items()},
    )
    figure = build_control({"a": small, "b": large})
    for column, values in enumerate((large.mse, large.error)):
        limits = {axes.get_ylim() for axes in figure.axes[column::2]}
        assert len(limits) == 1
        ((low, high),) = limits
        drawn = [
            each for name, each in values.items() if column or name != "real image"
        ]
        assert low == 0
        assert np.max(drawn) < high < 1.2 * np.max(drawn)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_best_knob_is_the_one_with_the_smallest_error():
    assert best_knob({"oracle": 0.1, "steer": 0.3, "linear map": 0.2}) == "linear map"
    assert best_knob({"steer": 0.3, "shift": None, "linear map": np.nan}) == "steer"
    assert best_knob({"steer": "0.1", "oracle": 0.1}) == best_knob({}) == ""


@pytest.mark.parametrize("make", [control, levels])
def test_control_comes_back_from_json(make):
    gap = make()
    gap.error["oracle"][:, 2] = np.nan
    drawing = Drawing("control", "_a$b$<c>", gap)
    stored = json.loads(json.dumps(plain(drawing.stored())))
    assert len(json.dumps(stored)) < 30_000
    again = restored(stored)
    assert (again.kind, again.title) == ("control", "_a$b$<c>")
    before, after = draw({"": drawing}), draw({"": again})
    for one, other in zip(before.axes, after.axes, strict=True):
        assert [*lines(one)] == [*lines(other)]
        for a, b in zip(one.lines, other.lines, strict=True):
            np.testing.assert_allclose(a.get_xydata(), b.get_xydata(), atol=6e-5)
            assert look(a) == look(b)


def test_nothing_written_overlaps():
    names = ("duet", "runs/a-rather-long-name-of-a-run-that-goes-on")
    figure = build_control({name: control() for name in names}, title="the title")
    style.sign(figure, "duet · digits")
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    titles = [axes._left_title for axes in figure.axes]
    below = [axes.xaxis.get_tightbbox() for axes in figure.axes[-2:]]
    check_apart(figure, [*legends, *figure.axes, *titles], below)


# Reconstructions


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_images_stand_below_their_image(channels):
    rng = np.random.default_rng(0)
    shape = (10, 28, 28, channels)
    images, full, content = rng.uniform(-0.5, 0.5, (3, *shape))
    decoded = {"full": full, "content": content}
    figure = build_reconstructions(images, decoded, title="t")
    shown = [axes.images[0] for axes in figure.axes]
    assert len(shown) == 24
    for number, image in enumerate(shown):
        row = (images, full, content)[number // 8]
        expected = row[number % 8] + 0.5
        expected = expected[..., 0] if channels == 1 else expected
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
        extent = image.axes.get_window_extent()
        np.testing.assert_allclose([extent.width, extent.height], 112)  # four for one
    boxes = [image.axes.get_position() for image in shown]
    for above, below in zip(boxes, boxes[8:], strict=False):
        assert above.x0 == below.x0
        assert above.y0 > below.y1
    named = [text for text in figure.texts if text.get_text() != "t"]
    assert [text.get_text() for text in named] == ["image", "full", "content"]
    for text, axes in zip(named, figure.axes[::8], strict=True):
        where, box = text.get_window_extent(), axes.get_window_extent()
        assert where.x1 < box.x0
        assert box.y0 < where.y0 < where.y1 < box.y1


def test_few_images_and_long_titles_fit():
    images = np.zeros((2, 8, 8, 1))
    decoded = {"structure": images}
    figure = build_reconstructions(images, decoded, title="a title " * 8)
    style.sign(figure, "duet · digits")
    assert len(figure.axes) == 4
    boxes = [text.get_window_extent() for text in figure.texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    foot = boxes[-1].y1
    assert foot < min(axes.get_window_extent().y0 for axes in figure.axes)
