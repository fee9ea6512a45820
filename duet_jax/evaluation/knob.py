"""The knob on the page: a parameter to turn, and the images that are decoded for it.

The controls are shown by the script of the page; without it there is the still picture,
see `figures.build_knob`.
"""

import json
from collections.abc import Mapping
from html import escape

import numpy as np

from duet_jax.evaluation.store import plain
from duet_jax.figures import Knob, check_knob
from duet_jax.figures.knob import parameter_text, shown_side, tile_side

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
  .knob .structure svg { height: 110px; } }
"""

# What is chosen is kept in the controls alone; `show` draws what they say.
SCRIPT = """
const turned = async knob => {
  const data = JSON.parse(knob.querySelector("script").textContent);
  const find = name => knob.querySelector(name);
  const [slider, dial, choice] = ["input[type=range]", ".dial", "select"].map(find);
  const places = data.parameters.map((_, frame) => frame)
    .sort((a, b) => data.parameters[a] - data.parameters[b]);
  const last = places.length - 1;
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
  const inUnit = value => rounded(value) + (value === null ? "" : data.suffix);
  const percent = value => Math.round(100 * value) + " %";

  const showBars = (marginal, target) => {
    const height = share => Math.min(share / data.top, 1) * 100;
    let outline = "M0 100";
    knob.querySelectorAll("rect").forEach((bar, bin) => {
      bar.setAttribute("height", height(marginal[bin]));
      bar.setAttribute("y", 100 - height(marginal[bin]));
      outline += `V${100 - height(target[bin])}h10`;
    });
    find("path").setAttribute("d", outline + "V100");
    knob.querySelectorAll(".bins li").forEach((line, bin) => {
      line.textContent = `bin ${bin}: ${percent(marginal[bin])}, ` +
        `wanted ${percent(target[bin])}`;
    });
  };
  const show = () => {
    const frame = places[slider.value];
    const image = Number(find("input:checked").value);
    const name = names[choice ? choice.selectedIndex : 0];
    const asked = inUnit(data.parameters[frame]);
    paint(find(".true"), "", image, frame);
    paint(find(".made"), name, image, frame);
    find(".true").setAttribute("aria-label",
      `${data.images[image]}, transformed: ${asked}`);
    find(".made").setAttribute("aria-label",
      `${data.images[image]}, decoded for ${asked} by ${name}`);
    find(".asked").textContent = asked;
    find(".read").textContent = inUnit(data.read[name][image][frame]);
    find(".error").textContent = rounded(data.error[name][image][frame]);
    slider.setAttribute("aria-valuetext", asked);
    if (dial) {
      dial.setAttribute("aria-valuenow", slider.value);
      dial.setAttribute("aria-valuetext", asked);
      find(".hand").setAttribute("transform",
        `rotate(${-360 * frame / places.length})`);
    }
    if (data.targets.length)
      showBars(data.marginals[name][image][frame], data.targets[frame]);
  };
  const go = place => {
    slider.value = dial ? (place + last + 1) % (last + 1)
      : Math.max(0, Math.min(place, last));
    show();
  };

  const steps = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1};
  const press = event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in steps) go(Number(slider.value) + steps[event.key]);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(last);
    else return;
    event.preventDefault();
  };
  slider.addEventListener("keydown", press);
  knob.addEventListener("input", show);
  if (dial) {
    const turn = event => {
      const box = dial.getBoundingClientRect();
      const right = event.clientX - box.left - box.width / 2;
      const down = event.clientY - box.top - box.height / 2;
      // From the top, counterclockwise.
      const share = Math.atan2(-right, -down) / (2 * Math.PI) + 1;
      go(places.indexOf(Math.round(share * places.length) % places.length));
    };
    dial.addEventListener("keydown", press);
    dial.addEventListener("pointerdown", event => {
      event.preventDefault();
      dial.focus();
      dial.setPointerCapture(event.pointerId);
      turn(event);
    });
    dial.addEventListener("pointermove", event => {
      if (dial.hasPointerCapture(event.pointerId)) turn(event);
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
    dial = _dial(knob) if knob.topology == "circle" else ""
    return "\n".join(
        [
            f'<div class="knob" id="{name}" role="group" '
            f'aria-label="{escape(knob.summary)}" hidden>',
            f"<h3>{escape(knob.summary)}</h3>",
            '<p class="note">The features of a test image are changed as if it had '
            "been transformed by what is asked for, and decoded.</p>",
            _chooser(name, knob, images),
            _choice(name, knob),
            _shown(knob),
            f'<div class="turn">{dial}{_slider(name, knob)}</div>',
            f'<script type="application/json">{_data(knob, images)}</script>',
            "</div>",
        ]
    )


def _data(knob: Knob, images: list[str]) -> str:
    """Returns what the script reads, as JSON that cannot end its element."""
    side = shown_side(knob.side)
    sides = {name: max(1, most // side) * side for name, most in _SIDES.items()}
    numbers = {
        "parameters": knob.parameters,
        "read": knob.read,
        "error": knob.error,
        "marginals": knob.marginals,
        "targets": knob.targets,
    }
    data = {
        **{name: _rounded(each) for name, each in numbers.items()},
        **sides,
        "suffix": "°" if knob.unit == "degrees" else "",
        "images": images,
        "plain": knob.plain,
        "side": side,
        "tile": tile_side(knob.side),
        "top": _top(knob),
        "true": _source(knob.true),
        "made": {name: _source(sheet) for name, sheet in knob.made.items()},
    }
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c")


def _rounded(values: object) -> object:
    if isinstance(values, Mapping):
        return {name: _rounded(each) for name, each in values.items()}
    return np.round(np.asarray(values, float), _DIGITS)


def _top(knob: Knob) -> float:
    """Returns the end of the axis of probabilities."""
    tops = [np.max(each, initial=0) for each in knob.marginals.values()]
    largest = max([*tops, np.max(np.asarray(knob.targets, float), initial=0)])
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
    bars = _bars(np.shape(knob.targets)[1], _top(knob)) if knob.marginals else ""
    return (
        '<div class="shown">'
        f'<div><div class="name">truly transformed</div>{true}</div>'
        f'<div><div class="name">decoded</div>{made}</div>{bars}</div>'
    )


def _bars(bins: int, top: float) -> str:
    rects = "".join(f'<rect x="{10 * each + 0.5}" width="9"/>' for each in range(bins))
    return (
        '<div class="structure"><div class="name">structure of the decoded image, '
        f'0 to {100 * top:g} %</div><svg viewBox="0 0 {10 * bins} 100" '
        f'preserveAspectRatio="none" aria-hidden="true">{rects}<path/></svg>'
        f'<div class="ends"><span>bin 0</span><span>{bins - 1}</span></div>'
        '<div class="ends"><span><span class="key">encoded again</span>'
        '<span class="key wanted">wanted</span></span></div>'
        f'<ul class="bins unseen">{"<li></li>" * bins}</ul></div>'
    )


def _dial(knob: Knob) -> str:
    """Returns a dial: the first frame is at its top, the next ones counterclockwise."""
    steps = len(knob.parameters)
    ticks = "".join(
        f'<line y1="-92" y2="-84" transform="rotate({-360 * each / steps:g})"/>'
        for each in range(steps)
    )
    for quarter, (x, y) in enumerate([(0, -68), (-62, 0), (0, 68), (62, 0)]):
        if steps % 4 == 0:
            text = parameter_text(knob.parameters[quarter * steps // 4], knob.unit)
            ticks += f'<text x="{x}" y="{y}">{text}</text>'
    return (
        f'<div class="dial" role="slider" tabindex="0" aria-valuemin="0" '
        f'aria-valuemax="{steps - 1}" aria-valuenow="0" '
        f'aria-label="{escape(knob.summary)} [{escape(knob.unit)}], dial">'
        '<svg viewBox="-100 -100 200 200" aria-hidden="true"><circle r="98"/>'
        f'{ticks}<g class="hand"><line y1="-20" y2="-74"/>'
        '<circle cy="-76" r="13"/></g></svg></div>'
    )


def _slider(name: str, knob: Knob) -> str:
    low, high = (
        parameter_text(f(knob.parameters), knob.unit) for f in (np.min, np.max)
    )
    last = len(knob.parameters) - 1
    place = int(np.sum(knob.parameters < knob.parameters[knob.plain]))
    return (
        f'<div class="slide"><label for="{name}-slider">{escape(knob.summary)} '
        f"[{escape(knob.unit)}]</label>"
        f'<input type="range" id="{name}-slider" min="0" max="{last}" step="1" '
        f'value="{place}">'
        f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
        '<output aria-live="polite"><span>asked for</span><b class="asked"></b>'
        '<span>read off the decoded image</span><b class="read"></b>'
        '<span>squared error</span><b class="error"></b></output></div>'
    )
