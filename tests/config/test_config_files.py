"""Every experiment is a sound, small change of `configs/base.py`."""

import ast
import importlib.util
import itertools
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from configs import _scales, standard, table2
from duet_jax import cli
from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.config import build, checks, loading
from duet_jax.data import SOURCES
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.methods import METHODS
from duet_jax.methods.groups import Group
from duet_jax.models.encoders import ENCODERS
from duet_jax.types import DatasetFacts

ROOT = pathlib.Path(__file__).parents[2]
# Files of rows, each a configuration.
GRIDS = {
    path: loading.load_experiment(str(path))
    for path in sorted((ROOT / "configs").glob("[!_]*.py"))
    if "\nROWS = " in path.read_text()
}
CONFIGS = [p for p in sorted((ROOT / "configs").glob("[!_]*.py")) if p not in GRIDS]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("[!_]*.py"))
CONFIGS += RECIPES
BASE = ROOT / "configs" / "base.py"
EXPERIMENTS = [path for path in CONFIGS if path != BASE]

# Flag of the reference's program -> field here that means the same.
OLD_FLAGS = {
    "--device": "config.device",
    "--dataset": "dataset.name",
    "--dataset-root": "dataset.path",
    "--batch-size": "config.batch_size",
    "--image-size": "dataset.image_size",
    "--center-crop": "dataset.center_crop",
    "--wandb-project": "wandb.project",
    "--model": "config.method",
    "--encoder": "encoder.name",
    "--num-classes": "dataset.num_classes",
    "--epochs": "config.epochs",
    "--warmup-epochs": "config.warmup_epochs",
    "--test-every": "config.evaluate_every",
    "--lr": "optimizer.learning_rate",
    "--tx": "augmentation.stack",
    "--equi-tx": "config.learned",
    "--duet-lambda": "duet.structure_weight",
    "--duet-bins": "duet.num_bins",
    "--duet-target": "duet.target",
    "--essl-lambda": "essl.prediction_weight",
    "--debug-steps": "config.steps_per_epoch",
}
# --save-dir is --workdir, a flag of the program itself.
OLD_PROGRAM_FLAGS = {"--save-dir": "workdir"}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
each_experiment = pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=lambda path: path.stem
)


def get_config(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def name_of(path: pathlib.Path) -> str:
    """What --config takes for it."""
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def resolved(path: pathlib.Path):
    return checks.check(get_config(path), get_config(path))


def flat(config) -> dict:
    return dict(checks.fields(config))


def test_the_families_are_complete():
    names = {name_of(path) for path in EXPERIMENTS}
    own = {"cifar10_duet_rot", "cifar10_narrow", "digits_duet_rot", "smoke"}
    recipes = {f"cifar10_{name}_resnet18" for name in ("simclr", "duet", "essl")}
    assert names == own | {f"recipes/{each}" for each in (*recipes, "cifar10_race")}
    assert {*standard.ROWS} == {
        f"{data}-{method}"
        for data in ("cifar10", "cifar100", "mnist")
        for method in ("duet-rot", "essl-ron", "simclr")
    }


@pytest.mark.parametrize("row", standard.ROWS)
def test_a_standard_row_is_a_file_too(row):
    name = f"configs/{row.replace('-', '_')}.py"
    config = flat(loading.load(name))
    assert config == flat(standard.get_config(row))
    assert loading.stem(name) == row.replace("-", "_")
    data, method, *_ = row.split("-")
    assert (config["dataset.name"], config["method"]) == (data, method)


@each_config
def test_has_the_fields_and_types_of_base(path):
    ours, base = flat(get_config(path)), flat(get_config(BASE))
    assert {n: type(v) for n, v in ours.items()} == {
        n: type(v) for n, v in base.items()
    }
    kinds = [
        {n: {type(x) for x in v} for n, v in c.items() if isinstance(v, tuple)}
        for c in (ours, base)
    ]
    assert kinds[0] == kinds[1]
    checks.check_schema(get_config(path), get_config(BASE))


@each_config
def test_resolves(path):
    config = resolved(path)
    # Resolving only leaves out; it changes no value.
    assert flat(config).items() <= flat(get_config(path)).items()
    assert config.method in METHODS


@each_config
def test_calls_are_independent(path):
    """Whoever changes one configuration does not change the next."""
    config = get_config(path)
    with config.unlocked():
        config.epochs += 1
        config.encoder.width_multiplier = 0.5
    again = get_config(path)
    assert (again.epochs, again.encoder.width_multiplier) == (config.epochs - 1, 1.0)


@each_experiment
def test_is_a_short_list_of_changes(path):
    """`config = <another>.get_config()`, assignments to fields, `return config`."""
    (function,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    )
    first, *changes, last = map(ast.unparse, function.body)
    assert function.name == "get_config"
    parent = re.fullmatch(r"config = (\w+)\.get_config\(\)", first)[1]
    assert parent in {other.stem for other in CONFIGS} - {path.stem}
    assert last == "return config"
    assigned = [re.fullmatch(r"config\.([\w.]+) = .+", change)[1] for change in changes]
    # All that others do otherwise is much.
    most = 20 if path in RECIPES else 16
    assert len(assigned) == len(set(assigned)) <= most
    assert set(assigned) <= set(flat(get_config(BASE)))


@each_experiment
def test_docstring_names_its_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = f"python main.py --config=configs/{name_of(path)}.py"
    if path.stem == "digits_duet_rot":
        command = "make train"
        makefile = (ROOT / "Makefile").read_text()
        assert f"CONFIG ?= configs/{path.name}" in makefile
        assert ".DEFAULT_GOAL := train" in makefile
        assert flat(cli.parse(["main.py"])[0]) == flat(resolved(path))
    assert command in [line.strip() for line in text.splitlines()]


@each_config
def test_imports_no_machinery(path):
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    expected = {"ml_collections"} if path == BASE else {"configs"}
    if path in RECIPES and "configs" not in imported:
        expected = {"configs.recipes"}
    assert imported == expected


def test_loads_where_jax_is_not_installed():
    program = """
        import pathlib, runpy, sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"jax", "jaxlib", "flax", "duet_jax"}:
                    raise ImportError(f"{name} is not for configurations")

        sys.meta_path.insert(0, Blocker())
        sys.path.insert(0, ".")
        configs = pathlib.Path("configs")
        found = sorted(configs.glob("[!_]*.py")) + sorted(configs.glob("*/[!_]*.py"))
        for path in found:
            module = runpy.run_path(str(path))
            for row in module.get("ROWS", ()):
                module["get_config"](row)
            if "ROWS" not in module:
                config = module["get_config"]()
                print(path.stem, config.method, config.dataset.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [path.stem for path in CONFIGS]
    for name, method, data in rows:
        if name not in ("base", "cifar10_narrow", "cifar10_race", "smoke"):
            assert name.split("_")[:2] == [data, method]


def test_a_configuration_has_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # wherever the program is started
    for path in CONFIGS:
        assert loading.load(name_of(path)) == loading.load(str(path))
        assert loading.stem(name_of(path)) == path.stem
    for name in ("figure4:duet-rot", "figure4:duet-rot@short"):
        path = f"{ROOT}/configs/figure4.py{name[7:]}"
        assert loading.load(name) == loading.load(path)
        assert loading.stem(name) == loading.stem(path)
    row = loading.load(f"{ROOT}/configs/standard.py:cifar10-simclr")
    assert loading.load("cifar10_simclr") == row
    assert (
        loading.load_experiment("table2").rows
        == loading.load_experiment(f"{ROOT}/configs/table2.py").rows
    )
    for name in ("cifar10_race", "recipes/cifar10_rase"):
        meant = r"Did you mean 'recipes/cifar10_race'\?$"
        with pytest.raises(UsageError, match=meant):
            loading.load(name)
    # A file of that name goes first, and a directory does not count.
    (tmp_path / "smoke").mkdir()
    assert loading.load("smoke") == loading.load(f"{ROOT}/configs/smoke.py")


def test_everything_is_listed(capsys):
    assert cli.main(["main.py", "--list"]) == 0
    sections = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]
    listed = {
        flag: [line.split()[0] for line in lines if line[2] != " "]
        for flag, *lines in sections
    }
    assert listed == {
        "--config": [
            *(path.stem for path in sorted({*CONFIGS, *GRIDS} - {*RECIPES})),
            *map(name_of, RECIPES),
        ],
        "--mode": [*cli.PROGRAMS, *EVALUATORS],
        "--config.method": [*METHODS],
        "--config.augmentation.stack": [*AUGMENTATIONS],
        "--config.encoder.name": [*ENCODERS],
        "--config.dataset.name": [*SOURCES, "any"],
    }
    lines = [line for _, *rest in sections for line in rest]
    assert all(len(line.split()) > 2 for line in lines), "each with a line"
    (place,) = (n for n, line in enumerate(lines) if line.startswith("  figure4 "))
    assert lines[place + 1].strip() == (
        "rows: simclr simclr-rot simclr-ron ... 31 in all"
    )


def test_the_readme_example_of_the_reference():
    config = resolved(ROOT / "configs" / "cifar10_duet_rot.py")
    expected = {
        "method": "duet",
        "dataset.name": "cifar10",
        "dataset.center_crop": True,
        "dataset.image_size": 32,
        "encoder.name": "cifar10_resnet32",
        "encoder.width_multiplier": 1.0,
        "augmentation.stack": ("sca", "rot"),
        "augmentation.rotation_degrees": 180.0,
        "learned": "rot",
        "duet.structure_weight": 1000.0,
        "duet.num_bins": 8,
        "duet.target": "auto",
        "batch_size": 1024,
        "epochs": 800,
        "evaluate_every": 10,
        "warmup_epochs": 10,
        "optimizer.learning_rate": 4e-4,
        "temperature": 0.1,
        "compute_dtype": "float32",
    }
    assert {name: flat(config)[name] for name in expected} == expected
    data = DatasetFacts("cifar10", 36, 3, tuple("0123456789"), 50_000, 10_000)
    method = build.make_method(config, data)
    assert method.groups == (Group("rot", 8, "von_mises", 3.0),)
    assert method.structure_weight == 1000.0


def standard_row(row):
    config = standard.get_config(row)
    return flat(checks.check(config, config))


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "mnist"])
def test_the_other_duets_differ_in_the_data_alone(data):
    ours = standard_row(f"{data}-duet-rot")
    theirs = flat(resolved(ROOT / "configs" / "cifar10_duet_rot.py"))
    assert ours.pop("dataset.name") == data
    assert theirs.pop("dataset.name") == "cifar10"
    assert ours == theirs


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "mnist"])
def test_baselines_share_everything_but_the_method(data):
    essl = standard_row(f"{data}-essl-ron")
    simclr = standard_row(f"{data}-simclr")
    assert essl.pop("learned") == "ron"
    assert (essl.pop("method"), simclr.pop("method")) == ("essl", "simclr")
    assert essl.pop("essl.prediction_weight") == 0.4
    assert essl.pop("essl.hidden") == 2048
    assert essl == simclr
    # Grey images have no colours to jitter, and a mirrored digit is no digit.
    colour = {"fli", "jit", "gra"}
    expected = colour if data != "mnist" else set()
    assert set(simclr["augmentation.stack"]) & colour == expected


def described_flags() -> dict[str, str]:
    """Old flags in the comments of base.py, with the field each stands at."""
    found, waiting = {}, []
    for line in BASE.read_text().partition("def get_config")[2].splitlines():
        waiting += re.findall(r"\[(--[\w-]+)\]", line)
        field = re.match(r"    (\w+\.\w+) = ", line)
        if field:
            found |= dict.fromkeys(waiting, field[1])
            waiting = []
    assert not waiting
    return found


def test_every_old_flag_stands_at_its_field():
    assert described_flags() == OLD_FLAGS
    fields = flat(get_config(BASE))
    assert {name.removeprefix("config.") for name in OLD_FLAGS.values()} <= set(fields)


def test_the_remaining_old_flags_are_flags():
    text = cli.help_text(["main.py"])
    assert all(f"  --{name}: " in text for name in OLD_PROGRAM_FLAGS.values())


def test_every_field_is_explained():
    lines = BASE.read_text().partition("def get_config")[2].splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"    \w+\.\w+ = (?!.*ConfigDict)", line):
            assert "#" in line or before.strip().startswith("#"), line


# --- files of rows --------------------------------------------------------------------

each_grid = pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)


def row_of(path, row):
    return flat(loading.load(f"{path}:{row}"))


def changed(path, one, other):
    first, second = row_of(path, one), row_of(path, other)
    return {name for name in first if first[name] != second[name]}


def test_the_grids_are_complete():
    assert {path.stem for path in GRIDS} == {
        "figure4",
        "table2",
        "table3",
        "pairs",
        "peers",
        "duet_sweep",
        "standard",
    }


@each_grid
def test_a_grid_says_how_it_is_run(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python sweep.py --experiment=configs/{path.name}" in text
    assert "quoted" in text.lower()


def test_the_rows_of_figure_4():
    """One crop, one more augmentation, three things to make of it."""
    (path,) = (path for path in GRIDS if path.stem == "figure4")
    codes = ["rot", "ron", "fli", "flv", "gra", "blu", "bri", "con", "sat", "hue"]
    rows = set(GRIDS[path].rows)
    assert rows == {
        "simclr",
        *(f"simclr-{code}" for code in codes),
        *(f"essl-{code}" for code in codes if code != "blu"),
        *(f"duet-{code}" for code in ["sca", *codes]),
    }
    for code in codes:
        ours = row_of(path, f"duet-{code}")
        assert (ours["method"], ours["learned"]) == ("duet", code)
        assert ours["augmentation.stack"] == ("sca", code)
        assert changed(path, f"duet-{code}", f"simclr-{code}") == {"method"}
    assert row_of(path, "duet-rot") == flat(
        get_config(ROOT / "configs" / "cifar10_duet_rot.py")
    )


def test_the_rows_of_table_2():
    (path,) = (path for path in GRIDS if path.stem == "table2")
    for data in ("cifar10", "cifar100"):
        turned = changed(path, f"{data}-simclr", f"{data}-simclr-rot")
        assert turned == {"augmentation.stack"}
        for code in table2.STACK:
            plain, turned = f"{data}-duet-{code}", f"{data}-duet-{code}-with-rot"
            assert changed(path, plain, turned) == {"augmentation.stack"}
            stack = row_of(path, turned)["augmentation.stack"]
            assert [each for each in stack if each != "rot"] == [*table2.STACK]
            assert row_of(path, plain)["learned"] == code
        assert row_of(path, f"{data}-duet-rot")["dataset.name"] == data
    (other,) = (path for path in GRIDS if path.stem == "table3")
    assert GRIDS[other].rows == GRIDS[path].rows
    assert list(GRIDS[other].measures) == ["transfer"]


def test_the_rows_of_a_pair_differ_in_what_is_made_of_the_views():
    (path,) = (path for path in GRIDS if path.stem == "pairs")
    grid = GRIDS[path]
    stacks = {
        ("rot", "hue"): ("sca", "rot", "hue"),
        ("rot", "sca"): ("sca", "rot"),
        ("ron", "gra"): ("sca", "ron", "gra"),
    }
    seen = []
    for (a, b), stack in stacks.items():
        learned = {
            f"duet-{a}+{b}": f"{a},{b}",
            f"duet-{a}-beside-{b}": a,
            f"duet-{b}-beside-{a}": b,
            f"essl-{a}+{b}": f"{a},{b}",
            f"simclr-{a}+{b}": f"{a},{b}",
        }
        if b == "sca":  # cannot be predicted
            del learned[f"essl-{a}+{b}"]
        for row, codes in learned.items():
            found = row_of(path, row)
            assert found["augmentation.stack"] == stack
            assert found["learned"] == codes
            assert row.startswith(found["method"])
            assert changed(path, f"duet-{a}+{b}", row) <= {"method", "learned"}
            assert grid.codes[row] == (a, b)
        seen += learned
    assert sorted(seen) == sorted(grid.rows)
    assert [row for row in grid.rows if "sca" in row] == [
        "duet-rot+sca",
        "duet-rot-beside-sca",
        "duet-sca-beside-rot",
        "simclr-rot+sca",
    ]


def test_peers_have_the_same_views():
    (path,) = (path for path in GRIDS if path.stem == "peers")
    grid = GRIDS[path]
    named = [row for row in grid.rows if "-" not in row]
    assert named == [*METHODS]
    counts = dict.fromkeys(METHODS, 0)
    for row in grid.rows:
        found = row_of(path, row)
        method, _, weight = row.partition("-weight-")
        assert found["method"] == method
        assert found["augmentation.stack"] == ("sca", "rot")
        assert found["learned"] == "rot"
        assert grid.codes[row] == ("rot",)
        if weight:
            counts[method] += 1
            (field,) = checks.RULES.keys() & {
                f"{method}.{name}weight" for name in ("", "structure_", "prediction_")
            }
            assert found[field] == float(weight)
            assert changed(path, method, row) <= {field}
    assert counts == {**dict.fromkeys(METHODS, 3), "simclr": 0}


def test_a_sweep_changes_one_field():
    (path,) = (path for path in GRIDS if path.stem == "duet_sweep")
    centre = "lambda-1000"
    rows = [row_of(path, row) for row in GRIDS[path].rows]
    assert all(rows.count(row) == 1 for row in rows)  # none is run twice
    for row in GRIDS[path].rows:
        kind = row.partition("-")[0]
        expected = {
            "lambda": {"duet.structure_weight"},
            "bins": {"duet.num_bins"},
            "kappa": {"duet.target", "duet.concentration"},
            "sigma": {"duet.target", "duet.sigma"},
            "marginal": {"duet.marginal"},
        }[kind]
        assert changed(path, centre, row) <= expected


def test_scales_leave_a_row_what_it_is_about():
    for path, grid in GRIDS.items():
        module = importlib.import_module(f"configs.{path.stem}")
        for row, scale in itertools.product(grid.rows, _scales.SCALES):
            found = row_of(path, f"{row}@{scale}")
            assert {name: found[name] for name in module.ROWS[row]} == module.ROWS[row]
            for name, value in _scales.SCALES[scale].items():
                assert found[name] == module.ROWS[row].get(name, value)
