"""An HTML page of tables and pictures in a single file.

All text is escaped and pictures are embedded: the page needs no other file and no
network.
"""

import base64
import pathlib
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from duet_jax.evaluation.result import Table

_PNG = b"\x89PNG\r\n\x1a\n"


class Section(NamedTuple):
    """A section of the page, from top to bottom.

    Attributes:
      title: its heading.
      tables: its tables.
      pictures: paths of PNG files. A file that is missing, not a PNG, or a symbolic
        link is left out, since the page may be given away.
      note: a remark, such as why a picture is missing.
    """

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[pathlib.Path] = ()
    note: str = ""


_STYLE = """
:root { color-scheme: light; --ink: #222; --muted: #666; --line: #ddd;
  --blue: #2a6fb0; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.4rem 0 .6rem; padding-top: .8rem; font-size: 1.25rem;
  border-top: 1px solid var(--line); }
p.subtitle, footer, .note { color: var(--muted); }
p.subtitle { margin: .2rem 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
.headlines { display: grid; gap: 10px; padding: 0; margin: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); }
.headlines li { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.headlines b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.headlines span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .8rem 0 .2rem; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem;
  white-space: nowrap; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain th { text-align: left; }
.note { margin: .2rem 0 1rem; font-size: .85rem; }
figure { margin: 1rem 0; }
figure a { display: block; }
img { display: block; max-width: 100%; height: auto; }
footer { margin: 3rem auto 2rem; font-size: .85rem; }
"""


def build(
    sections: Sequence[Section],
    *,
    title: str,
    subtitle: str,
    headlines: Sequence[tuple[str, str]],
) -> str:
    """Returns the page.

    Args:
      sections: in order.
      title: of the page.
      subtitle: below the title.
      headlines: the numbers at the top, each with its name.
    """
    links = "".join(
        f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in sections
    )
    numbers = "".join(
        f"<li><b>{escape(number)}</b><span>{escape(name)}</span></li>"
        for number, name in headlines
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="subtitle">{escape(subtitle)}</p>
<ul class="headlines">{numbers}</ul>
<nav aria-label="sections">{links}</nav>
</header>
<main>
{"".join(map(_section, sections))}
</main>
<footer>duet_jax</footer>
</body>
</html>
"""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _section(section: Section) -> str:
    parts = [
        f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>',
        *map(_table, section.tables),
        *map(_picture, section.pictures),
        _note(section.note),
        "</section>\n",
    ]
    return "\n".join(parts)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = ""
    for row in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f"<tr>{cells}</tr>"
    plain = ' class="plain"' if table.header == ("field", "value") else ""
    return (
        f'<div class="scroll" tabindex="0"><table{plain}>'
        f"<caption>{escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{_note(table.note)}"
    )


def _picture(path: pathlib.Path) -> str:
    if path.is_symlink() or not path.is_file():
        return ""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        return ""
    data = base64.b64encode(content).decode("ascii")
    name = escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
