"""The examples of the README, as they stand there."""

import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def block(example: str) -> str:
    """The text of the first block of Python behind `example`."""
    return re.search(r"```python\n(.*?)```", README.partition(example)[2], re.DOTALL)[1]
