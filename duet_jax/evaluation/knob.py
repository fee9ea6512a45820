"""The knob on the page: parameters to turn, and the images that are decoded for them.

The controls are shown by the script of the page; without it there is the still picture,
see `figures.build_knob`.
"""

import json
from collections.abc import Mapping
from html import escape

import numpy as np

from duet_jax.evaluation.store import plain
from duet_jax.figures import Dial, Knob, check_knob
from duet_jax.figures.knob import frames_along, parameter_text, shown_side, tile_side

# Images are enlarged to at most so many pixels, on small and on large screens.
_SIDES = {"small": 168, "large": 256}
_TOPS = (0.25, 0.5, 0.75)  # ends of the axis of probabilities; else 1
_DIGITS = 4  # after the point, of numbers that are shown

STYLE = """
.knob { --wanted: #d9680f; position: relative; max-width: 900px; margin: 1.2rem 0; }
@media (prefers-color-scheme: dark) { .knob { --wanted: #f0a35e; } }
.knob[hidden] { display: none; }
.knob h3 { margin: 0 0 .2rem; }
.knob fieldset { display: flex; flex-wrap: wrap; gap: 6px; border: 0; margin: .6rem 0;
  padding: 0; }
.knob legend, .knob .name { font-size: .85rem; color: var(--muted); padding: 0;
  margin-bottom: .2rem; }
.knob canvas { display: block; image-rendering: pixelated; border-radius: 4px; }
.knob .thumb { position: relative; width: 54px; padding: 5px;
  border: 2px solid transparent; border-radius: 8px; font-size: .7rem;
  line-height: 1.3; color: var(--muted); cursor: pointer; }
.knob .thumb canvas { width: 40px; height: 40px; }
.knob .thumb span { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; text-align: center; }
.knob .thumb:hover { background: var(--raised); }
.knob .thumb:has(:checked) { border-color: var(--accent); color: var(--ink); }
.knob .thumb:has(:focus-visible), .knob .dial:focus-visible { outline: 2px solid
  var(--accent); outline-offset: 2px; }
.knob .shown { display: flex; flex-wrap: wrap; gap: 12px 20px; margin: .8rem 0; }
.knob .shown canvas { width: var(--large); }
.knob .choice { margin: .6rem 0; font-size: .9rem; }
.knob select { font: inherit; margin-left: .3rem; max-width: 100%; }
.knob .structure { flex: 1 1 200px; max-width: 340px; }
.knob .structure svg { display: block; width: 100%; height: var(--large);
  border-bottom: 1px solid var(--muted); overflow: visible; }
.knob .structure rect { fill: var(--accent); }
.knob .structure path { fill: none; stroke: var(--wanted); stroke-width: 2;
  vector-effect: non-scaling-stroke; }
.knob .ends { display: flex; justify-content: space-between; font-size: .75rem;
  color: var(--muted); font-variant-numeric: tabular-nums; }
.knob .key::before { content: ""; display: inline-block; width: .8em; height: .8em;
  margin-right: .4em; background: var(--accent); }
.knob .key.wanted { margin-left: .8em; }
.knob .key.wanted::before { height: 0; border-top: 2px solid var(--wanted);
  background: none; vertical-align: .25em; }
.knob .structures { flex: 1 1 200px; max-width: 340px; display: flex;
  flex-direction: column; gap: 6px; }
.knob .structures .structure { flex: 1 1 auto; max-width: none; display: flex;
  flex-direction: column; }
.knob .structures svg { flex: 1 1 60px; height: auto; min-height: 50px; }
.knob .turns { display: grid; gap: 16px 32px;
  grid-template-columns: repeat(auto-fit, minmax(min(360px, 100%), 1fr)); }
.knob .turns .turn { gap: 12px 20px; }
.knob .turns .dial { width: 132px; height: 132px; }
.knob .shown + output { margin: 0 0 .8rem; }
.knob .turn { display: flex; flex-wrap: wrap; align-items: center; gap: 12px 24px; }
.knob .dial { flex: none; width: 150px; height: 150px; border-radius: 50%;
  cursor: grab; touch-action: none; user-select: none; }
.knob .dial:active { cursor: grabbing; }
.knob .dial circle { fill: var(--raised); stroke: var(--line); stroke-width: 2; }
.knob .dial line { stroke: var(--muted); stroke-width: 1.5; }
.knob .dial text { fill: var(--muted); font-size: 15px; text-anchor: middle;
  dominant-baseline: central; }
.knob .hand line { stroke: var(--accent); stroke-width: 5; stroke-linecap: round; }
.knob .hand circle { fill: var(--accent); stroke: var(--ground); }
.knob .slide { flex: 1 1 240px; }
.knob .slide label { font-size: .9rem; }
.knob input[type=range] { display: block; width: 100%; height: 1.6rem; margin: .2rem 0;
  accent-color: var(--accent); }
.knob output { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem;
  margin-top: .5rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
.knob output b { font-weight: 600; }
.unseen { position: absolute; width: 1px; height: 1px; margin: 0; padding: 0;
  overflow: hidden; clip-path: inset(50%); white-space: nowrap; opacity: 0; }
@media (max-width: 500px) { .knob .shown { gap: 12px; }
  .knob .shown canvas { width: var(--small); }
  .knob .structure { max-width: none; }
  .knob .structure svg { height: 110px; }
  .knob .structures { max-width: none; display: grid; gap: 6px 12px;
    grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
  .knob .structures > .name, .knob .structures > .ends { grid-column: 1 / -1; }
  .knob .structures svg { flex-basis: 80px; }
  .knob .turns .turn { gap: 12px; }
  .knob .turns .dial { width: 100px; height: 100px; }
  .knob .turns .slide { flex-basis: 220px; }
  .knob .turns output, .knob .turns label { font-size: .8rem; }
  .knob .turns output { gap: 0 .5rem; } }
"""

# What is chosen is kept in the controls alone; `show` draws what they say.
SCRIPT = """
const turned = async knob => {
  const data = JSON.parse(knob.querySelector("script").textContent);
  const find = name => knob.querySelector(name);
  const choice = find("select");
  const charts = [...knob.querySelectorAll(".structure")];
  const turns = [...knob.querySelectorAll(".turn")].map((part, number) => {
    const about = data.dials[number];
    const places = about.parameters.map((_, step) => step)
      .sort((a, b) => about.parameters[a] - about.parameters[b]);
    return {...about, part, places, slider: part.querySelector("input"),
      dial: part.querySelector(".dial"), last: places.length - 1,
      chart: about.targets.length ? charts.shift() : null};
  });
  const names = Object.keys(data.made);
  const sheets = {};
  const load = async (name, source) => {
    sheets[name] = new Image();
    sheets[name].src = source;
    await sheets[name].decode();
  };
  await Promise.all([load("", data.true),
    ...names.map(name => load(name, data.made[name]))]);

  const paint = (canvas, sheet, image, frame) => canvas.getContext("2d").drawImage(
    sheets[sheet], frame * data.tile, image * data.tile, data.side, data.side,
    0, 0, data.side, data.side);
  const rounded = value => value === null ? "unknown"
    : String(Number(value.toPrecision(3))).replace("-", "\\u2212");
  const percent = value => Math.round(100 * value) + " %";

  const showBars = ({chart, top}, marginal, target) => {
    const height = share => Math.min(share / top, 1) * 100;
    let outline = "M0 100";
    chart.querySelectorAll("rect").forEach((bar, bin) => {
      bar.setAttribute("height", height(marginal[bin]));
      bar.setAttribute("y", 100 - height(marginal[bin]));
      outline += `V${100 - height(target[bin])}h10`;
    });
    chart.querySelector("path").setAttribute("d", outline + "V100");
    chart.querySelectorAll(".bins li").forEach((line, bin) => {
      line.textContent = `bin ${bin}: ${percent(marginal[bin])}, ` +
        `wanted ${percent(target[bin])}`;
    });
  };
  const showTurn = (turn, step, name, image, frame) => {
    const {part, slider, dial} = turn;
    const inUnit = value => rounded(value) + (value === null ? "" : turn.suffix);
    const asked = inUnit(turn.parameters[step]);
    part.querySelector(".asked").textContent = asked;
    part.querySelector(".read").textContent = inUnit(turn.read[name][image][frame]);
    slider.setAttribute("aria-valuetext", asked);
    if (dial) {
      dial.setAttribute("aria-valuenow", slider.value);
      dial.setAttribute("aria-valuetext", asked);
      dial.querySelector(".hand").setAttribute("transform",
        `rotate(${-360 * step / turn.places.length})`);
    }
    if (turn.chart)
      showBars(turn, turn.marginals[name][image][frame], turn.targets[step]);
    return turns.length > 1 ? `${turn.code} ${asked}` : asked;
  };
  const show = () => {
    const steps = turns.map(turn => turn.places[turn.slider.value]);
    const frame = steps.reduce(
      (found, step, number) => found * turns[number].places.length + step, 0);
    const image = Number(find("input:checked").value);
    const name = names[choice ? choice.selectedIndex : 0];
    const asked = turns.map((turn, number) =>
      showTurn(turn, steps[number], name, image, frame)).join(", ");
    paint(find(".true"), "", image, frame);
    paint(find(".made"), name, image, frame);
    find(".true").setAttribute("aria-label",
      `${data.images[image]}, transformed: ${asked}`);
    find(".made").setAttribute("aria-label",
      `${data.images[image]}, decoded for ${asked} by ${name}`);
    find(".error").textContent = rounded(data.error[name][image][frame]);
  };
  const go = ({slider, dial, last}, place) => {
    slider.value = dial ? (place + last + 1) % (last + 1)
      : Math.max(0, Math.min(place, last));
    show();
  };

  const ways = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1};
  const press = (turn, event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in ways) go(turn, Number(turn.slider.value) + ways[event.key]);
    else if (event.key === "Home") go(turn, 0);
    else if (event.key === "End") go(turn, turn.last);
    else return;
    event.preventDefault();
  };
  const point = (turn, event) => {
    const box = turn.dial.getBoundingClientRect();
    const right = event.clientX - box.left - box.width / 2;
    const down = event.clientY - box.top - box.height / 2;
    // From the top, counterclockwise.
    const share = Math.atan2(-right, -down) / (2 * Math.PI) + 1;
    const steps = turn.places.length;
    go(turn, turn.places.indexOf(Math.round(share * steps) % steps));
  };
  knob.addEventListener("input", show);
  for (const turn of turns) {
    const dial = turn.dial;
    for (const control of dial ? [dial, turn.slider] : [turn.slider])
      control.addEventListener("keydown", event => press(turn, event));
    if (!dial) continue;
    dial.addEventListener("pointerdown", event => {
      event.preventDefault();
      dial.focus();
      dial.setPointerCapture(event.pointerId);
      point(turn, event);
    });
    dial.addEventListener("pointermove", event => {
      if (dial.hasPointerCapture(event.pointerId)) point(turn, event);
    });
  }
  knob.querySelectorAll(".thumb canvas").forEach(
    (canvas, image) => paint(canvas, "", image, data.plain));
  for (const size of ["small", "large"])
    knob.style.setProperty("--" + size, data[size] + "px");
  show();
  knob.hidden = false;
};
document.querySelectorAll(".knob").forEach(turned);
"""


def markup(name: str, knob: Knob) -> str:
    """Returns the controls of a knob as HTML, hidden until the script shows them.

    Args:
      name: of its element; differs from those of others on the page.
      knob: what it turns.

    Raises:
      ValueError: it is damaged; see `figures.check_knob`.
    """
    knob = check_knob(knob)
    images = [
        f"test image {number}{', ' if caption else ''}{caption}"
        for number, caption in enumerate(knob.captions, 1)
    ]
    summary = _together([dial.summary for dial in knob.dials])
    return "\n".join(
        [
            f'<div class="knob" id="{name}" role="group" '
            f'aria-label="{escape(summary)}" hidden>',
            f"<h3>{escape(summary)}</h3>",
            '<p class="note">The features of a test image are changed as if it had '
            "been transformed by what is asked for, and decoded.</p>",
            _chooser(name, knob, images),
            _choice(name, knob),
            _shown(knob),
            _turns(name, knob),
            f'<script type="application/json">{_data(knob, images)}</script>',
            "</div>",
        ]
    )


def _together(names: list[str]) -> str:
    """Returns names as one text, such as "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _data(knob: Knob, images: list[str]) -> str:
    """Returns what the script reads, as JSON that cannot end its element."""
    side = shown_side(knob.side)
    sides = {name: max(1, most // side) * side for name, most in _SIDES.items()}
    data = {
        "dials": [_data_of(dial) for dial in knob.dials],
        "error": _rounded(knob.error),
        **sides,
        "images": images,
        "plain": int(frames_along(knob.dials, 0)[knob.dials[0].plain]),
        "side": side,
        "tile": tile_side(knob.side),
        "true": _source(knob.true),
        "made": {name: _source(sheet) for name, sheet in knob.made.items()},
    }
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c")


def _data_of(dial: Dial) -> dict[str, object]:
    """Returns what the script reads of a dial."""
    numbers = ("parameters", "read", "marginals", "targets")
    return {
        **{name: _rounded(getattr(dial, name)) for name in numbers},
        "code": dial.code,
        "suffix": "°" if dial.unit == "degrees" else "",
        "top": _top(dial),
    }


def _rounded(values: object) -> object:
    if isinstance(values, Mapping):
        return {name: _rounded(each) for name, each in values.items()}
    return np.round(np.asarray(values, float), _DIGITS)


def _top(dial: Dial) -> float:
    """Returns the end of the axis of probabilities."""
    tops = [np.max(each, initial=0) for each in dial.marginals.values()]
    largest = max([*tops, np.max(dial.targets, initial=0)])
    return next((top for top in _TOPS if largest <= top), 1.0)


def _source(sheet: str) -> str:
    kind = "png" if sheet.startswith("iVBOR") else "jpeg"
    return f"data:image/{kind};base64,{sheet}"


def _canvas(knob: Knob, attributes: str) -> str:
    side = shown_side(knob.side)
    return f'<canvas width="{side}" height="{side}" {attributes}></canvas>'


def _chooser(name: str, knob: Knob, images: list[str]) -> str:
    thumbs = ""
    for number, image in enumerate(images):
        checked = "" if number else " checked"
        thumbs += (
            f'<label class="thumb" title="{escape(image)}"><input type="radio" '
            f'class="unseen" name="{name}-image" value="{number}" '
            f'aria-label="{escape(image)}"{checked}>'
            + _canvas(knob, 'aria-hidden="true"')
            + f"<span>{escape(knob.captions[number])}</span></label>"
        )
    return f"<fieldset><legend>test image</legend>{thumbs}</fieldset>"


def _choice(name: str, knob: Knob) -> str:
    """Returns what chooses a prediction, or names the only one."""
    options = [f"<option>{escape(each)}</option>" for each in knob.made]
    if len(options) == 1:
        return f'<p class="choice">features by {escape(*knob.made)}</p>'
    return (
        f'<p class="choice"><label for="{name}-prediction">features by</label>'
        f'<select id="{name}-prediction">{"".join(options)}</select></p>'
    )


def _shown(knob: Knob) -> str:
    """Returns the two images, and the bars where there is a structure."""
    true, made = (
        _canvas(knob, f'class="{each}" role="img"') for each in ("true", "made")
    )
    return (
        '<div class="shown">'
        f'<div><div class="name">truly transformed</div>{true}</div>'
        f'<div><div class="name">decoded</div>{made}</div>{_structures(knob)}</div>'
    )


_SEEN = "structure of the decoded image"
_KEY = (
    '<div class="ends"><span><span class="key">encoded again</span>'
    '<span class="key wanted">wanted</span></span></div>'
)


def _structures(knob: Knob) -> str:
    """Returns the bars of each dial that has a structure."""
    if len(knob.dials) == 1:
        (dial,) = knob.dials
        if not dial.marginals:
            return ""
        return f'<div class="structure">{_bars(dial, _SEEN, _KEY)}</div>'
    charts = [
        f'<div class="structure" role="group" aria-label="structure of '
        f'{escape(dial.code)}">{_bars(dial, dial.code)}</div>'
        for dial in knob.dials
        if dial.marginals
    ]
    if not charts:
        return ""
    heading = f'<div class="name">{_SEEN}</div>'
    return f'<div class="structures">{heading}{"".join(charts)}{_KEY}</div>'


def _bars(dial: Dial, name: str, key: str = "") -> str:
    top, bins = _top(dial), dial.targets.shape[1]
    rects = "".join(f'<rect x="{10 * each + 0.5}" width="9"/>' for each in range(bins))
    return (
        f'<div class="name">{escape(name)}, 0 to {100 * top:g} %</div>'
        f'<svg viewBox="0 0 {10 * bins} 100" '
        f'preserveAspectRatio="none" aria-hidden="true">{rects}<path/></svg>'
        f'<div class="ends"><span>bin 0</span><span>{bins - 1}</span></div>{key}'
        f'<ul class="bins unseen">{"<li></li>" * bins}</ul>'
    )


_ERROR = '<span>squared error</span><b class="error"></b>'


def _turns(name: str, knob: Knob) -> str:
    """Returns what turns the dials; several have the squared error above them."""
    if len(knob.dials) == 1:
        (dial,) = knob.dials
        return f'<div class="turn">{_controls(name, dial, dial.summary, _ERROR)}</div>'
    turns = ""
    for number, dial in enumerate(knob.dials):
        # By its code alone it is named at the bars.
        called = f"{dial.code}: {dial.summary}"
        turns += (
            f'<div class="turn" role="group" aria-label="{escape(called)}">'
            f"{_controls(f'{name}-{number}', dial, called)}</div>"
        )
    return (
        f'<output aria-live="polite">{_ERROR}</output><div class="turns">{turns}</div>'
    )


def _controls(name: str, dial: Dial, called: str, more: str = "") -> str:
    """Returns a dial, if it is a circle, and a slider above its numbers.

    Args:
      name: of the elements.
      dial: what they turn.
      called: what is written above.
      more: another line of numbers.
    """
    called = f"{escape(called)} [{escape(dial.unit)}]"
    circle = _circle(dial, called) if dial.topology == "circle" else ""
    return circle + _slider(name, dial, called, more)


def _circle(dial: Dial, called: str) -> str:
    """Returns a dial: the first step is at its top, the next ones counterclockwise."""
    steps = len(dial.parameters)
    ticks = "".join(
        f'<line y1="-92" y2="-84" transform="rotate({-360 * each / steps:g})"/>'
        for each in range(steps)
    )
    for quarter, (x, y) in enumerate([(0, -68), (-62, 0), (0, 68), (62, 0)]):
        if steps % 4 == 0:
            text = parameter_text(dial.parameters[quarter * steps // 4], dial.unit)
            ticks += f'<text x="{x}" y="{y}">{text}</text>'
    return (
        f'<div class="dial" role="slider" tabindex="0" aria-valuemin="0" '
        f'aria-valuemax="{steps - 1}" aria-valuenow="0" '
        f'aria-label="{called}, dial">'
        '<svg viewBox="-100 -100 200 200" aria-hidden="true"><circle r="98"/>'
        f'{ticks}<g class="hand"><line y1="-20" y2="-74"/>'
        '<circle cy="-76" r="13"/></g></svg></div>'
    )


def _slider(name: str, dial: Dial, called: str, more: str) -> str:
    low, high = (
        parameter_text(f(dial.parameters), dial.unit) for f in (np.min, np.max)
    )
    last = len(dial.parameters) - 1
    place = int(np.sum(dial.parameters < dial.parameters[dial.plain]))
    return (
        f'<div class="slide"><label for="{name}-slider">{called}</label>'
        f'<input type="range" id="{name}-slider" min="0" max="{last}" step="1" '
        f'value="{place}">'
        f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
        '<output aria-live="polite"><span>asked for</span><b class="asked"></b>'
        '<span>read off the decoded image</span><b class="read"></b>'
        f"{more}</output></div>"
    )
