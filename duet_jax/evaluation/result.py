"""The result of an evaluator: values, tables and figures."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from duet_jax.figures import Drawing
from duet_jax.runtime.terminal import printable


class Table(NamedTuple):
    """A table of results, as it is printed.

    Attributes:
      title: above the table.
      header: one text per column.
      rows: texts, one per column.
      note: below the table; explains the numbers where the header cannot.
      about: code of the augmentation that it is about; "" for none, or several.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    about: str = ""

    def as_text(self, columns: int = 80) -> str:
        """Returns aligned columns: the first to the left, the others to the right.

        Args:
          columns: of the terminal. A table that is wider has its rows below each
            other, one line for each of their cells.
        """
        rows = [tuple(map(printable, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = _aligned(rows, widths)
        if max(map(len, lines)) > columns:
            lines = _as_records(rows)
        note = textwrap.wrap(self.note, columns, break_long_words=False)
        return "\n".join([self.title, *lines, *note])


def _aligned(rows: Sequence[tuple[str, ...]], widths: Sequence[int]) -> list[str]:
    """Returns the lines of a table; the first row is its header."""
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _as_records(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns every row as a line with its first cell, and one for each other cell."""
    header, *others = rows
    width = max(map(len, header[1:]))
    lines = []
    for row in others:
        lines.append(f"{header[0]} {row[0]}")
        pairs = zip(header[1:], row[1:], strict=True)
        lines += [f"  {name.ljust(width)}  {cell}".rstrip() for name, cell in pairs]
    return lines


class Result(NamedTuple):
    """What an evaluator returns.

    Attributes:
      values: numbers for the .json file: nested dicts; see `store.plain`.
      tables: the same numbers for people.
      figures: by name; `roc` becomes `eval/<mode>_roc.png`. A drawing is also kept as
        data, so that it can be drawn together with those of other runs.
    """

    values: dict[str, Any]
    tables: tuple[Table, ...]
    figures: dict[str, Figure | Drawing]


def percent(fraction: float | None) -> str:
    """Returns a fraction as a percentage with one decimal; "-" for None and nan."""
    missing = fraction is None or math.isnan(fraction)
    return "-" if missing else f"{100 * fraction:.1f}"
