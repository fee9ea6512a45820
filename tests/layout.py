"""Where the parts of a figure are."""

from collections.abc import Iterable

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox


def check_apart(
    figure: Figure, parts: Iterable[Artist], boxes: Iterable[Bbox] = ()
) -> None:
    """Texts, `parts` and `boxes` lie inside the figure, and none covers another."""
    figure.draw_without_rendering()
    extents = [each.get_window_extent() for each in (*figure.texts, *parts)]
    boxes = [*extents, *boxes]
    corners = np.array([(b.x0, b.y0, b.x1, b.y1) for b in boxes])
    assert corners[:, :2].min() >= 0
    assert corners[:, 2].max() <= figure.bbox.width
    assert corners[:, 3].max() <= figure.bbox.height
    # Two boxes overlap if each begins before the other ends, in both directions.
    begins, ends = corners[:, None, :2] + 1, corners[None, :, 2:]
    meets = (begins < ends).all(-1)
    np.testing.assert_array_equal(meets & meets.T, np.eye(len(boxes), dtype=bool))
