"""The modules of the program, parsed."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def module_name(path: pathlib.Path) -> str:
    """duet_jax/data/cache.py -> duet_jax.data.cache; main.py -> main."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = [
    ROOT / "main.py",
    ROOT / "sweep.py",
    *sorted((ROOT / "duet_jax").rglob("*.py")),
]
TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in SOURCES}
