"""The result of an evaluator: values, tables and figures."""

import math
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
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def as_text(self) -> str:
        """Returns aligned columns: the first to the left, the others to the right."""
        rows = [tuple(map(printable, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: tuple[str, ...]) -> str:
            cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
            cells[0] = row[0].ljust(widths[0])
            return "  ".join(cells).rstrip()

        rule = "  ".join("-" * width for width in widths)
        lines = [self.title, line(rows[0]), rule, *map(line, rows[1:])]
        return "\n".join(lines + ([self.note] if self.note else []))


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
