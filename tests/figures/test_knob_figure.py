"""Tests of knobs as data, and of the still picture of them."""

import base64
import json

import numpy as np
import pytest
from knobs import SHORT, STEPS, frames, make_knob, make_two, natural
from layout import check_apart

from duet_jax.evaluation.store import plain
from duet_jax.figures import (
    Dial,
    Drawing,
    build_knob,
    check_knob,
    frames_of,
    make_sheet,
    restored,
    style,
)
from duet_jax.figures.knob import tile_side


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 28, 33])
def test_small_sheets_lose_a_level_at_most(side, channels):
    given = frames(side=side, channels=channels, images=2, steps=3)
    given[0, 0, 0, 0] = [-0.7] * channels
    again = frames_of(make_sheet(given), side)
    assert again.shape == given.shape
    np.testing.assert_allclose(again, np.clip(given, -0.5, 0.5), atol=0.51 / 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 33])
def test_large_sheets_are_small_and_lose_little(side, channels):
    given = natural(side=side, channels=channels)
    sheet = make_sheet(given)
    assert base64.b64decode(sheet).startswith(b"\xff\xd8")
    # Three predictions and the truth: a megabyte.
    assert len(sheet) <= 250_000
    again = frames_of(sheet, side)
    assert np.sqrt(np.square(again - given).mean()) < 0.05
    assert np.abs(again.mean(axis=(2, 3)) - given.mean(axis=(2, 3))).max() < 0.02


def test_no_frame_of_a_sheet_is_seen_in_its_neighbors():
    given = natural(side=33)
    given[:, ::2] = 0.5
    again = frames_of(make_sheet(given), 33)
    np.testing.assert_allclose(again[:, ::2], 0.5, atol=2 / 255)


def test_large_frames_are_shrunk():
    given = np.zeros((1, 2, 96, 96, 3), np.float32)
    given[0, 1, :48] = 0.5
    again = frames_of(make_sheet(given), 96)
    assert again.shape == (1, 2, 48, 48, 3)
    np.testing.assert_allclose(again, given[:, :, ::2, ::2], atol=0.51 / 255)


@pytest.mark.parametrize(
    "sheet",
    [
        "",
        "!",
        None,
        base64.b64encode(b"GIF89a").decode(),
        make_sheet(frames())[:-40],
        make_sheet(frames(side=17)),  # in tiles of 24
    ],
)
def test_what_is_no_sheet_is_refused(sheet):
    with pytest.raises(ValueError, match="no sheet"):
        frames_of(sheet, 28)


def from_json(knob):
    stored = json.loads(json.dumps(plain(Drawing("knob", "t", knob).stored())))
    return restored(stored).summary


@pytest.mark.parametrize("make", [make_knob, make_two])
def test_a_knob_comes_back_from_json(make):
    knob = make()
    again = check_knob(from_json(knob))
    assert len(again.dials) == len(knob.dials)
    for one, other in ((again, knob), *zip(again.dials, knob.dials, strict=True)):
        assert type(one) is type(other)
        names = {*one._fields} - {"dials"}
        for name in names - {*ARRAYS}:
            assert getattr(one, name) == getattr(other, name)
        for name in names & {*ARRAYS}:
            np.testing.assert_equal(getattr(one, name), getattr(other, name))


def test_numbers_of_dials_are_rounded_where_they_are_kept():
    stored = Drawing("knob", "t", make_two()).stored()["summary"]["dials"]
    assert [each["code"] for each in stored] == ["rot", "sca"]
    kept = make_knob(parameters=np.arange(STEPS) / 3)
    (dial,) = Drawing("knob", "t", kept).stored()["summary"]["dials"]
    assert dial["parameters"].tolist()[:3] == [0, 0.3333, 0.6667]


ARRAYS = ("parameters", "read", "error", "marginals", "targets")
DAMAGE = {
    "code": 3,
    "summary": None,
    "parameters": [1.0, 2.0],
    "captions": "cat",
    "side": "12",
    "true": make_sheet(frames(images=2)),
    "made": {},
    "read": {"steer": [[1.0]], "shift": [[1.0]]},
    "error": [],
    "marginals": {"steer": "x"},
    "targets": [0.5],
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_damaged_knob_is_refused(field):
    knob = make_knob(**{field: DAMAGE[field]})
    with pytest.raises(ValueError, match=r"knob|sheet"):
        check_knob(knob)
    with pytest.raises(ValueError, match=r"knob|sheet"):
        build_knob({"": knob})


@pytest.mark.parametrize("value", [None, 7, [None]])
@pytest.mark.parametrize("field", [*DAMAGE, "unit", "topology"])
def test_odd_values_are_refused(field, value):
    with pytest.raises(ValueError, match=r"knob|sheet"):
        check_knob(make_knob(**{field: value}))


TWO_DAMAGE = {
    "parameters": [1.0, 2.0],
    "plain": SHORT,  # a step of the circle
    "read": {name: np.zeros((3, SHORT)) for name in ("steer", "shift")},
    "marginals": {},  # but targets
    "targets": np.ones((STEPS * SHORT, 3)),
    "code": "rot",  # as the circle's
    "topology": None,
}


@pytest.mark.parametrize("field", TWO_DAMAGE)
def test_damage_of_the_second_dial_is_refused(field):
    knob = make_two()
    first, second = knob.dials
    for made in (Dial, dict):  # as it is, and from JSON
        damaged = second._replace(**{field: TWO_DAMAGE[field]})
        dials = [first, made(**damaged._asdict())]
        with pytest.raises(ValueError, match="knob"):
            check_knob(knob._replace(dials=dials))


@pytest.mark.parametrize(
    "dials", [None, 7, "ab", [], [None], ["ab"], [{}], [{"code": "rot"}], {"a": 1}]
)
def test_what_are_no_dials_is_refused(dials):
    with pytest.raises(ValueError, match="knob"):
        check_knob(make_knob()._replace(dials=dials))


def test_sheets_have_a_frame_for_every_combination():
    knob = make_two()
    for true in (frames(steps=STEPS), frames(steps=STEPS + SHORT)):
        with pytest.raises(ValueError, match="3 x 40 frames"):
            check_knob(knob._replace(true=make_sheet(true)))
    with pytest.raises(ValueError, match="knob"):
        check_knob(knob._replace(dials=knob.dials[:1]))


def test_a_knob_of_an_older_version_is_no_drawing():
    knob = make_knob()
    summary = knob._asdict() | knob.dials[0]._asdict()
    del summary["dials"]
    with pytest.raises(ValueError, match="no drawing"):
        restored({"kind": "knob", "title": "t", "summary": summary})


def test_some_dials_have_no_structure():
    first, second = make_two().dials
    knob = check_knob(
        make_two(dials=(first, second._replace(marginals={}, targets=[])))
    )
    assert knob.dials[0].targets.shape == (STEPS, 4)
    assert knob.dials[1].targets.size == 0


def drawn(figure):
    figure.draw_without_rendering()
    return [axes.images[0].get_array() for axes in figure.axes]


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_frames(channels):
    made = {"a": frames(1, channels=channels), "b$c$": frames(2, channels=channels)}
    true = frames(channels=channels)
    knob = make_knob(
        [*made],
        true=make_sheet(true),
        made={name: make_sheet(each) for name, each in made.items()},
    )
    figure = build_knob({"": knob}, title="a title")
    shown = drawn(figure)
    expected = [each[image] for image in (0, 1) for each in (true, *made.values())]
    expected = np.concatenate(expected) + 0.5
    expected = expected[..., 0] if channels == 1 else expected
    np.testing.assert_allclose(shown, expected, atol=0.51 / 255)
    written = [text.get_text() for text in figure.texts]
    assert {"a title", "cat", "true image", *made} <= {*written}
    assert written.count("45°") == written.count("\N{MINUS SIGN}45°") == 2


def test_every_second_of_24_is_drawn():
    true, made = natural(images=2, side=8), natural(1, images=2, side=8)
    numbers = {"a": np.zeros((2, 24))}
    knob = make_knob(
        parameters=np.arange(24.0),
        captions=["", ""],
        side=8,
        true=make_sheet(true),
        made={"a": make_sheet(made)},
        read=numbers,
        error=numbers,
        marginals={},
        targets=[],
    )
    figure = build_knob({"": knob})
    expected = [each[image, ::2] for image in (0, 1) for each in (true, made)]
    np.testing.assert_allclose(drawn(figure), np.concatenate(expected) + 0.5, atol=0.01)
    written = [text.get_text() for text in figure.texts]
    assert "22°" in written
    assert "23°" not in written


def test_each_dial_is_drawn_while_the_others_are_at_plain():
    knob = make_two()
    figure = build_knob({"": knob})
    sheets = [
        np.reshape(frames(k, steps=40), (3, STEPS, SHORT, 12, 12, 3)) for k in (0, 1, 2)
    ]
    circle = [sheet[image, :, 2] for image in (0, 1) for sheet in sheets]
    line = [sheet[image, 0] for image in (0, 1) for sheet in sheets]
    expected = np.concatenate(circle + line) + 0.5
    np.testing.assert_allclose(drawn(figure), expected, atol=0.51 / 255)
    written = [text.get_text() for text in figure.texts]
    places = [written.index(name) for name in ("rot [degrees]", "sca [share]")]
    assert places == sorted(places)
    assert [written.count(text) for text in ("45°", "0.65", "0.3", "cat")] == [2] * 4


def test_panels_of_other_dials_are_drawn_together():
    panels = {"one": make_two(), "two": make_knob(["linear map"], topology="line")}
    figure = build_knob(panels)
    assert len(drawn(figure)) == 3 * (STEPS + SHORT) + 2 * STEPS
    written = [text.get_text() for text in figure.texts]
    names = ["one: rot [degrees]", "one: sca [share]", "two: sca [share]"]
    assert [text for text in written if text in names] == names


def test_several_panels_have_an_image_each():
    panels = {"one": make_knob(), "two": make_knob(["linear map"])}
    figure = build_knob(panels)
    assert len(drawn(figure)) == 8 * (3 + 2)
    written = [text.get_text() for text in figure.texts]
    assert {"one: rot [degrees]", "two: rot [degrees]", "linear map"} <= {*written}


def test_nothing_overlaps_and_every_pixel_is_whole():
    knob = make_knob(["steer", "a prediction with a long name"], topology="line")
    two = make_two(["steer", "a prediction with a long name"])
    figure = build_knob({"a": knob, "b": two}, title="t")
    style.sign(figure, "small print")
    check_apart(figure, figure.axes)
    sides = {axes.get_window_extent().width.round(6) for axes in figure.axes}
    assert sides == {72.0}  # six times 12


def test_frames_begin_where_blocks_of_jpeg_do():
    assert [tile_side(side) for side in (1, 8, 28, 33, 200)] == [8, 8, 32, 40, 48]
