"""What an evaluator gives back."""

from typing import Any, NamedTuple

from matplotlib.figure import Figure

from duet_jax.runtime.terminal import printable


class Table(NamedTuple):
    """A table of results, as it is printed.

    Attributes:
      title: above it.
      header: one text per column.
      rows: texts, as many as there are columns.
      note: below it; says what the numbers mean where the header cannot.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def as_text(self) -> str:
        """Returns columns: the first aligned to the left, the others to the right."""
        rows = [tuple(map(printable, row)) for row in (self.header, *self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]

        def line(row: tuple[str, ...]) -> str:
            first, *others = (
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            return "  ".join([first, *others]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        lines = [self.title, line(rows[0]), rule, *map(line, rows[1:])]
        return "\n".join(lines + ([self.note] if self.note else []))


class Result(NamedTuple):
    """What an evaluator has found.

    Attributes:
      values: numbers, for the .json file: nested dicts and lists of plain types.
      tables: the same for people.
      figures: pictures by name; `roc` becomes `eval/<mode>_roc.png`.
    """

    values: dict[str, Any]
    tables: tuple[Table, ...]
    figures: dict[str, Figure]


def percent(fraction: float | None) -> str:
    """Returns a fraction as percent with one decimal; "-" for none."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"
