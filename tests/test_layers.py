"""What may import what, and what has to be installed for it."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "duet_jax"

# A unit, a module or a whole subpackage, imports units of earlier rows only.
LAYERS = (
    ("errors", "types"),
    ("files",),
    (
        "interruption",
        "registry",
        "devices",
        "mesh",
        "processes",
        "symptoms",
        "terminal",
        "checkpoints",
        "figures",
    ),
    (
        "augmentations",
        "data",
        "equivariance",
        "losses",
        "metrics",
        "models",
        "optim",
        "probes",
        "targets",
        "torch_import",
    ),
    ("methods",),
    ("settings", "train_state"),
    ("config_files", "encoding", "plan", "workdir"),
    ("feeds", "record", "report", "runs"),
    ("diagnosis", "evaluators", "steps"),
    ("cells", "loop"),
    ("benchmark", "evaluate", "grid", "results", "train"),
    ("main",),
    ("sweep",),
)
LEVELS = {unit: level for level, units in enumerate(LAYERS) for unit in units}

# Import name -> name of the distribution, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "dm_pix": "dm-pix",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "PyYAML",
}
# Needed by tensorflow-datasets without being imported here: undeclared by it, or used
# only while it prepares a data set.
FOR_TFDS = {"importlib_resources", "tensorflow-cpu", "tensorflow"}
# Declared by tensorflow-datasets, and imported only where that is.
FROM_TFDS = {"requests"}


def module_name(path: pathlib.Path) -> str:
    """duet_jax/data/cache.py -> duet_jax.data.cache; main.py -> main."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = [ROOT / "main.py", ROOT / "sweep.py", *sorted(PACKAGE.rglob("*.py"))]
TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in SOURCES}


def imports(tree: ast.Module) -> set[str]:
    """Dotted names that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit_of(name: str) -> str | None:
    """The row entry that a dotted name of ours belongs to."""
    first, *rest = name.split(".")
    if first in ("main", "sweep"):
        return first
    return rest[0] if first == "duet_jax" and rest else None


def test_every_unit_has_a_layer():
    units = {unit_of(name) for name in TREES} - {None}
    assert units == set(LEVELS)
    assert len(LEVELS) == sum(map(len, LAYERS))


@pytest.mark.parametrize("name", TREES)
def test_imports_go_strictly_downwards(name):
    unit = unit_of(name)
    used = {unit_of(other) for other in imports(TREES[name])} - {None, unit}
    upwards = {other for other in used if LEVELS[other] >= LEVELS[unit]}
    assert not upwards


def test_a_package_has_no_import_cycle():
    """Layers order the units; this orders the modules within each."""
    graph = {
        name: {
            target
            for imported in imports(tree)
            for target in (imported, imported.rpartition(".")[0])
            # `from package import module` also names the package, which is only
            # where the module is.
            if target in TREES and target != unit_package(name)
        }
        for name, tree in TREES.items()
    }
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in finished:
            for other in graph[name]:
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def unit_package(name: str) -> str:
    """duet_jax.data.cache -> duet_jax.data."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", TREES)
def test_module_conventions(name):
    tree = TREES[name]
    last = name.rpartition(".")[2]
    assert last not in {"utils", "util", "helpers", "common", "manager", "misc"}
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("name", TREES)
def test_nobody_imports_configs_or_tests(name):
    assert not {i.split(".")[0] for i in imports(TREES[name])} & {"configs", "tests"}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def listed(file: str) -> set[str]:
    """Distributions in a requirements file."""
    lines = (line.partition("#")[0] for line in (ROOT / file).read_text().splitlines())
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines if line.strip()}


def third_party(paths: list[pathlib.Path]) -> set[str]:
    """Distributions that files import, our own and Python's aside."""
    top = {
        name.split(".")[0]
        for path in paths
        for name in imports(ast.parse(path.read_text()))
    }
    own = {"duet_jax", "benchmarks", "configs", "main", "sweep"}
    own |= {name for path in paths for name in (path.stem, path.parent.name)}
    top -= own | set(sys.stdlib_module_names)
    return {normal(DISTRIBUTIONS.get(name, name)) for name in top}


def test_requirements_are_the_imports():
    imported = third_party([*SOURCES, *(ROOT / "configs").glob("*.py")])
    required = listed("requirements.txt")
    assert imported - required == FROM_TFDS - required
    assert required - imported == {normal(name) for name in FOR_TFDS}


def test_tests_need_little_more():
    more = third_party(sorted((ROOT / "tests").rglob("*.py")))
    more -= listed("requirements.txt")
    # Two are not imported: a program, and what pytest's own options ask for.
    assert listed("requirements-test.txt") - more == {"ruff", "pytest-xdist"}
    assert more <= listed("requirements-test.txt")


def test_requirements_have_both_bounds():
    for file in [ROOT / "requirements.txt", *ROOT.glob("requirements-*.txt")]:
        for line in file.read_text().splitlines():
            bare = line.partition("#")[0].partition(";")[0].strip()
            if bare:
                assert re.fullmatch(r"[\w\[\].-]+>=[\d.]+,<[\d.]+", bare), line


def test_pyproject_reads_the_same_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["project"]["dynamic"]) == {
        "dependencies",
        "optional-dependencies",
    }
    assert project["tool"]["setuptools"]["dynamic"] == {
        "dependencies": {"file": ["requirements.txt"]},
        "optional-dependencies": {
            extra: {"file": [f"requirements-{extra}.txt"]}
            for extra in ("test", "benchmark")
        },
    }
