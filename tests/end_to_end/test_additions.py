"""What docs/add.md says of additions, done as it says in a copy of the program."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from program import PATIENCE, ROOT, TINY
from readme import ADDITIONS, block


def row(table: str, text: str) -> tuple[str, str]:
    """What stands at the beginning of a table, and the same with another row."""
    return table, f"{table}\n    {text},"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A copy of the program with one more of everything."""
    place = tmp_path_factory.mktemp("copy")
    for name in ("duet_jax", "configs"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "main.py", place)
    package = place / "duet_jax"

    def change(file: str, old: str, new: str) -> None:
        text = (package / file).read_text()
        assert text.count(old) == 1, (file, old)
        (package / file).write_text(text.replace(old, new))

    with (package / "augmentations/geometric.py").open("a") as file:
        file.write("\n\n" + block("## An augmentation"))
    table = "    for record in ("
    change("augmentations/stack.py", *row(table, "geometric.SHIFT"))

    (package / "methods/aligned.py").write_text(block("## A method"))
    change(
        "methods/__init__.py",
        "\n# In the order of their colors in figures.\n"
        "METHODS: dict[str, type[Method]] = {",
        "from duet_jax.methods.aligned import Aligned\n\n"
        'METHODS: dict[str, type[Method]] = {"aligned": Aligned, ',
    )

    encoder = re.search(r'`("\w+":\s+ReferenceResNet\([^`]*\))`', ADDITIONS)[1]
    table = "\nENCODERS: dict[str, EncoderSpec] = {"
    change("models/encoders.py", *row(table, " ".join(encoder.split())))

    (package / "data/pets.py").write_text(block("## A data set"))
    change("data/__init__.py", *row("\nSOURCES = {", '"pets": pets.find'))
    change("data/__init__.py", "parquet, table, tfds\n", "parquet, pets, table, tfds\n")

    (package / "evaluation/rank.py").write_text(block("## An evaluator"))
    evaluator = re.search(r'`("rank": Evaluator\(.*?\))`', ADDITIONS)[1]
    table = "EVALUATORS: dict[str, Evaluator] = {"
    change("evaluation/__init__.py", *row(table, evaluator))
    modules = "        monitors,\n        transfer,\n    )"
    added = modules.replace("transfer", "rank,\n        transfer")
    change("evaluation/__init__.py", modules, added)
    return place


def test_a_run_with_one_more_of_everything(place):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 16), ("test", 5)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 10, 12, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(place / "pets.npz", **arrays)
    options = [each for each in TINY if not each.startswith("--config=")]
    command = [
        *(sys.executable, "main.py", "--config=configs/smoke.py", "--workdir=run"),
        *(*options, "--mode=train,rank,equivariance", "--measures=basic"),
        *("--config.dataset.name=pets", "--config.dataset.path=pets.npz"),
        *("--config.method=aligned", "--config.encoder.name=cifar10_resnet26"),
        "--config.encoder.width_multiplier=0.125",
        *("--config.augmentation.stack=sca,shi", "--codes=shi"),
    ]
    done = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    config = json.loads((place / "run/config.json").read_text())
    assert config["encoder"]["name"] == "cifar10_resnet26"
    rows = (place / "run/metrics.jsonl").read_text().splitlines()
    assert "distance" in json.loads(rows[-1])
    for name in ("rank", "equivariance"):
        assert json.loads((place / f"run/eval/{name}.json").read_text())["results"]
    found = json.loads((place / "run/eval/equivariance.json").read_text())
    assert found["results"]["shi"]["unit"] == "columns"
