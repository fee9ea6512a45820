"""What may import what, and what has to be installed for it."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest
from sources import ROOT, SOURCES, TREES

# The floors of the house, from the ground up. A room, a package or a module at the top,
# imports rooms of lower floors, and of its own floor without circles.
FLOORS = (
    ("errors", "lazy", "types"),
    # The science: arrays in, arrays out; no configuration, files or processes.
    ("augmentations", "losses", "methods", "metrics", "models", "optim", "probes"),
    # What the machinery is made of.
    ("config", "data", "figures", "loggers", "runtime"),
    # What is done with it.
    ("evaluation", "profiling", "runs", "training"),
    # The calls from Python.
    ("augment", "encoders", "equivariance"),
    # Command lines.
    ("__main__", "catalog", "cli", "main", "sweep", "sweeps"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Import name -> name of the distribution, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "dm_pix": "dm-pix",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "PyYAML",
}
# Needed by tensorflow-datasets without being imported here: undeclared by it, or used
# only while it prepares a data set.
FOR_TFDS = {"importlib_resources", "tensorflow-cpu", "tensorflow"}
# Declared by tensorflow-datasets, and imported only where that is.
FROM_TFDS = {"requests"}


def imports(tree: ast.Module) -> set[str]:
    """Dotted names that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    """The room that a dotted name of ours belongs to."""
    first, *rest = name.split(".")
    if first in ("main", "sweep"):
        return first
    return rest[0] if first == "duet_jax" and rest else None


def test_every_room_has_a_floor():
    rooms = {room_of(name) for name in TREES} - {None}
    assert rooms == set(FLOOR_OF)
    assert len(FLOOR_OF) == sum(map(len, FLOORS))


@pytest.mark.parametrize("name", TREES)
def test_no_import_goes_upwards(name):
    used = {room_of(other) for other in imports(TREES[name])} - {None}
    # The package itself names what is public in any room, and imports it when used.
    floor = len(FLOORS) if name == "duet_jax" else FLOOR_OF.get(room_of(name), 0)
    assert not {other for other in used if FLOOR_OF[other] > floor}


def test_the_rooms_have_no_circle():
    graph: dict[str, set[str]] = {room: set() for room in FLOOR_OF}
    for name, tree in TREES.items():
        if room := room_of(name):
            graph[room] |= {room_of(each) for each in imports(tree)} - {None, room}
    assert_no_circle(graph)


def test_the_modules_have_no_circle():
    """Also within a room."""
    graph = {
        name: {
            target
            for imported in imports(tree)
            for target in (imported, imported.rpartition(".")[0])
            # `from package import module` also names the package, which is only
            # where the module is.
            if target in TREES and target != package_of(name)
        }
        for name, tree in TREES.items()
    }
    del graph["duet_jax"]  # it imports what it exports when that is used
    assert_no_circle({name: targets - {"duet_jax"} for name, targets in graph.items()})


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in finished:
            for other in graph[name]:
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def package_of(name: str) -> str:
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
    own = {"duet_jax", "benchmarks", "configs", "examples", "main", "sweep"}
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
    # Not imported: programs, a kernel, and what pytest's own options ask for.
    programs = {"ipykernel", "mypy", "ruff", "pytest-xdist"}
    assert listed("requirements-test.txt") - more == programs
    assert more <= listed("requirements-test.txt")


def test_requirements_have_both_bounds():
    for file in [ROOT / "requirements.txt", *ROOT.glob("requirements-*.txt")]:
        for line in file.read_text().splitlines():
            bare = line.partition("#")[0].partition(";")[0].strip()
            if bare:
                assert re.fullmatch(r"[\w\[\].-]+>=[\d.]+,<[\d.]+", bare), line


def test_pyproject_has_the_same_requirements():
    """The default and all extras together are what requirements.txt has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*extras} == {
        *("cuda", "export", "onnx", "parquet", "slurm", "streaming", "tfds", "wandb")
    }
    together = [
        *project["dependencies"],
        *(x for each in extras.values() for x in each),
    ]
    # Elsewhere than on Linux CUDA is left out.
    together.remove("jax>=0.10.2,<0.13")
    together.append("jax>=0.10.2,<0.13; sys_platform != 'linux'")
    lines = (ROOT / "requirements.txt").read_text().replace('"', "'").splitlines()
    whole = [line.partition("#")[0].strip() for line in lines]
    assert sorted(together) == sorted(line for line in whole if line)
