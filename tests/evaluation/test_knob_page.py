"""Tests of the knob on the page: its markup, and what it does in a browser."""

import json
import re

import numpy as np
import pytest
from browser import chromium
from knobs import (
    BINS,
    EVIL,
    IMAGES,
    SHORT,
    STEPS,
    frames,
    make_dial,
    make_knob,
    make_two,
    natural,
)
from playwright.sync_api import sync_playwright

from duet_jax.evaluation import html_report, knob, page
from duet_jax.evaluation.store import plain
from duet_jax.figures import Drawing, frames_of, make_sheet

MINUS = "\N{MINUS SIGN}"


def page_of(*knobs) -> str:
    """A page with a section for each, and its still picture."""
    sections = [
        page.Section(
            "s",
            pictures=[page.picture_of(Drawing("knob", "t", each).figure(), "still")],
            knobs=[each],
        )
        for each in knobs
    ]
    return page.build(sections, title="t", subtitle="")


def data_of(text: str) -> list[dict]:
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(block) for block in blocks]


# Without a browser


def test_a_knob_has_its_data_once_and_a_still_picture():
    given = make_knob()
    text = page_of(given)
    (data,) = data_of(text)
    for sheet in (given.true, *given.made.values()):
        assert text.count(sheet) == 1
    assert data["true"] == f"data:image/png;base64,{given.true}"
    assert list(data["made"]) == ["steer", "shift"]
    assert data["error"] == plain(given.error)
    (dial,) = data["dials"]
    for name in ("parameters", "read", "marginals", "targets"):
        assert dial[name] == plain(getattr(given.dials[0], name))
    assert (data["side"], data["tile"]) == (12, 16)
    # It is hidden until its script runs, and the picture is not.
    (opening,) = re.findall(r'<div class="knob"[^>]*>', text)
    assert opening.endswith(" hidden>")
    assert text.count('<img alt="still"') == 1
    assert text.index('class="knob"') < text.index('<img alt="still"')


def test_what_is_chosen_has_a_label():
    text = page_of(make_knob(), make_knob())
    check_names(text)
    assert text.count('aria-label="test image 1, cat"') == 2
    assert text.count('aria-label="test image 2"') == 2
    assert text.count('role="slider" tabindex="0"') == 2  # the dials
    assert text.count("<li></li>") == 2 * BINS


def check_names(text: str) -> None:
    """No two elements have one name, and all that is chosen has a label."""
    identities = re.findall(r' id="([^"]*)"', text)
    assert len({*identities}) == len(identities)
    labels = re.findall(r' for="([^"]*)"', text)
    assert {*labels} <= {*identities}
    assert len({*labels}) == len(labels)
    for tag in re.findall(r"<(?:input|select)[^>]*>", text):
        own = re.search(r' id="([^"]*)"', tag)
        assert "aria-label=" in tag or f'<label for="{own[1]}">' in text


def test_two_dials_on_a_page():
    given = make_two()
    text = page_of(given, make_knob(), given)
    check_names(text)
    first, second, _ = data_of(text)
    assert [dial["code"] for dial in first["dials"]] == ["rot", "sca"]
    assert [dial["suffix"] for dial in first["dials"]] == ["°", ""]
    for dial, expected in zip(first["dials"], given.dials, strict=True):
        for name in ("parameters", "read", "marginals", "targets"):
            assert dial[name] == plain(getattr(expected, name))
    # The frame of the thumbs: that of all dials at `plain`.
    assert (first["plain"], second["plain"]) == (2, 0)
    alone = knob.markup("k", given)
    assert "<h3>rotation by any angle and random crop</h3>" in alone
    counts = {'class="dial"': 1, 'type="range"': 2, 'class="structure"': 2}
    counts |= {'class="asked"': 2, 'class="read"': 2, 'class="error"': 1}
    counts |= {'class="key"': 1, "<li></li>": BINS + BINS - 1}
    assert {part: alone.count(part) for part in counts} == counts
    for label in (
        "rot: rotation by any angle [degrees], dial",
        "rot: rotation by any angle",
        "sca: random crop",
        "structure of rot",
        "structure of sca",
    ):
        assert alone.count(f'aria-label="{label}"') == 1
    assert ">sca: random crop [share]</label>" in alone


def test_a_dial_without_a_structure_has_no_bars():
    first, second = make_two().dials
    bare = first._replace(marginals={}, targets=[])
    alone = knob.markup("k", make_two(dials=(bare, second)))
    assert alone.count('class="structure"') == 1
    assert 'aria-label="structure of sca"' in alone
    bare = (bare, second._replace(marginals={}, targets=[]))
    assert (
        "structure"
        not in knob.markup("k", make_two(dials=bare)).partition("<script")[0]
    )


def test_a_line_has_no_dial_and_one_prediction_no_choice():
    given = make_knob(["linear map"], topology="line", marginals={}, targets=[])
    text = knob.markup("k", given)
    for absent in ('class="dial"', "<select", '<div class="structure">'):
        assert absent not in text
    assert "features by linear map" in text
    (data,) = data_of(text)
    assert data["dials"][0]["targets"] == []


def test_the_policy_allows_the_script_of_the_knob():
    text = page_of(make_knob())
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert script.endswith(knob.SCRIPT)
    assert f"script-src {page._hash(script)};" in text
    assert not re.search(r"<[^>]* (style|on\w+)=", text)


def test_a_page_with_a_knob_of_photographs_is_small():
    sheets = [make_sheet(natural(seed)) for seed in range(4)]
    names, shape = ("steer", "shift", "linear map"), (12, 24)
    rng = np.random.default_rng(0)
    numbers = {name: 180 * rng.random(shape) for name in names}
    given = make_knob(
        names,
        parameters=np.arange(0.0, 360, 15),
        captions=["airplane"] * 12,
        side=32,
        true=sheets[0],
        made=dict(zip(names, sheets[1:], strict=True)),
        read=numbers,
        error=numbers,
        marginals={name: rng.dirichlet(np.ones(8), shape) for name in names},
        targets=rng.dirichlet(np.ones(8), 24),
    )
    assert len(knob.markup("k", given)) < 1.15e6
    assert len(page_of(given)) < 2e6


def stored(**changes) -> dict:
    drawing = Drawing("knob", "t", make_knob(**changes))
    return json.loads(json.dumps(plain(drawing.stored())))


def damaged_dial() -> dict:
    found = stored()
    del found["summary"]["dials"][0]["read"]["shift"]
    return found


def test_a_report_finds_the_knobs_of_a_result(caplog):
    drawings = {
        "rot_knob": stored(),
        "rot_control": {"kind": "shift"},
        "hue_knob": stored(true="AAAA"),
        "sca_knob": 3,
        "lig_knob": damaged_dial(),
        "bri_knob": {
            "kind": "confusion",
            "title": "",
            "summary": {"matrix": [[1]], "class_names": ["a"]},
        },
    }
    (found,) = html_report.knobs_of({"drawings": drawings}).values()
    assert found.made == make_knob().made
    assert [record.args[0] for record in caplog.records] == [
        "hue_knob",
        "sca_knob",
        "lig_knob",
        "bri_knob",
    ]


@pytest.mark.parametrize("drawings", [None, [], 3, {}, {"rot_knob": []}])
def test_a_report_without_knobs(drawings):
    assert html_report.knobs_of({"drawings": drawings}) == {}
    assert html_report.knobs_of({}) == {}


def test_the_section_and_its_pictures_have_names():
    titles = list(html_report.TITLES)
    assert titles.index("generation") == titles.index("equivariance") + 1
    assert html_report.title_of("generation") == "Controlled generation"
    assert {"knob", "control", "reconstructions"} <= html_report.CAPTIONS.keys()


# In a browser


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path)
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens knobs on one page, without a network; nothing may go wrong on it."""
    faults, contexts = [], []

    def open_page(*knobs, **options):
        path = tmp_path / "page.html"
        path.write_text(page_of(*knobs))
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.set_default_timeout(20_000)
        shown.on(
            "console",
            # Of other kinds are remarks that pixels are read often.
            lambda message: message.type == "error" and faults.append(message.text),
        )
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on(
            "request",
            lambda request: (
                request.url.startswith(("data:", path.as_uri()))
                or faults.append(request.url)
            ),
        )
        shown.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


PIXELS = """canvas => [...canvas.getContext("2d").getImageData(
  0, 0, canvas.width, canvas.height).data]"""


def pixels(canvas) -> np.ndarray:
    """The levels of a canvas, [side, side, 3]."""
    side = int(canvas.get_attribute("width"))
    return np.reshape(canvas.evaluate(PIXELS), (side, side, 4))[:, :, :3]


def levels(sheet: str, side: int = 12) -> np.ndarray:
    return np.round(255 * (frames_of(sheet, side) + 0.5)).astype(int)


def check(where, given, *steps, image=0, name="steer") -> None:
    """All that is shown is of these steps of this image, one step a dial."""
    shape = [len(dial.parameters) for dial in given.dials]
    frame = np.ravel_multi_index(steps, shape)
    for part, sheet in (("true", given.true), ("made", given.made[name])):
        canvas = where.locator(f"canvas.{part}")
        np.testing.assert_array_equal(pixels(canvas), levels(sheet)[image, frame])
    error = float(where.locator(".error").inner_text())
    assert error == given.error[name][image, frame]
    asked = []
    turns = where.locator(".turn").all()
    for turn, dial, step in zip(turns, given.dials, steps, strict=True):
        asked.append(check_turn(turn, dial, step, dial.read[name][image, frame]))
        if len(steps) > 1:
            asked[-1] = f"{dial.code} {asked[-1]}"
    label = where.locator("canvas.made").get_attribute("aria-label")
    assert label.endswith(f"decoded for {', '.join(asked)} by {name}")
    structured = [n for n, dial in enumerate(given.dials) if dial.marginals]
    charts = where.locator(".structure").all()
    for chart, number in zip(charts, structured, strict=True):
        dial = given.dials[number]
        marginal = dial.marginals[name][image, frame]
        check_bars(chart, marginal, dial.targets[steps[number]])


def check_turn(where, dial, step, read) -> str:
    """The controls of a dial show this step; returns the parameter asked for."""
    unit = "°" if dial.unit == "degrees" else ""
    asked = f"{dial.parameters[step]:.3g}{unit}".replace("-", MINUS)
    assert where.locator(".asked").inner_text() == asked
    assert where.locator(".read").inner_text() == f"{read:.3g}{unit}".replace(
        "-", MINUS
    )
    slider = where.locator("input[type=range]")
    assert slider.get_attribute("aria-valuetext") == asked
    assert int(slider.input_value()) == place(dial, step)
    if dial.topology == "circle":
        hand = where.locator(".hand").get_attribute("transform")
        turned = -360 * step / len(dial.parameters)
        assert float(hand.removeprefix("rotate(")[:-1]) == turned
        circle = where.locator(".dial")
        assert circle.get_attribute("aria-valuetext") == asked
        assert int(circle.get_attribute("aria-valuenow")) == place(dial, step)
    return asked


def place(dial, step) -> int:
    """The position of the slider: parameters rise from left to right."""
    return int(np.sum(dial.parameters < dial.parameters[step]))


def check_bars(where, marginal, target) -> None:
    bars = where.locator("rect")
    heights, tops = (
        np.array(bars.evaluate_all(f"all => all.map(x => +x.getAttribute('{name}'))"))
        for name in ("height", "y")
    )
    np.testing.assert_allclose(heights + tops, 100)
    np.testing.assert_allclose(heights, 100 * marginal, atol=1e-6)  # its top is 1
    path = where.locator("path").get_attribute("d")
    outline = [float(y) for y in re.findall(r"V([\d.]+)h10", path)]
    np.testing.assert_allclose(100 - np.array(outline), 100 * target, atol=1e-6)
    lines = where.locator(".bins li").all_text_contents()
    bins = range(len(marginal))
    for line, *shares in zip(lines, bins, marginal, target, strict=True):
        numbers = [int(number) for number in re.findall(r"\d+", line)]
        expected = [shares[0], *(100 * share for share in shares[1:])]
        np.testing.assert_allclose(numbers, expected, atol=0.501)


def middle(box) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_turning_the_dial(opened):
    given = make_knob()
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    where.wait_for(state="visible")
    check(where, given, 0)
    dial = where.locator(".dial")
    dial.scroll_into_view_if_needed()
    x, y = middle(dial.bounding_box())
    shown.mouse.move(x, y - 50)
    shown.mouse.down()
    # Images turn counterclockwise, and so does it: left, bottom, right.
    for right, down, frame in ((-50, 5, 2), (-35, 35, 3), (0, 60, 4), (300, 0, 6)):
        shown.mouse.move(x + right, y + down, steps=3)
        check(where, given, frame)
    shown.mouse.up()
    shown.mouse.move(x - 50, y)
    check(where, given, 6)
    assert shown.evaluate("document.activeElement.className") == "dial"
    for key, frame in (
        ("ArrowRight", 7),
        ("ArrowUp", 0),
        ("ArrowRight", 1),
        ("ArrowLeft", 0),
        ("ArrowDown", 7),
        ("Home", 4),
        ("ArrowLeft", 3),
        ("End", 3),
        ("ArrowRight", 4),
    ):
        shown.keyboard.press(key)
        check(where, given, frame)


def test_sliding(opened):
    given = make_knob()
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    slider = where.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = middle(box)
    shown.mouse.move(x + box["width"] / 14, y)  # place 4 of 0 to 7
    shown.mouse.down()
    for share, frame in ((0.01, 4), (0.99, 3), (0.43, 7)):
        shown.mouse.move(box["x"] + share * box["width"], y, steps=4)
        check(where, given, frame)
    shown.mouse.up()
    for key, frame in (("ArrowRight", 0), ("ArrowUp", 1), ("ArrowDown", 0)):
        shown.keyboard.press(key)
        check(where, given, frame)
    # Around the circle in both directions.
    shown.keyboard.press("End")
    check(where, given, 3)
    shown.keyboard.press("ArrowRight")
    check(where, given, 4)
    shown.keyboard.press("ArrowLeft")
    check(where, given, 3)


def test_choosing_an_image_and_a_prediction(opened):
    given = make_knob()
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    thumbs = where.locator(".thumb canvas")
    assert thumbs.count() == IMAGES
    for number in range(IMAGES):
        shown_pixels = pixels(thumbs.nth(number))
        np.testing.assert_array_equal(shown_pixels, levels(given.true)[number, 0])
    where.locator("input[type=range]").focus()
    shown.keyboard.press("ArrowRight")
    thumbs.nth(2).click()
    check(where, given, 1, image=2)
    where.get_by_label("features by").select_option("shift")
    check(where, given, 1, image=2, name="shift")
    # With the keyboard: one stop for all images, arrows inside.
    where.get_by_role("radio").nth(2).focus()
    shown.keyboard.press("ArrowLeft")
    check(where, given, 1, image=1, name="shift")
    shown.keyboard.press("Tab")
    shown.keyboard.press("ArrowUp")  # the first prediction again
    check(where, given, 1, image=1)
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "dial"
    name = where.locator("canvas.made").get_attribute("aria-label")
    assert name == "test image 2, decoded for 45° by steer"


def test_a_line_ends_and_knobs_are_independent(opened):
    line = make_knob(
        ["linear map"],
        topology="line",
        marginals={},
        targets=[],
        made={"linear map": make_sheet(frames(4))},
    )
    circle = make_knob()
    shown = opened(line, circle)
    where = shown.locator("#knob-0-0")
    check(where, line, line.dials[0].plain, name="linear map")
    for image, thumb in enumerate(where.locator(".thumb canvas").all()):
        seen = levels(line.true)[image, line.dials[0].plain]
        np.testing.assert_array_equal(pixels(thumb), seen)
    where.locator("input[type=range]").focus()
    # The largest parameter comes first.
    for key, frame in (
        ("ArrowRight", 1),
        ("End", 0),
        ("ArrowRight", 0),
        ("ArrowLeft", 1),
        ("Home", 7),
        ("ArrowDown", 7),
    ):
        shown.keyboard.press(key)
        check(where, line, frame, name="linear map")
    check(shown.locator("#knob-1-0"), circle, 0)


def test_turning_two_dials(opened):
    given = make_two()
    shown = opened(make_knob(), given)
    where = shown.locator("#knob-1-0")
    where.wait_for(state="visible")
    check(where, given, 0, 2)
    for image, thumb in enumerate(where.locator(".thumb canvas").all()):
        np.testing.assert_array_equal(pixels(thumb), levels(given.true)[image, 2])
    circle, line = where.locator(".turn").all()
    dial = circle.locator(".dial")
    dial.scroll_into_view_if_needed()
    x, y = middle(dial.bounding_box())
    shown.mouse.move(x, y - 40)
    shown.mouse.down()
    for right, down, step in ((-40, 4, 2), (-30, 30, 3), (0, 50, 4), (200, 0, 6)):
        shown.mouse.move(x + right, y + down, steps=3)
        check(where, given, step, 2)
    shown.mouse.up()
    # The other one, which keeps what the first one says.
    slider = line.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = middle(box)
    shown.mouse.move(x, y)
    shown.mouse.down()
    for share, step in ((0.99, 0), (0.01, 4), (0.27, 3)):
        shown.mouse.move(box["x"] + share * box["width"], y, steps=4)
        check(where, given, 6, step)
    shown.mouse.up()
    where.locator(".thumb canvas").nth(2).click()
    check(where, given, 6, 3, image=2)
    where.get_by_label("features by").select_option("shift")
    check(where, given, 6, 3, image=2, name="shift")
    check(shown.locator("#knob-0-0"), make_knob(), 0)


def test_two_dials_by_the_keyboard(opened):
    given = make_two()
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    where.locator("select").focus()
    # The dial, its slider, and the slider of the line.
    for keys in (
        (("ArrowRight", 1, 2), ("ArrowLeft", 0, 2), ("ArrowDown", 7, 2)),
        (("Home", 4, 2), ("ArrowLeft", 3, 2), ("ArrowUp", 4, 2)),
        (("ArrowRight", 4, 1), ("End", 4, 0), ("ArrowUp", 4, 0), ("Home", 4, 4)),
    ):
        shown.keyboard.press("Tab")
        for key, *steps in keys:
            shown.keyboard.press(key)
            check(where, given, *steps)
    name = where.locator("canvas.true").get_attribute("aria-label")
    assert name == f"test image 1, cat, transformed: rot {MINUS}180°, sca 0.3"


def test_two_circles(opened):
    names = ("steer", "shift")
    second = make_dial(names, "circle", STEPS * SHORT, SHORT, 4)
    second = second._replace(code="hue", summary="hue of colors")
    given = make_two(names, dials=(make_two().dials[0], second))
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    check(where, given, 0, 0)
    dial = where.get_by_label("hue: hue of colors [degrees], dial")
    dial.scroll_into_view_if_needed()
    x, y = middle(dial.bounding_box())
    shown.mouse.move(x - 40, y - 12)
    shown.mouse.down()
    check(where, given, 0, 1)
    shown.mouse.move(x + 20, y + 30)
    check(where, given, 0, 3)
    shown.mouse.up()
    for key, step in (("ArrowRight", 4), ("ArrowRight", 0), ("ArrowLeft", 4)):
        shown.keyboard.press(key)
        check(where, given, 0, step)
    where.get_by_label("rot: rotation by any angle [degrees], dial").focus()
    shown.keyboard.press("ArrowLeft")
    check(where, given, 7, 4)


def test_the_bars_of_the_second_dial_alone(opened):
    circle, line = make_two().dials
    given = make_two(dials=(circle._replace(marginals={}, targets=[]), line))
    shown = opened(given)
    where = shown.locator("#knob-0-0")
    check(where, given, 0, 2)
    where.locator(".dial").focus()
    shown.keyboard.press("ArrowRight")
    check(where, given, 1, 2)


@pytest.mark.parametrize("width", [320, 390, 1160])
def test_two_dials_find_room(opened, width):
    shown = opened(make_two(), viewport={"width": width, "height": 800})
    where = shown.locator("#knob-0-0")
    where.wait_for(state="visible")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    turns, charts = (
        [each.bounding_box() for each in where.locator(part).all()]
        for part in (".turn", ".structure")
    )
    # Dials are side by side where there is room, and bars where there is none.
    wide = width > 1000
    assert (turns[0]["y"] == turns[1]["y"]) == wide
    assert (charts[0]["y"] == charts[1]["y"]) == (not wide)


def test_on_a_small_screen_and_in_gray(opened):
    gray = {name: make_sheet(natural(3, IMAGES, STEPS, 96, 1)) for name in ("a", "b")}
    given = make_knob(["a", "b"], side=96, true=gray["a"], made=gray)
    shown = opened(given, viewport={"width": 390, "height": 800}, has_touch=True)
    where = shown.locator("#knob-0-0")
    where.wait_for(state="visible")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    both = [where.locator(f"canvas.{part}").bounding_box() for part in ("true", "made")]
    assert both[0]["y"] == both[1]["y"]
    assert {box["width"] for box in both} == {144}  # three times 48
    found = pixels(where.locator("canvas.true"))
    np.testing.assert_array_equal(found, levels(gray["a"], 96)[0, 0].repeat(3, axis=2))


def test_without_script_the_picture_is_shown(opened):
    shown = opened(make_knob(), java_script_enabled=False)
    assert not shown.locator(".knob").is_visible()
    assert shown.get_by_alt_text("still").is_visible()


def test_evil_names_do_nothing(opened):
    given = make_knob([EVIL, "b"], summary=EVIL, unit=EVIL, captions=[EVIL] * 3)
    two = make_two([EVIL, "b"], captions=[EVIL] * 3)
    evil = dict.fromkeys(("code", "summary", "unit"), EVIL)
    two = two._replace(dials=(two.dials[0], two.dials[1]._replace(**evil)))
    shown = opened(given, two)
    for number, steps in enumerate([[0], [0, 2]]):
        where = shown.locator(f"#knob-{number}-0")
        where.wait_for(state="visible")
        where.locator(".thumb canvas").nth(1).click()
        check(where, (given, two)[number], *steps, image=1, name=EVIL)
        assert where.locator("canvas.made").get_attribute("aria-label").endswith(EVIL)
    assert shown.evaluate("window.hit") is None
