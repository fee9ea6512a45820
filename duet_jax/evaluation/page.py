"""An HTML page of numbers, pictures and tables in a single file.

All text is escaped and pictures are embedded: the page needs no other file and no
network. Nothing runs on it but the script that sorts its tables and turns its knobs.
"""

import base64
import hashlib
import io
import pathlib
import struct
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from duet_jax.evaluation import knob
from duet_jax.evaluation.result import Table
from duet_jax.figures import Knob
from duet_jax.figures.style import sign, styled

_PNG = b"\x89PNG\r\n\x1a\n"
_LONG = 12  # rows up to which a table is not folded; the first one never is


class Bar(NamedTuple):
    """A number beside those that it is to be compared with.

    Attributes:
      name: what it is of.
      text: the number.
      share: length of the bar, from 0 to 1.
      own: True for a number of the run itself.
    """

    name: str
    text: str
    share: float
    own: bool = False


class Headline(NamedTuple):
    """A box at the top of the page.

    Attributes:
      number: the most important thing to know, with its unit.
      name: what it is.
      meaning: one line for somebody who has not heard of it.
      bars: the number and its yardsticks; none without any.
    """

    number: str
    name: str
    meaning: str
    bars: Sequence[Bar] = ()


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
      name: its alternative text.
      content: of a PNG file.
      caption: what it shows, in a line.
    """

    name: str
    content: bytes
    caption: str = ""


class Section(NamedTuple):
    """A section of the page, from top to bottom.

    Attributes:
      title: its heading.
      tables: its tables, which come after the pictures.
      pictures: its pictures.
      note: a remark, such as why a picture is missing.
      folded: True if only the heading is shown at first.
      knobs: its knobs, which come before the pictures; whole, see `check_knob`.
    """

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    note: str = ""
    folded: bool = False
    knobs: Sequence[Knob] = ()


def read_picture(path: pathlib.Path, caption: str = "") -> list[Picture]:
    """Returns a list of the picture in a PNG file.

    It is empty if the file is missing, not a PNG, or a symbolic link: the page may be
    given away.
    """
    if path.is_symlink() or not path.is_file():
        return []
    content = path.read_bytes()
    if not content.startswith(_PNG) or len(content) < 24:
        return []
    return [Picture(path.stem.replace("_", " "), content, caption)]


@styled
def picture_of(
    figure: Figure, name: str, caption: str = "", small_print: str = ""
) -> Picture:
    """Returns a figure as a picture; see `figures.style.save`."""
    sign(figure, small_print)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Picture(name, file.getvalue(), caption)


_STYLE = """
:root { color-scheme: light dark; --ink: #222; --muted: #5f5f5f; --line: #ddd;
  --ground: #fff; --raised: #f7f8fa; --accent: #2a6fb0; --pale: #b9bec6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --muted: #a3a8b0;
  --line: #3a3d42; --ground: #16181b; --raised: #202327; --accent: #7db4ea;
  --pale: #5c636d; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { display: inline; font-size: 1.25rem; overflow-wrap: anywhere; }
h3 { margin: 1.4rem 0 .3rem; font-size: .95rem; overflow-wrap: anywhere; }
p.subtitle, footer, .note, figcaption { color: var(--muted); overflow-wrap: anywhere; }
p.subtitle { margin: .2rem 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.2rem 0; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.headlines { display: grid; gap: 12px; padding: 0; margin: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.headlines li { background: var(--raised); border-radius: 10px; padding: 14px 16px; }
.headlines h3 { margin: 0; }
.headlines b { display: block; font-size: 1.7rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.headlines p { margin: .2rem 0 .5rem; color: var(--muted); font-size: .85rem; }
.bars { display: grid; grid-template-columns: auto 1fr auto; gap: .1rem .6rem;
  align-items: center; margin: 0; font-size: .85rem; }
.bars dt { grid-column: 1; color: var(--muted); }
.bars dd { margin: 0; display: contents; }
.bars svg { width: 100%; height: 9px; }
.bars rect { fill: var(--pale); }
.bars rect.own { fill: var(--accent); }
.bars dt.own { color: var(--ink); font-weight: 600; }
.bars span { text-align: right; font-variant-numeric: tabular-nums; }
main > details { border-top: 1px solid var(--line); margin-top: 1.4rem;
  padding-top: .9rem; }
summary { cursor: pointer; }
details.table { margin: 1rem 0; }
details.table > summary { font-size: .95rem; font-weight: 600;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .3rem 0 .2rem; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--muted); font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky;
  left: 0; background: var(--ground); white-space: normal; overflow-wrap: break-word;
  min-width: 8.5rem; max-width: 16rem; }
.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain th { text-align: left; }
.note { margin: .2rem 0 1rem; font-size: .85rem; max-width: 75ch; }
.pictures { display: flex; flex-wrap: wrap; gap: 0 24px; align-items: flex-start; }
.pictures > div { max-width: 100%; }
figure { margin: 1.2rem 0; }
figcaption { font-size: .85rem; max-width: 75ch; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: 4px; }
figure .open { display: inline-block; max-width: 100%; cursor: zoom-in; }
figure .close { display: none; }
figure:target { position: fixed; inset: 0; z-index: 1; margin: 0; padding: 12px;
  overflow: auto; background: var(--ground); }
figure:target .open { pointer-events: none; max-width: none; width: max(100%, 1100px); }
figure:target img { width: 100%; }
figure:target .close { display: inline-block; position: sticky; left: 0;
  padding: .2rem .8rem .5rem 0; font-size: 1.05rem; }
@media (prefers-color-scheme: dark) { img { padding: 4px; } }
@media (max-width: 500px) { header, main, footer { padding: 0 14px; }
  figure:not(:target) .open::after { content: "tap to enlarge"; display: block;
    font-size: .75rem; color: var(--accent); }
  header { padding-top: 18px; } th:first-child, td:first-child { max-width: 9rem; } }
footer { margin: 3rem auto 2rem; font-size: .8rem; border-top: 1px solid var(--line);
  padding-top: .8rem; }
footer dt { font-weight: 600; margin-top: .5rem; }
footer dd { margin: 0; }
"""

# Sorts a table by the column whose head is pressed; Escape closes a large picture.
_SCRIPT = """
for (const head of document.querySelectorAll("table:not(.plain) th")) {
  const press = document.createElement("button");
  press.append(...head.childNodes);
  head.append(press);
  press.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending";
    const body = head.closest("table").tBodies[0];
    const text = row => row.cells[head.cellIndex].textContent;
    const number = row => parseFloat(
      text(row).replace("\\u2212", "-").replace(/^[^\\d.+-]+|,/g, ""));
    const compare = (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      const order = isNaN(x) ? text(a).localeCompare(text(b)) : x - y;
      return down ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
    for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
  });
}
document.addEventListener("keydown", event => {
  const large = document.querySelector("figure:target .close");
  if (event.key === "Escape" && large) large.click();
});
"""


_ALL_STYLE = _STYLE + knob.STYLE
_ALL_SCRIPT = _SCRIPT + knob.SCRIPT


def _hash(text: str) -> str:
    """Returns the source of the content security policy that allows `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


_POLICY = (
    f"default-src 'none'; img-src data:; style-src {_hash(_ALL_STYLE)}; "
    f"script-src {_hash(_ALL_SCRIPT)}; base-uri 'none'; form-action 'none'"
)


def build(
    sections: Sequence[Section],
    *,
    title: str,
    subtitle: str,
    headlines: Sequence[Headline] = (),
    foot: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns the page.

    Args:
      sections: in order.
      title: of the page.
      subtitle: below the title.
      headlines: the boxes at the top.
      foot: entries at the end, each with its name.
    """
    links = "".join(
        f'<a href="#section-{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    boxes = "".join(map(_headline, headlines))
    about = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in foot
    )
    body = "".join(_section(*numbered) for numbered in enumerate(sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_ALL_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="subtitle">{escape(subtitle)}</p>
<ul class="headlines">{boxes}</ul>
<nav aria-label="sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer><dl>{about}</dl>duet_jax</footer>
<script>{_ALL_SCRIPT}</script>
</body>
</html>
"""


def _headline(box: Headline) -> str:
    bars = "".join(map(_bar, box.bars))
    return (
        f"<li><h3>{escape(box.name)}</h3><b>{escape(box.number)}</b>"
        f'<p>{escape(box.meaning)}</p><dl class="bars">{bars}</dl></li>'
    )


def _bar(bar: Bar) -> str:
    own = ' class="own"' if bar.own else ""
    width = f"{100 * min(max(bar.share, 0), 1):.1f}"
    return (
        f"<dt{own}>{escape(bar.name)}</dt><dd>"
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect{own} width="{width}" height="8"/></svg>'
        f"<span>{escape(bar.text)}</span></dd>"
    )


def _section(number: int, section: Section) -> str:
    # A link to what is inside opens a folded section.
    parts = [
        f"<details{'' if section.folded else ' open'}>"
        f"<summary><h2>{escape(section.title)}</h2></summary>",
        f'<div id="section-{number}">',
        *(
            knob.markup(f"knob-{number}-{n}", each)
            for n, each in enumerate(section.knobs)
        ),
        '<div class="pictures">',
        *(
            _picture(f"picture-{number}-{n}", picture)
            for n, picture in enumerate(section.pictures)
        ),
        "</div>",
        _note(section.note),
        *(_table(table, folds=n > 0) for n, table in enumerate(section.tables)),
        "</div></details>\n",
    ]
    return "\n".join(parts)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _table(table: Table, *, folds: bool) -> str:
    """Returns a table; one that `folds` is folded if it is long."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = ""
    for row in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f"<tr>{cells}</tr>"
    plain = ' class="plain"' if table.header == ("field", "value") else ""
    content = (
        f'<div class="scroll" tabindex="0"><table{plain} '
        f'aria-label="{escape(table.title)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{_note(table.note)}"
    )
    title = escape(table.title)
    if folds and len(table.rows) > _LONG:
        summary = f"<summary>{title}, {len(table.rows)} rows</summary>"
        return f'<details class="table">{summary}{content}</details>'
    return f"<h3>{title}</h3>{content}"


def _picture(name: str, picture: Picture) -> str:
    width, height = struct.unpack(">II", picture.content[16:24])
    data = base64.b64encode(picture.content).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<div id="at-{name}"><figure id="{name}">'
        f'<a class="close" href="#at-{name}">close</a>'
        f'<a class="open" href="#{name}" title="open large"><img '
        f'alt="{escape(picture.name)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"></a>'
        f"<figcaption>{caption}</figcaption></figure></div>"
    )
