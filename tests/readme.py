"""The README and the pages of the documentation, and the examples in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
FILES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
# Path from the root -> text.
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
README = PAGES["README.md"]
ADDITIONS = PAGES["docs/add.md"]


def blocks(page: str, language: str = "python") -> list[str]:
    """The texts of the blocks of one language in a page; "" for those of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [text for given, text in found if given == language]


def block(example: str, page: str = "docs/add.md") -> str:
    """The text of the first block of Python behind `example`."""
    behind = PAGES[page].partition(example)[2]
    return re.search(r"```python\n(.*?)```", behind, re.DOTALL)[1]
