"""What MkDocs puts into the pages: tables of fields and flags, and files of the root.

A page says `<!-- include: fields -->`; `PARTS` has what can be included. It is made
anew in every build, from the program itself, so that it cannot be of another version.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from duet_jax import cli  # noqa: E402
from duet_jax.augmentations import AUGMENTATIONS, LEARNABLE, Options  # noqa: E402
from duet_jax.config import build, checks, loading  # noqa: E402
from duet_jax.errors import UsageError  # noqa: E402
from duet_jax.evaluation import EVALUATORS  # noqa: E402
from duet_jax.losses import TARGETS  # noqa: E402
from duet_jax.methods import METHODS  # noqa: E402
from duet_jax.models.encoders import ENCODERS  # noqa: E402

_BASE = ROOT / "configs" / "base.py"
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_OLD_FLAG = re.compile(r"\s*\[(--[\w-]+)\]")

# Fields without a rule in `checks.RULES` -> what they may be.
_CHOICES = {
    "method": METHODS,
    "learned": LEARNABLE,
    "encoder.name": ENCODERS,
    "augmentation.stack": AUGMENTATIONS,
    "duet.target": ("auto", *TARGETS),
}


class Field(NamedTuple):
    """A field of the configuration.

    Attributes:
      name: dotted, such as duet.num_bins.
      default: its value in `configs/base.py`.
      comment: lines of the comment beside it.
    """

    name: str
    default: Any
    comment: tuple[str, ...]


def _comment(lines: list[str], node: ast.stmt) -> tuple[str, ...]:
    """Returns the comment above a statement, and the one at its end."""
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.lstrip().startswith("#"):
            break
        above.insert(0, line.lstrip()[1:])
    end = lines[node.end_lineno - 1][node.end_col_offset :]
    return (*above, *([end.partition("#")[2]] if "#" in end else []))


def _statements() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields what `configs/base.py` sets, fields and sections, with its comments."""
    text = _BASE.read_text()
    (function,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "get_config"
    )
    prefix = {"config": ""}
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        place = node.targets[0]
        if not isinstance(place, ast.Attribute):
            continue
        name = f"{prefix[place.value.id]}{place.attr}"
        for alias in node.targets[1:]:
            prefix[alias.id] = f"{name}."
        yield name, _comment(text.splitlines(), node)


def fields() -> list[Field]:
    """Returns all fields in the order of `configs/base.py`."""
    defaults = dict(checks.fields(loading.schema()))
    return [
        Field(name, defaults[name], comment)
        for name, comment in _statements()
        if name in defaults
    ]


def _shown(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, float):
        return min(repr(value), f"{value:.4g}", key=len)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bad(default: Any) -> Any:
    """Returns a value that no option of augmentations may have."""
    return tuple(-9.0 for _ in default) if isinstance(default, tuple) else -9.0


def allowed(name: str, default: Any) -> str:
    """Returns what a field may be, in words; "" if anything of its type."""
    if name in _CHOICES:
        several = {"learned": " or several", "augmentation.stack": " in any order"}
        words = " ".join(f"`{each}`" for each in _CHOICES[name])
        return f"of {words}{several.get(name, '')}"
    if name in checks.RULES:
        return checks.RULES[name].says.removeprefix("must be ").removeprefix("must ")
    section, _, leaf = name.rpartition(".")
    if section == "augmentation":
        try:
            Options(**{leaf: _bad(default)})
        except UsageError as error:
            rule = str(error).partition(" must ")[2].partition(";")[0]
            return rule.removeprefix("be ").removesuffix(".")
    return ""


def readers(name: str) -> str:
    """Returns who reads a field, where it is not every training."""
    section, _, leaf = name.rpartition(".")
    widths = [target for target, each in TARGETS.items() if each.width == leaf]
    modes = [mode for mode, each in EVALUATORS.items() if name in each.fields]
    if section == "duet" and widths:
        return f"method duet with the target {' or '.join(widths)}"
    if section in METHODS:
        return f"method {section}"
    if name == "learned":
        return f"methods {', '.join(filter(build.reads_learned, METHODS))}"
    if modes:
        training = "a training with knn.every, and by " if section == "knn" else ""
        return f"{training}mode {', '.join(modes)}"
    if section == "augmentation" and leaf != "stack":
        codes = [
            code
            for code, record in AUGMENTATIONS.items()
            if leaf in {*record.options, *record.stretched_by, record.probability}
        ]
        return f"augmentation {', '.join(codes)}"
    return ""


def _text(comment: tuple[str, ...]) -> str:
    """Returns a comment as Markdown: what is indented becomes a block of code."""
    parts: list[str] = []
    code: list[str] = []
    for line in (*comment, " "):
        line = _OLD_FLAG.sub("", line)
        if line.startswith("   "):
            code.append(line)
            continue
        if code:
            parts += ["", "```", *(each[3:] for each in code), "```", ""]
            code = []
        parts.append(line.strip().replace("<", "&lt;"))
    text = "\n".join(parts).strip()
    # Values, such as cpu, keep their case.
    if re.match(r"[a-z']+( |; |$)", text):
        text = text[0].upper() + text[1:]
    return f"{text}." if text[-1:].isalnum() else text


def _kind(field: Field) -> str:
    says = str(checks.bad_value(field.name, "", field.default))
    return re.search(r" must be (.*?), such as ", says)[1]


def _facts(field: Field) -> str:
    """Returns the line of facts below the name of a field."""
    old = _OLD_FLAG.search(" ".join(field.comment))
    default = _shown(field.default)
    facts = [
        f"default `{default}`" if default else "default: empty",
        _kind(field),
        allowed(field.name, field.default),
        f"read by {readers(field.name)}" if readers(field.name) else "",
        "may change when a run continues" if field.name in checks.CHANGEABLE else "",
        "may be set for evaluations" if field.name in checks.EVALUATION else "",
        f"ml-duet: `{old[1]}`" if old else "",
    ]
    return "; ".join(filter(None, facts)).replace("<", "&lt;") + "."


def fields_text() -> str:
    """Returns all fields as Markdown: sections, and below them what is in them."""
    sections = {name: c for name, c in _statements() if name not in _names()}
    out = ["## The run as a whole", ""]
    at = ""
    for field in sorted(fields(), key=lambda each: "." in each.name):
        section, _, _ = field.name.rpartition(".")
        if section != at:
            at = section
            out += [f"## {section}", "", _text(sections[section]), ""]
        out += [f"### `{field.name}`", "", _facts(field)]
        out += ["{ .facts }"]
        out += ["", _text(field.comment), ""]
    return "\n".join(out)


def _names() -> set[str]:
    return {name for name, _ in checks.fields(loading.schema())}


def flags_text() -> str:
    """Returns the flags of `main.py` as a table, and the modes with theirs."""
    out = ["| flag | with `--mode=` | meaning |", "|---|---|---|"]
    for name, flag in cli.FLAGS.items():
        modes = ", ".join(f"`{mode}`" for mode in flag.modes) or "all"
        if {*cli.MODES} - {*flag.modes} == {*cli.PROGRAMS}:
            modes = "all evaluations"
        shown = f"--{name}" if flag.switch else f"--{name}="
        out.append(f"| `{shown}` | {modes} | {_cell(flag.meaning)} |")
    out.append("| `--config.<field>=` | all | Sets a field of the configuration. |")
    out.append(f"| `--debug` | all | {cli._DEBUG_MEANING} |")
    out.append(
        "| `--list` | - | Print what there is to choose from: configurations, modes, "
        "methods, augmentations, encoders, data sets. |"
    )
    out.append(
        "| `--help`, `--version` | - | Print all flags and fields; the version, the "
        "commit, JAX's version and the devices. |"
    )
    return "\n".join(out)


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", r"\|").replace("\\,", "`\\,`")


def modes_text() -> str:
    """Returns the modes with the flags and fields that each reads."""
    out = ["| mode | own flags | fields that may be set |", "|---|---|---|"]
    for mode in cli.MODES:
        flags = [name for name, flag in cli.FLAGS.items() if mode in flag.modes]
        own = " ".join(f"`--{name}`" for name in flags) or "-"
        names = "all" if mode in ("train", "benchmark") else "-"
        if mode in EVALUATORS:
            names = " ".join(f"`{name}`" for name in EVALUATORS[mode].fields) or "-"
        out.append(f"| `{mode}` | {own} | {names} |")
    return "\n".join(out)


def sweep_text() -> str:
    """Returns what `python sweep.py --help` prints."""
    command = [sys.executable, "sweep.py", "--help"]
    environment = {**os.environ, "COLUMNS": "80", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return f"```\n{done.stdout.strip()}\n```"


def _of_root(name: str) -> Callable[[], str]:
    """Returns a file of the root, whose links are from there."""

    def text() -> str:
        found = (ROOT / name).read_text().replace("](docs/", "](")
        found = found.replace("](CHANGELOG.md", "](changelog.md")
        found = found.replace("](CONTRIBUTING.md", "](contributing.md")
        return re.sub(r"\]\(README\.md[^)]*\)", "](index.md)", found)

    return text


def home_text() -> str:
    """Returns the beginning of the README: what, why, for whom, what was measured."""
    return _of_root("README.md")().partition("\n## Install")[0]


PARTS: dict[str, Callable[[], str]] = {
    "home": home_text,
    "fields": fields_text,
    "flags": flags_text,
    "modes": modes_text,
    "sweep": sweep_text,
    "CHANGELOG.md": _of_root("CHANGELOG.md"),
    "CONTRIBUTING.md": _of_root("CONTRIBUTING.md"),
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Includes the parts that a page asks for; MkDocs calls it for every page."""
    text = _INCLUDE.sub(lambda found: PARTS[found[1]](), markdown)
    # A number and its deviation stay on one line.
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
