"""Evaluations of files of weights: a run is made of one, and evaluated like any."""

import json
import pathlib
import shutil

import pytest
import torch_files
import untrained
from program import SMOKE, snapshot

from duet_jax import cli
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.base import Evaluation
from duet_jax.models import torch_weights
from duet_jax.runs import workdir


def run(*arguments: str) -> int:
    return cli.main(["main.py", *arguments])


def results(directory: pathlib.Path, mode: str) -> dict:
    return json.loads((directory / "eval" / f"{mode}.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that is measured, its exported files, and a state dict of its encoder."""
    place = tmp_path_factory.mktemp("imported")
    trained = untrained.run(place / "run")
    evaluation = Evaluation(trained, EVALUATORS)
    for mode in ("knn", "export"):
        evaluation.evaluate(mode, {})
    state = torch_weights.export_network("encoder", *trained.encoder.state)
    torch_files.save(place / "encoder.pt", {"state_dict": state})
    return place


@pytest.fixture(scope="module")
def again(place):
    """A run that was made of the state dict."""
    command = ["--mode=knn", f"--init_from={place / 'encoder.pt'}", SMOKE]
    assert run(*command, f"--workdir={place / 'again'}") == 0
    return place / "again"


FILES = {
    "ours": ("run/export/encoder.safetensors", []),
    "its names": ("run/export/encoder_torch.safetensors", []),
    "pytorch": ("encoder.pt", [SMOKE]),
}


@pytest.mark.parametrize("case", FILES)
def test_it_is_worth_what_the_run_is(case, place, tmp_path, capsys):
    file, options = FILES[case]
    source = f"--init_from={place / file}"
    made = tmp_path / "made"
    assert run("--mode=knn", source, f"--workdir={made}", *options) == 0
    found, expected = (results(each, "knn") for each in (made, place / "run"))
    assert found["results"] == expected["results"]
    assert found["weights"] == expected["weights"]
    assert found["step"] == 0
    _, history = workdir.load_history(made)
    assert history.origin.run == str(place / file)
    assert history.origin.weights == expected["weights"]
    # It is a run: the same command, and one without the file, go on with it.
    before = snapshot(made / "checkpoints")
    assert run("--mode=knn", source, f"--workdir={made}", *options) == 0
    assert run("--mode=knn", f"--workdir={made}") == 0
    assert snapshot(made / "checkpoints") == before
    capsys.readouterr()


def refused(*arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        cli.perform(cli.parse(["main.py", *arguments]))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_weights_by_the_same_name(place, again, tmp_path):
    file = place / "encoder.pt"
    whole = shutil.copy(file, tmp_path)
    encoder = untrained.run(place / "run").encoder
    state = torch_weights.export_network("encoder", *encoder.state)
    torch_files.save(file, {name: array + 1 for name, array in state.items()})
    before = snapshot(place)
    line = refused("--mode=knn", f"--init_from={file}", SMOKE, f"--workdir={again}")
    assert "encoder.pt holds other weights than when the run in" in line
    assert snapshot(place) == before
    shutil.copy(whole, file)


CASES = {
    "no file": (
        ["--init_from=none.pt", "--workdir=made"],
        "--init_from=none.pt is not a file; name",
    ),
    "a run": (["--init_from=run"], "run:newest is a run, which --mode=knn takes as"),
    "damaged": (
        ["--init_from=torn.safetensors", "--workdir=made"],
        "torn.safetensors cannot be read as",
    ),
    "no place": (
        ["--init_from=encoder.pt", SMOKE],
        "encoder.pt needs --workdir, a",
    ),
    "no name": (
        ["--init_from=encoder.pt", SMOKE, "--workdir=auto"],
        "encoder.pt needs --workdir",
    ),
    "no config": (
        ["--init_from=encoder.pt", "--workdir=made"],
        "does not say what its encoder is; name a --config",
    ),
    "two configs": (
        ["--init_from=run/export/encoder.safetensors", SMOKE, "--workdir=made"],
        "which has the configuration of its training; leave it out.",
    ),
    "a field": (
        [
            *("--init_from=run/export/encoder.safetensors", "--workdir=made"),
            "--config.learned=rot",
        ],
        "config.learned cannot be set here",
    ),
    "another encoder": (
        [
            *("--init_from=encoder.pt", "--workdir=made", SMOKE),
            "--config.encoder.widths=8,8,16,64",
        ],
        "set config.encoder and config.method to those",
    ),
    "another run": (
        [
            *("--init_from=encoder.pt", SMOKE, "--workdir=again"),
            "--config.seed=1",
        ],
        "again holds a run with another configuration (seed: 0 -> 1",
    ),
    "elsewhere": (
        ["--init_from=encoder.pt", "--encoder=onnx:a.onnx", SMOKE, "--workdir=made"],
        "has no effect with --encoder",
    ),
    "benchmark": (
        ["--init_from=encoder.pt", "--mode=benchmark"],
        "--init_from has no effect with --mode=benchmark",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals(case, place, again, monkeypatch):
    monkeypatch.chdir(place)
    (place / "torn.safetensors").write_bytes(b"no weights")
    arguments, words = CASES[case]
    before = snapshot(place)
    if not any(each.startswith("--mode") for each in arguments):
        arguments = ["--mode=knn", *arguments]
    assert words in refused(*arguments).replace(f"{place}/", "")
    assert snapshot(place) == before
