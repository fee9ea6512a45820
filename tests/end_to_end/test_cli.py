"""The command line: what it accepts, and what it says to what it does not.

Whatever the user can put right costs one line that starts with "error:", exit status 2
and nothing on disk.
"""

import contextlib
import json
import os
import pathlib
import re
import sys
from unittest import mock

import jax
import pytest
import tiny
from program import MAIN, run, snapshot

from configs import base, digits_duet_rot
from duet_jax import cli
from duet_jax.config import checks, loading
from duet_jax.errors import TrainingError
from duet_jax.runs import workdir
from duet_jax.runtime import processes

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"
BASE = f"--config={ROOT / 'configs' / 'base.py'}"
# A run that is refused late has switched the compilation cache on for the process.
NO_CACHE = "--config.compilation_cache=off"
# Of the run that `main.py` starts by itself, on the 1,442 training digits.
EPOCHS = digits_duet_rot.get_config().epochs
HOME = os.path.expanduser("~")
BATCH_SIZE = digits_duet_rot.get_config().batch_size
STEPS = 1442 // BATCH_SIZE


@pytest.fixture(autouse=True)
def _empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *arguments: str) -> str:
    """Runs `main.py` with `arguments` and returns the line with which it refuses."""
    accepted = AssertionError("not refused")
    with mock.patch.object(workdir, "write_run", side_effect=accepted):
        assert cli.main(["main.py", *arguments]) == 2
    out, err = capsys.readouterr()
    *before, last = err.splitlines()
    assert out == ""
    assert last.startswith("error: ")
    # Before it there may be what was done in the meantime, such as loading data.
    assert not any(line.startswith("error") for line in before)
    assert "Traceback" not in err
    return last.removeprefix("error: ")


# Arguments, and what the message has to contain.
REFUSED = {
    # names
    "typo in a field": (
        ["--config.epoch=3"],
        ["config.epoch is not a field", "'config.epochs'"],
    ),
    "typo in a section": (
        ["--config.optimiser.learning_rate=0.1"],
        ["config.optimiser.learning_rate", "'config.optimizer.learning_rate'"],
    ),
    "section left out": (
        ["--config.num_bins=4"],
        ["config.num_bins is not a field", "'config.duet.num_bins'"],
    ),
    "typo in a negated switch": (
        ["--noconfig.tensorbord"],
        ["config.tensorbord", "'config.tensorboard'"],
    ),
    "one dash": (["-config.epoch=3"], ["config.epoch ", "'config.epochs'"]),
    "section assigned": (
        ["--config.duet=4"],
        ["config.duet is a section", "config.duet.num_bins"],
    ),
    "element of a tuple": (
        ["--config.augmentation.jitter_strength[0]=0.1"],
        ["jitter_strength[0] is not a field", "'config.augmentation.jitter_strength'"],
    ),
    "no name": (["--config.=3"], ["config. is not a field", "config.epochs"]),
    "negated number": (["--noconfig.epochs"], ["noconfig.epochs", "config.epochs"]),
    # flags
    "unknown flag": (
        ["--batch-size=3"],
        ["'batch-size'", "the flags are --config, --workdir, --mode, --step"],
    ),
    "typo in a flag": (["--wrkdir=x"], ["flag 'wrkdir'; ", "Did you mean 'workdir'?"]),
    "switch off with a value": (["--nodebug=1"], ["--nodebug=1 does not take"]),
    "field off with a value": (
        ["--noconfig.tensorboard=1"],
        ["--noconfig.tensorboard=1 does not take"],
    ),
    "positional argument": (
        ["cifar10"],
        ["'cifar10' is not a flag", "--config.<field>=<value>"],
    ),
    "value after a switch": (
        ["--config.tensorboard", "false"],
        ["'false' is not a flag", "--config.<field>=<value>"],
    ),
    "flag without its value": (["--config.epochs"], ["--config.epochs", "value"]),
    "unknown mode": (["--mode=test"], ["--mode='test'", "train"]),
    "empty mode": (["--mode="], ["--mode=''", "train"]),
    "empty workdir": (["--workdir="], ["--workdir=''", "left out"]),
    # configuration files
    "missing file": (
        ["--config=configs/cifar10_duet_rto.py"],
        ["is not a file", "one of base, ", "'cifar10_duet_rot'"],
    ),
    "directory": (["--config=."], ["--config=. is not a file", " smoke, "]),
    "empty file name": (["--config="], ["--config= is not a file", "one of base, "]),
    "file name left out": (["--config"], ["--config", "value"]),
    # types
    "word for a whole number": (
        ["--config.epochs=many"],
        [f"config.epochs='many' must be a whole number, such as {EPOCHS}"],
    ),
    "fraction for a whole number": (
        ["--config.batch_size=12.5"],
        [f"config.batch_size='12.5' must be a whole number, such as {BATCH_SIZE}"],
    ),
    "power for a whole number": (["--config.epochs=1e3"], ["'1e3'", "whole number"]),
    "switch for a whole number": (["--config.seed=true"], ["'true'", "whole number"]),
    "nothing for a whole number": (
        ["--config.epochs="],
        ["config.epochs='' must be a whole number"],
    ),
    "word for a number": (
        ["--config.temperature=warm"],
        ["config.temperature='warm' must be a number, such as 0.1"],
    ),
    "nothing for a number": (
        ["--config.temperature="],
        ["config.temperature='' must be a number"],
    ),
    "comma for a point": (["--config.temperature=0,1"], ["'0,1' must be a number"]),
    "number for a switch": (
        ["--config.tensorboard=2"],
        ["config.tensorboard='2' must be true or false"],
    ),
    "word for a switch": (
        ["--config.dataset.center_crop=yes"],
        ["config.dataset.center_crop='yes' must be true or false"],
    ),
    "nothing for a switch": (
        ["--config.tensorboard="],
        ["config.tensorboard='' must be true or false"],
    ),
    "words for a tuple of numbers": (
        ["--config.augmentation.crop_area=small,large"],
        ["config.augmentation.crop_area='small,large' must be numbers"],
    ),
    "nothing for a tuple of numbers": (
        ["--config.augmentation.crop_area="],
        ["config.augmentation.crop_area='' must be numbers"],
    ),
    "one number for two": (
        ["--config.augmentation.crop_area=0.5"],
        ["config.augmentation.crop_area=(0.5,) must be two numbers"],
    ),
    "fractions for a tuple of whole numbers": (
        ["--config.encoder.blocks=1,1.5,1"],
        ["config.encoder.blocks='1,1.5,1' must be whole numbers", "'1,1,1'"],
    ),
    "infinite whole number": (
        ["--config.encoder.blocks=1,1e400,1"],
        ["config.encoder.blocks='1,inf,1' must be whole numbers"],
    ),
    # values
    "nan": (["--config.temperature=nan"], ["config.temperature=nan must be finite"]),
    "inf": (
        ["--config.optimizer.learning_rate=inf"],
        ["config.optimizer.learning_rate=inf must be finite"],
    ),
    "inf in a tuple": (
        ["--config.augmentation.crop_ratio=0.5,1e999"],
        ["config.augmentation.crop_ratio=(0.5, inf) must be finite"],
    ),
    "unknown method": (
        ["--config.method=byol"],
        ["config.method='byol'", "choose one of simclr, essl, duet"],
    ),
    "empty method": (
        ["--config.method="],
        ["config.method=''", "of simclr, essl, duet"],
    ),
    "unknown encoder": (
        ["--config.encoder.name=cifar10-resnet20"],
        ["config.encoder.name='cifar10-resnet20'", "mean 'cifar10_resnet20'?"],
    ),
    "unknown encoder of simclr": (
        ["--config.method=simclr", "--config.encoder.name=resnet"],
        ["config.encoder.name='resnet'", "cifar10_resnet20"],
    ),
    "unknown target": (
        ["--config.duet.target=mises"],
        ["config.duet.target='mises'", "gaussian", "von_mises", "auto"],
    ),
    "no width": (
        ["--config.encoder.width_multiplier=0"],
        ["config.encoder.width_multiplier=0.0", "positive"],
    ),
    "blocks of four stages": (
        ["--config.encoder.blocks=1,1,1,1"],
        ["config.encoder.blocks=(1, 1, 1, 1)", "3 whole numbers"],
    ),
    "stage without blocks": (
        ["--config.encoder.blocks=1,0,1"],
        ["config.encoder.blocks=(1, 0, 1)", "above 0"],
    ),
    "widths of three": (
        ["--config.encoder.widths=16,32,64"],
        ["config.encoder.widths=(16, 32, 64)", "4 whole numbers"],
    ),
    # augmentations
    "unknown code": (
        ["--config.augmentation.stack=sca,rotate"],
        ["config.augmentation.stack='rotate'", "sca, rot, ron"],
    ),
    "repeated code": (
        ["--config.augmentation.stack=rot,sca,rot"],
        ["config.augmentation.stack='rot sca rot'", "rot 2 times", "once"],
    ),
    "jitter and a part of it": (
        ["--config.augmentation.stack=rot,jit,bri"],
        ["config.augmentation.stack='rot jit bri'", "lists jit and bri", "leave out"],
    ),
    "no stack": (
        ["--config.augmentation.stack="],
        ["config.learned='rot' is not in config.augmentation.stack=''"],
    ),
    "learned not in the stack": (
        ["--config.learned=fli"],
        ["config.learned='fli' is not in config.augmentation.stack='sca rot'", "add"],
    ),
    "unknown learned": (["--config.learned=spin"], ["config.learned='spin'", "rot"]),
    "nothing learned": (["--config.learned="], ["config.learned=''", "choose one of"]),
    "learned resize": (
        ["--config.learned=res", "--config.augmentation.stack=res"],
        ["config.learned='res'", "choose one of sca rot"],
    ),
    "learned centre crop": (
        ["--config.learned=ccr", "--config.augmentation.stack=ccr"],
        ["config.learned='ccr'", "choose one of sca rot"],
    ),
    "learned jitter": (
        ["--config.learned=jit", "--config.augmentation.stack=jit"],
        ["config.learned='jit'", "bri con sat hue"],
    ),
    "learned part of a jitter": (
        ["--config.learned=hue", "--config.augmentation.stack=sca,jit"],
        ["config.learned='hue'", "write bri con sat hue in place of jit"],
    ),
    "predicted resize": (
        ["--config.method=essl", "--config.learned=res"],
        ["config.learned='res'", "choose one of"],
    ),
    "von Mises for blur": (
        [
            "--config.learned=blu",
            "--config.augmentation.stack=blu",
            "--config.duet.target=von_mises",
        ],
        ["config.duet.target='von_mises'", "'blu'", "use 'gaussian' or 'auto'"],
    ),
    "von Mises for grey": (
        [
            "--config.learned=gra",
            "--config.augmentation.stack=gra",
            "--config.duet.target=von_mises",
        ],
        ["config.duet.target='von_mises'", "'gra'", "use 'gaussian' or 'auto'"],
    ),
    # fields that do not go together
    "bins that do not divide": (
        ["--config.duet.num_bins=7"],
        ["config.duet.num_bins=7", "128 features", "use 2, 4, 8"],
    ),
    "a single bin": (
        ["--config.duet.num_bins=1"],
        ["config.duet.num_bins=1", "use 2, 4, 8"],
    ),
    "longer warm-up than run": (
        [f"--config.warmup_epochs={EPOCHS + 1}"],
        [f"config.epochs={EPOCHS}", f"set config.warmup_epochs={EPOCHS // 10}"],
    ),
    "odd images for essl": (
        ["--config.method=essl", "--config.dataset.image_size=17"],
        ["config.dataset.image_size=17", "even", "use 18"],
    ),
    "bins of simclr": (
        ["--config.method=simclr", "--config.duet.num_bins=4"],
        ["config.duet.num_bins has no effect with config.method='simclr'"],
    ),
    "learned by simclr": (
        ["--config.method=simclr", "--config.learned=rot"],
        ["config.learned has no effect with config.method='simclr'", "leave it out"],
    ),
    "essl's weight in duet": (
        ["--config.essl.prediction_weight=1"],
        ["config.essl.prediction_weight has no effect with config.method='duet'"],
    ),
    "strength of what is not in the stack": (
        ["--config.augmentation.blur_sigma=0.1,0.3"],
        ["config.augmentation.blur_sigma has no effect with", "stack='sca,rot'"],
    ),
    "strength of what essl does not apply": (
        ["--config.method=essl", "--config.augmentation.jitter_probability=0.3"],
        ["config.augmentation.jitter_probability has no effect with"],
    ),
    "sigma of a von Mises": (
        ["--config.duet.sigma=0.1"],
        ["config.duet.sigma has no effect with config.duet.target='von_mises'"],
    ),
    "blocks of a fixed encoder": (
        [
            "--config.encoder.name=cifar10_resnet20",
            "--config.encoder.blocks=1,1,1",
        ],
        ["config.encoder.blocks has no effect", "'cifar10_resnet20'", "leave it out"],
    ),
    "widths of a fixed encoder": (
        [
            "--config.encoder.widths=8,8,8,8",
            "--config.encoder.name=lifted_cifar10_resnet20",
        ],
        ["config.encoder.widths has no effect", "'lifted_cifar10_resnet20'"],
    ),
    "a stem without a choice": (
        ["--config.encoder.stem=imagenet"],
        ["config.encoder.stem has no effect", "'Cifar10_ResNet'"],
    ),
    "patches that do not fill the images": (
        ["--config.encoder.name=vit_tiny", "--config.encoder.patch_size=3"],
        ["config.encoder.patch_size=3 must divide", "16 pixels", "use 1, 2, 4, 8, or"],
    ),
    # known only when the data are there, or not
    "batch larger than the data": (
        [NO_CACHE, "--config.batch_size=1443"],
        ["config.batch_size=1443", "1442", "use at most 1442"],
    ),
    "more steps than batches": (
        [NO_CACHE, f"--config.steps_per_epoch={STEPS + 1}"],
        [f"{STEPS} full batches of {BATCH_SIZE}", f"at most {STEPS}"],
    ),
    "wrong number of classes": (
        [NO_CACHE, "--config.dataset.num_classes=9"],
        ["config.dataset.num_classes=9", "has 10", "set it to 10"],
    ),
    "colours of grey images": (
        [NO_CACHE, "--config.augmentation.stack=rot,gra"],
        ["config.augmentation.stack='rot gra'", "3 channels", "digits", "have 1"],
    ),
    "folder without a path": (
        [NO_CACHE, "--config.dataset.name=folder"],
        ["config.dataset.path=''", "train"],
    ),
    "a bucket for a work directory": (
        ["--workdir=gs://b/run"],
        ["--workdir=gs://b/run is an address", "mount it"],
    ),
    "a bucket to measure": (
        ["--workdir=s3://b/run", "--mode=knn"],
        ["--workdir=s3://b/run is an address"],
    ),
    "a bucket for a benchmark": (
        ["--mode=benchmark", "--out=gs://b/x.json"],
        ["--out=gs://b/x.json is an address"],
    ),
    "a bucket of images": (
        ["--config.dataset.name=folder", "--config.dataset.path=gs://b/images"],
        ["config.dataset.path='gs://b/images' is an address"],
    ),
    "a bucket of a prepared set": (
        ["--config.dataset.name=cifar10", "--config.dataset.path=gs://tfds"],
        ["config.dataset.path='gs://tfds' is an address"],
    ),
    "a bucket for decoded images": (
        ["--config.dataset.cache_dir=gs://b"],
        ["config.dataset.cache_dir='gs://b' is an address"],
    ),
    "a bucket for programs": (
        ["--config.compilation_cache=gs://b"],
        ["config.compilation_cache='gs://b' is an address"],
    ),
    "no such device": (
        [NO_CACHE, "--config.device=gpu"],
        ["config.device='gpu'", "config.device=auto"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, capsys, tmp_path):
    arguments, parts = REFUSED[case]
    message = refusal(capsys, *arguments)
    assert [part for part in parts if part not in message] == [], message
    assert not any(tmp_path.iterdir())


# A value just out of range for every field with a rule.
OUT_OF_RANGE = {
    "seed": "-1",
    "device": "tpu",
    "epochs": "0",
    "warmup_epochs": "-1",
    "steps_per_epoch": "-1",
    "batch_size": "1",
    "steps_per_call": "-1",
    "compilation_cache": "gs://b",
    "dataset.path": "gs://b",
    "dataset.cache_dir": "s3://b",
    "compute_dtype": "float16",
    "on_nonfinite": "ignore",
    "dataset.name": "",
    "dataset.image_size": "7",
    "dataset.num_classes": "-1",
    "dataset.train_fraction": "0",
    "dataset.holdout": "1",
    "dataset.channels": "2",
    "dataset.placement": "disk",
    "dataset.workers": "-2",
    "augmentation.jitter_strength": "0.4,0.4,0.4",
    "encoder.blocks": "1,1",
    "encoder.width_multiplier": "0",
    "encoder.widths": "8,8,8",
    "encoder.stem": "torchvision",
    "encoder.patch_size": "0",
    "projector.layers": "1",
    "projector.hidden": "0",
    "projector.output": "0",
    "temperature": "0",
    "nt_xent.reduction": "none",
    "duet.structure_weight": "-0.1",
    "duet.marginal": "max",
    "duet.sigma": "0",
    "duet.concentration": "0",
    "essl.prediction_weight": "-0.1",
    "essl.hidden": "0",
    "augself.weight": "-1",
    "augself.hidden": "0",
    "equimod.weight": "-1",
    "care.weight": "-1",
    "care.chunk": "1",
    "sie.weight": "-1",
    "sie.hidden": "0",
    "optimizer.name": "adam",
    "optimizer.learning_rate": "0",
    "optimizer.scale": "batch",
    "optimizer.schedule": "cosine",
    "optimizer.b1": "1",
    "optimizer.b2": "-0.1",
    "optimizer.eps": "0",
    "optimizer.momentum": "1",
    "optimizer.trust_coefficient": "0",
    "optimizer.weight_decay": "-1",
    "optimizer.decay": "none",
    "evaluate_every": "0",
    "knn.k": "0",
    "knn.weights": "distance",
    "knn.temperature": "0",
    "knn.every": "-1",
    "monitor.images": "-1",
    "linear_probe.epochs": "0",
    "linear_probe.repeats": "0",
    "linear_probe.learning_rate": "0",
    "generation.epochs": "0",
    "generation.batch_size": "1",
    "generation.learning_rate": "0",
    "generation.width": "0",
    "checkpoint.every": "0",
    "checkpoint.within_epoch": "-1",
    "checkpoint.keep": "0",
    "figures_every": "0",
    "wandb.mode": "dry",
}


def test_every_rule_is_tried():
    assert set(OUT_OF_RANGE) == set(checks.RULES)


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_out_of_range(name, capsys, tmp_path):
    message = refusal(capsys, f"--config.{name}={OUT_OF_RANGE[name]}")
    assert message.startswith(f"config.{name}=")
    assert message.endswith(f" {checks.RULES[name].says}.")
    assert not any(tmp_path.iterdir())


# Source of a configuration file, and what the message has to contain.
BROKEN_FILES = {
    "syntax": ("def get_config(:", ["SyntaxError", "line 1"]),
    "no function": ("config = 3", ["get_config", "configs/base.py"]),
    "argument": ("def get_config(name): pass", ["TypeError", "'name'"]),
    "raises": ("def get_config():\n  raise OSError('no\\nluck')", ["OSError: no luck"]),
    "other type": ("def get_config():\n  return 3", ["configs/base.py"]),
    "missing import": ("import duet_jacks", ["ModuleNotFoundError", "duet_jacks"]),
    "unknown field": (
        "from configs import base\n"
        "def get_config():\n"
        "  config = base.get_config()\n"
        "  config.duet.bins = 4\n"
        "  return config",
        ["config.duet.bins is not a field", "'config.duet.num_bins'"],
    ),
    "field of another type": (
        "from configs import base\n"
        "def get_config():\n"
        "  config = base.get_config()\n"
        "  config.epochs = 'many'\n"
        "  return config",
        ["TypeError", "epochs", "many"],
    ),
    "field left empty": (
        "from configs import base\n"
        "def get_config():\n"
        "  config = base.get_config()\n"
        "  config.epochs = None\n"
        "  return config",
        ["config.epochs=None must be a whole number"],
    ),
    "not from base": (
        "import ml_collections\n"
        "def get_config():\n"
        "  return ml_collections.ConfigDict({'method': 'duet'})",
        ["config.augmentation.blur_probability is missing", "base.get_config()"],
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_configuration_files(case, capsys, tmp_path):
    source, parts = BROKEN_FILES[case]
    path = tmp_path / "mine.py"
    path.write_text(source)
    message = refusal(capsys, "--config=mine.py", "--config.epochs=3")
    assert message.startswith("--config=mine.py")
    assert [part for part in parts if part not in message] == [], message
    assert list(tmp_path.iterdir()) == [path]


# Arguments, and the values that come of them.
ACCEPTED = {
    "nothing": ([], {"dataset.name": "digits", "epochs": EPOCHS}),
    "another file": ([SMOKE], {"epochs": 2, "projector.hidden": 32}),
    "file as a second word": (["--config", SMOKE[9:]], {"epochs": 2}),
    "file after its overrides": (
        ["--config.epochs=3", "--config.duet.num_bins=4", SMOKE],
        {"epochs": 3, "duet.num_bins": 4, "projector.hidden": 32},
    ),
    "file as a second word, last": (
        ["--config.epochs", "3", "--config", SMOKE[9:]],
        {"epochs": 3, "projector.hidden": 32},
    ),
    "two files": ([BASE, SMOKE], {"epochs": 2, "dataset.name": "digits"}),
    "one dash": (["-config.epochs=7", f"-{SMOKE[2:]}"], {"epochs": 7}),
    "the last of two values": (
        ["--config.epochs=7", "--config.epochs=8"],
        {"epochs": 8},
    ),
    "commas": (
        ["--config.augmentation.stack=rot,sca"],
        {"augmentation.stack": ("rot", "sca")},
    ),
    "spaces": (
        ["--config.augmentation.stack=rot sca"],
        {"augmentation.stack": ("rot", "sca")},
    ),
    "both": (
        ["--config.augmentation.stack= rot, sca ,fli"],
        {"augmentation.stack": ("rot", "sca", "fli")},
    ),
    "a Python tuple": (
        ["--config.augmentation.stack=('rot','sca')"],
        {"augmentation.stack": ("rot", "sca")},
    ),
    "a Python list": (
        ['--config.augmentation.stack=["rot", "sca"]'],
        {"augmentation.stack": ("rot", "sca")},
    ),
    "a single code": (
        ["--config.augmentation.stack=rot"],
        {"augmentation.stack": ("rot",)},
    ),
    "no codes": (
        ["--config.method=simclr", "--config.augmentation.stack="],
        {"augmentation.stack": ()},
    ),
    "numbers with commas": (
        ["--config.augmentation.crop_area=0.5,1", "--config.encoder.blocks=2,2,2"],
        {"augmentation.crop_area": (0.5, 1.0), "encoder.blocks": (2, 2, 2)},
    ),
    "numbers with spaces": (
        ["--config.augmentation.crop_area=0.3 0.6"],
        {"augmentation.crop_area": (0.3, 0.6)},
    ),
    "switched off": (["--config.tensorboard=false"], {"tensorboard": False}),
    "negated": (["--noconfig.tensorboard"], {"tensorboard": False}),
    "switched on": (["--config.dataset.center_crop"], {"dataset.center_crop": True}),
    "switched on by number": (
        ["--config.dataset.center_crop=1"],
        {"dataset.center_crop": True},
    ),
    "whole number for a number": (
        ["--config.duet.structure_weight=1000"],
        {"duet.structure_weight": 1000.0},
    ),
    "negative powers": (["--config.optimizer.eps=1e-6"], {"optimizer.eps": 1e-6}),
    "text with blanks and signs": (
        ["--config.wandb.project=a b=c", "--config.dataset.path=~/my data, all"],
        {"wandb.project": "a b=c", "dataset.path": HOME + "/my data, all"},
    ),
    "text that looks like a number": (
        ["--config.wandb.project=007"],
        {"wandb.project": "007"},
    ),
    "another method": (
        ["--config.method=essl", "--config.essl.hidden=64"],
        {"method": "essl", "essl.hidden": 64, "learned": "rot"},
    ),
    "the other target": (
        ["--config.duet.target=gaussian", "--config.duet.sigma=0.1"],
        {"duet.target": "gaussian", "duet.sigma": 0.1},
    ),
    "a fixed encoder": (
        ["--config.encoder.name=cifar10_resnet20"],
        {"encoder.name": "cifar10_resnet20"},
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case):
    arguments, expected = ACCEPTED[case]
    config, _, modes, _ = cli.parse(["main.py", *arguments])
    found = dict(checks.fields(config))
    assert {name: found[name] for name in expected} == expected
    assert {name: type(found[name]) for name in expected} == {
        name: type(value) for name, value in expected.items()
    }
    assert modes == ("train",)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "runs/digits_duet_rot"),
        ([SMOKE], "runs/smoke"),
        (["--config", SMOKE[9:]], "runs/smoke"),
        ([BASE, SMOKE], "runs/smoke"),
        ([SMOKE, "--workdir=some/place"], "some/place"),
        (["--workdir", "some/place", SMOKE], "some/place"),
    ],
)
def test_the_work_directory(arguments, expected):
    assert cli.parse(["main.py", *arguments])[1] == pathlib.Path(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "smoke"),
        (["--config.seed=1"], "smoke-seed1"),
        (
            ["--config.optimizer.learning_rate=1e-3", "--config.seed=1"],
            "smoke-seed1-learning_rate0.001",
        ),
        # As in the file, and fields that do not alter the run.
        (["--config.epochs=2", "--config.knn.k=3", "--config.dataset.path=x"], "smoke"),
        (["--config.dataset.name=mnist"], "smoke-dataset_name_mnist"),
        (["--config.augmentation.stack=rot"], "smoke-stack_rot"),
        (["--config.augmentation.crop_area=0.5,1"], "smoke-crop_area0.5_1.0"),
        (["--config.dataset.center_crop"], "smoke-center_crop_true"),
        (
            ["--config.method=essl", "--config.essl.hidden=64"],
            "smoke-method_essl-essl_hidden64",
        ),
        (["--config.projector.hidden=64"], "smoke-projector_hidden64"),
        (
            ["--config.learned=rot,sca", "--config.duet.num_bins=8,4"],
            "smoke-learned_rot_sca-num_bins8_4",
        ),
        # The range of a warm-up has a - of its own.
        (["--config.optimizer.weight_decay=1e-5"], "smoke-weight_decay1e-05"),
    ],
)
def test_a_work_directory_by_what_differs(arguments, expected):
    command = cli.parse(["main.py", SMOKE, "--workdir=auto", *arguments])
    assert command.workdir == pathlib.Path("runs", expected)


def test_a_work_directory_has_a_short_and_safe_name(tmp_path):
    file = tmp_path / "my smoke.py"
    file.write_text(pathlib.Path(SMOKE[9:]).read_text())
    many = [
        f"--config.{name}=0.25"
        for name in (
            "augmentation.rotation_degrees",
            "optimizer.learning_rate",
            "optimizer.weight_decay",
            "temperature",
        )
    ]
    names = {}
    for fields in ([], many, [*many, "--config.seed=1"], many[::-1]):
        arguments = ["main.py", f"--config={file}", "--workdir=auto", *fields]
        names[*fields] = cli.parse(arguments).workdir.name
    plain, long, other, same = names.values()
    assert re.fullmatch(r"my_smoke-[0-9a-f]{8}", plain)
    assert re.fullmatch(r"my_smoke-temperature0\.25-[\w.-]+-[0-9a-f]{8}", long)
    assert len(long) == len(other) == 80
    assert other != long == same


def test_only_what_is_asked_for_changes():
    plain = dict(checks.fields(cli.parse(["main.py", SMOKE])[0]))
    changes = ["--config.epochs=5", "--config.duet.num_bins=4"]
    changed = dict(checks.fields(cli.parse(["main.py", *changes, SMOKE])[0]))
    assert {name for name in plain if plain[name] != changed[name]} == {
        "epochs",
        "duet.num_bins",
    }


def test_parsing_leaves_nothing_behind():
    """Neither in the arguments of the process nor in the flags of the next call."""
    before = list(sys.argv)
    cli.parse(["main.py", "--config.epochs=7", "--mode=train", "--workdir=here"])
    config, directory, *_ = cli.parse(["main.py"])
    assert (config.epochs, str(directory)) == (EPOCHS, "runs/digits_duet_rot")
    assert sys.argv == before


def test_the_mode_is_run(monkeypatch, tmp_path, capsys):
    calls = []

    def train(config, directory):
        calls.append((config, directory))
        workdir.write_run(config, tiny.dataset(64, 32).facts, directory)

    monkeypatch.setitem(cli.PROGRAMS, "train", train)
    monkeypatch.setattr("sys.argv", ["main.py"])
    assert cli.main(["main.py", SMOKE, f"--workdir={tmp_path / 'run'}"]) == 0
    ((config, directory),) = calls
    assert (config.epochs, directory) == (2, tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("next         ")
    assert err.endswith(
        f"main.py --workdir={directory} --mode=linear_probe,knn,equivariance,report\n"
    )


def test_a_failed_run_has_a_status_of_its_own(monkeypatch, capsys):
    def fail(config, directory):
        raise TrainingError("the training loss of step 3 is not finite.")

    monkeypatch.setitem(cli.PROGRAMS, "train", fail)
    assert cli.main(["main.py", SMOKE]) == 1
    expected = "error: the training loss of step 3 is not finite.\n"
    assert capsys.readouterr().err == expected


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(config, directory):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.PROGRAMS, "train", interrupt)
    assert cli.main(["main.py", SMOKE]) == 130
    assert capsys.readouterr().err.startswith("stopped; the same command continues")


def test_want_of_memory_is_one_line(monkeypatch, capsys):
    def fail(config, directory):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setitem(cli.PROGRAMS, "train", fail)
    assert cli.main(["main.py", SMOKE]) == 1
    message = capsys.readouterr().err
    assert "too little memory" in message
    assert "config.batch_size" in message


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_is_one_line(monkeypatch, capsys, kind):
    def fail(config, directory):
        raise kind("UNKNOWN: Gloo failed\nConnection closed")

    monkeypatch.setitem(cli.PROGRAMS, "train", fail)
    with pytest.raises(kind):  # of a single process: a defect
        cli.main(["main.py", SMOKE])
    monkeypatch.setattr(processes, "are_several", lambda: True)
    assert cli.main(["main.py", SMOKE]) == 1
    assert capsys.readouterr().err == (
        "error: another process of this job is gone (UNKNOWN: Gloo failed Connection "
        "closed); see the messages of the others, then the same command continues from "
        "the newest checkpoint.\n"
    )


def test_a_defect_in_one_of_several_processes_is_told_before_it_leaves(
    monkeypatch, capsys
):
    def fail(config, directory):
        raise ValueError("a defect")

    monkeypatch.setitem(cli.PROGRAMS, "train", fail)
    monkeypatch.setattr(processes, "are_several", lambda: True)
    assert cli.main(["main.py", SMOKE]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("ValueError: a defect\n")


def test_a_failed_process_does_not_wait_for_the_others(monkeypatch):
    left = []
    monkeypatch.setattr("os._exit", left.append)
    for several, status in ((False, 2), (True, 0)):
        monkeypatch.setattr(processes, "are_several", lambda several=several: several)
        with pytest.raises(SystemExit) as exit_:
            processes.leave(status)
        assert exit_.value.code == status
    assert left == []
    with pytest.raises(SystemExit):
        processes.leave(2)
    assert left == [2]


def test_a_benchmark_takes_a_configuration(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(
        cli.PROGRAMS, "benchmark", lambda *both, **rest: calls.append((*both, rest))
    )
    arguments = [
        "--mode=benchmark",
        "--images=real",
        "--out=x.json",
        "--num_processes=1",
        "--brief",
    ]
    assert cli.main(["main.py", SMOKE, f"--workdir={tmp_path}", *arguments]) == 0
    ((config, directory, options),) = calls
    assert (config.epochs, directory) == (2, tmp_path)
    others = {"out": "x.json", "num_processes": "1", "brief": True}
    assert options == {"images": "real", **others}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=real"], "--images has no effect with --mode=train"),
        (["--brief"], "--brief has no effect with --mode=train"),
        (["--compile_only"], "--compile_only has no effect with --mode=train"),
        (["--out=x"], "it belongs to --mode=benchmark or compare or features"),
        (
            ["--mode=knn", "--workdir=w", "--process_id=0"],
            "--process_id has no effect with --mode=knn; it belongs to --mode=train or",
        ),
        (["--num_processes=2"], "--coordinator_address and --process_id must be given"),
        (["--mode=benchmark", "--images=a"], "--images='a' must be one of noise, real"),
    ],
)
def test_flags_of_other_modes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments)


def test_a_run_that_saved_nothing_may_change(old_run):
    (old_run / "checkpoints" / "2" / "state").unlink()
    (old_run / "checkpoints" / "2").rmdir()
    config, *_ = cli.parse(["main.py", SMOKE, "--config.batch_size=16"])
    workdir.check(config, old_run)


def test_a_defect_is_not_hidden(monkeypatch):
    def fail(config, directory):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.PROGRAMS, "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["main.py", SMOKE])


# --- work directories -----------------------------------------------------------------


@pytest.fixture
def old_run(tmp_path) -> pathlib.Path:
    """The directory of a run of the smoke configuration, with a checkpoint."""
    directory = tmp_path / "old"
    config, *_ = cli.parse(["main.py", SMOKE])
    workdir.write_run(config, tiny.dataset(6, 3).facts, directory)
    (directory / "checkpoints" / "2").mkdir(parents=True)
    (directory / "checkpoints" / "2" / "state").write_bytes(b"state")
    (directory / "metrics.jsonl").write_text('{"step": 2}\n')
    return directory


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.seed=1"], ["seed: 0 -> 1"]),
        (
            ["--config.batch_size=16", "--config.temperature=0.2"],
            ["batch_size: 32 -> 16", "temperature: 0.1 -> 0.2"],
        ),
        (
            ["--config.augmentation.stack=rot"],
            ["augmentation.stack: ['sca', 'rot'] -> ['rot']"],
        ),
        (
            ["--config.method=simclr"],
            ["method: duet -> simclr", "learned: rot -> None"],
        ),
        # The epochs shape the learning rate from the start.
        (["--config.epochs=3"], ["epochs: 2 -> 3"]),
    ],
)
def test_another_run_is_left_alone(arguments, parts, old_run, capsys):
    before = snapshot(old_run)
    message = refusal(capsys, SMOKE, *arguments, f"--workdir={old_run}")
    assert message.startswith(f"{old_run} holds a run with another configuration (")
    assert f"choose another, such as --workdir={old_run}-" in message
    assert message.endswith(", or repeat its values.")
    assert [part for part in parts if part not in message] == [], message
    assert snapshot(old_run) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config.device=cpu", "--config.steps_per_call=2"],
        ["--config.evaluate_every=2", "--config.checkpoint.every=2"],
        ["--config.checkpoint.keep=5", "--noconfig.tensorboard"],
        ["--config.wandb.project=mine", "--config.wandb.mode=offline"],
        ["--config.dataset.cache_dir=elsewhere", NO_CACHE],
        ["--config.epochs=2"],  # what it is already
    ],
)
def test_harmless_differences_are_accepted(arguments, old_run, monkeypatch):
    monkeypatch.setitem(cli.PROGRAMS, "train", workdir.check)
    before = snapshot(old_run)
    assert cli.main(["main.py", SMOKE, *arguments, f"--workdir={old_run}"]) == 0
    assert snapshot(old_run) == before


def test_a_run_is_continued_without_its_configuration(old_run, monkeypatch):
    """Its own is taken, and can be changed as by the command that began it."""
    seen = {}

    def train(config, directory, **flags):
        seen.update(flags, config=json.loads(config.to_json()), directory=directory)

    monkeypatch.setitem(cli.PROGRAMS, "train", train)
    monkeypatch.setattr(workdir, "load_facts", lambda place: tiny.dataset(6, 3).facts)
    arguments = [f"--workdir={old_run}", "--config.epochs=5", "--extend"]
    assert cli.main(["main.py", *arguments]) == 0
    saved = json.loads((old_run / "config.json").read_text())
    assert seen == {
        "config": {**saved, "epochs": 5},
        "directory": old_run,
        "extend": True,
    }


@pytest.mark.parametrize(
    ("make", "place", "parts"),
    [
        (lambda run: run.write_text("mine"), "run", ["is a file"]),
        (lambda run: run.write_text("mine"), "run/deeper/still", ["is a file"]),
        (
            lambda run: (run / "checkpoints" / "2").mkdir(parents=True),
            "run",
            ["checkpoints without their config.json", "another --workdir"],
        ),
        (
            lambda run: (run / "config.json").mkdir(parents=True),
            "run",
            ["cannot be used", "directory"],
        ),
    ],
)
def test_unusable_work_directories(make, place, parts, tmp_path, capsys):
    make(tmp_path / "run")
    before = snapshot(tmp_path)
    message = refusal(capsys, SMOKE, f"--workdir={tmp_path / place}")
    assert str(tmp_path / place) in message
    assert [part for part in parts if part not in message] == [], message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", '{"a": 1'])
def test_a_damaged_record_is_refused(text, old_run, capsys):
    (old_run / "config.json").write_text(text)
    before = snapshot(old_run)
    message = refusal(capsys, SMOKE, f"--workdir={old_run}")
    assert f"{old_run / 'config.json'} is damaged" in message
    assert snapshot(old_run) == before


@contextlib.contextmanager
def read_only(directory: pathlib.Path, monkeypatch):
    """Makes a directory unwritable; for root, who may write everywhere, by words."""
    directory.chmod(0o500)
    if os.access(directory, os.W_OK):
        monkeypatch.setattr(os, "access", lambda path, mode: path != directory)
    yield
    directory.chmod(0o700)


@pytest.mark.parametrize("place", [".", "run", "run/deeper"])
def test_a_read_only_place(place, tmp_path, capsys, monkeypatch):
    directory = tmp_path / "fixed"
    directory.mkdir()
    with read_only(directory, monkeypatch):
        message = refusal(capsys, SMOKE, f"--workdir={directory / place}")
        assert f"{directory} is not writable" in message
        assert not any(directory.iterdir())


def test_a_place_that_is_lost_in_between(tmp_path):
    config, *_ = cli.parse(["main.py", SMOKE])
    directory = tmp_path / "run"
    workdir.check(config, directory)
    directory.write_text("somebody else's")
    with pytest.raises(cli.UsageError, match=r"cannot be used \(.+\); choose another"):
        workdir.write_run(config, tiny.dataset(6, 3).facts, directory)


def test_the_written_configuration(tmp_path):
    config, *_ = cli.parse(["main.py", SMOKE, "--config.seed=5"])
    directory = tmp_path / "new" / "run"
    workdir.check(config, directory)
    assert not directory.exists()
    workdir.write_run(config, tiny.dataset(6, 3).facts, directory)
    assert set(snapshot(directory)) == {
        pathlib.Path("config.json"),
        pathlib.Path("dataset.json"),
        pathlib.Path("figures"),
        pathlib.Path("provenance.jsonl"),
    }
    written = json.loads((directory / "config.json").read_text())
    assert written == json.loads(config.to_json())
    assert written["seed"] == 5
    workdir.check(config, directory)


# --- a real process -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.duet.num_bins=7", "--workdir=run"],
            "config.duet.num_bins=7 must divide the encoder's 128 features; use 2, 4, "
            "8, 16, 32, 64, 128.",
        ),
        (
            ["--config=nothing.py"],
            "--config=nothing.py is not a file; choose one of base, ",
        ),
        (
            [SMOKE, NO_CACHE, "--config.batch_size=2000", "--config.steps_per_epoch=0"],
            "config.batch_size=2000 is more than the 1442 training images of digits",
        ),
    ],
)
def test_errors_of_the_program(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    errors = [line for line in done.lines if not line.startswith("data  ")]
    assert (done.status, done.out) == (2, "")
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


def test_help_of_the_program(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert (done.status, done.lines) == (0, [])
    assert done.out == cli.help_text([MAIN]) + "\n"


@pytest.mark.parametrize("flag", ["--help", "-help", "-h"])
def test_help(flag, capsys, tmp_path):
    assert cli.main(["main.py", SMOKE, flag]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert text.startswith(cli.__doc__)
    for name in ("config", "workdir", "mode"):
        assert f"\n  --{name}: " in text
    shown = [li[11:] for li in text.splitlines() if li.startswith("  --config.")]
    defaults = checks.fields(loading.load(SMOKE[9:]))
    assert shown == [f"{name}={value!r}" for name, value in defaults]
    assert "dataset.name='digits'" in shown
    assert not any(tmp_path.iterdir())


def test_help_speaks_of_the_program_that_is_called():
    text = cli.help_text(["/usr/bin/duet-jax"])
    assert "duet-jax --workdir=runs/rot --mode=linear_probe,knn" in text
    assert "python main.py" not in text


def test_a_reader_that_has_seen_enough(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = run("--list", cwd=tmp_path, stdout=stdout)
    assert (done.status, done.lines) == (1, [])


def test_help_on_what_is_not_there(capsys):
    assert "is not a file" in refusal(capsys, "--config=nothing.py", "--help")


def test_the_cases_leave_no_field_out():
    """Every type of field is overridden with a good and with a bad value above."""
    defaults = dict(checks.fields(base.get_config()))

    def kinds(cases):
        names = [
            argument.split("=")[0].removeprefix("--no").removeprefix("--")
            for arguments, _ in cases.values()
            for argument in arguments
        ]
        values = [defaults.get(name.removeprefix("config.")) for name in names]
        return {
            (type(v), type(v[0])) if isinstance(v, tuple) else type(v)
            for v in values
            if v is not None
        }

    every = {int, float, bool, str, (tuple, int), (tuple, float), (tuple, str)}
    assert kinds(REFUSED) == every
    assert kinds(ACCEPTED) == every


def test_a_home_in_the_workdir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = cli.parse(["main.py", SMOKE, "--workdir=~/run"])
    assert command.workdir == tmp_path / "run"
