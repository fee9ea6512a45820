"""Bad configurations and command lines, through a process of the real program.

What `test_cli.py` and `config/test_checks.py` say of every field, these say of the
program: one line that names the culprit and the remedy, and nothing else happens. Bad
data and bad surroundings: `data/test_bad_data.py`, `test_bad_surroundings.py`.
"""

import pytest
from program import ROOT, SMOKE, refusal, run, side_by_side

BASE = (ROOT / "configs" / "base.py").as_posix()
BEGIN = f"import runpy\nbase = runpy.run_path({BASE!r})\n"

# Arguments, and what the line has to say: the culprit, and what to do about it.
COMMAND_LINES = {
    "a typo in a field": (["--config.epoch=3"], ["config.epoch ", "'config.epochs'"]),
    "a typo in a section": (
        ["--config.optimiser.b1=0.5"],
        ["config.optimiser.b1", "'config.optimizer.b1'"],
    ),
    "a typo in a flag": (["--wrkdir=x"], ["'wrkdir'", "--workdir"]),
    "a word for a number": (
        ["--config.epochs=many"],
        ["config.epochs='many'", "a whole number, such as 2"],
    ),
    "a fraction for a whole number": (
        ["--config.batch_size=12.5"],
        ["config.batch_size='12.5'", "a whole number, such as 32"],
    ),
    "a word for a switch": (
        ["--config.tensorboard=maybe"],
        ["config.tensorboard='maybe'", "true or false"],
    ),
    "a tuple of words for numbers": (
        ["--config.augmentation.crop_area=small,large"],
        ["crop_area='small,large'", "numbers separated by commas"],
    ),
    "half a tuple": (
        ["--config.augmentation.crop_area=(0.1,"],
        ["config.augmentation.crop_area", "numbers"],
    ),
    "no epochs": (["--config.epochs=0"], ["config.epochs=0", "from 1"]),
    "a batch of one": (["--config.batch_size=1"], ["config.batch_size=1", "2 or more"]),
    "a negative rate": (
        ["--config.optimizer.learning_rate=-0.1"],
        ["config.optimizer.learning_rate=-0.1", "above 0"],
    ),
    "a negative weight": (
        ["--config.duet.structure_weight=-1"],
        ["config.duet.structure_weight=-1", "0 or more"],
    ),
    "a rate that is no number": (
        ["--config.optimizer.learning_rate=nan"],
        ["config.optimizer.learning_rate=nan", "must be finite"],
    ),
    "an infinite tuple": (
        ["--config.augmentation.crop_ratio=0.5,1e999"],
        ["crop_ratio=(0.5, inf)", "must be finite"],
    ),
    "a crop larger than the image": (
        ["--config.augmentation.crop_area=0.5,1.5"],
        ["crop_area=(0.5, 1.5)", "up to 1"],
    ),
    "a probability above one": (
        ["--config.augmentation.flip_probability=1.5"],
        ["flip_probability=1.5", "[0, 1]"],
    ),
    "an unknown method": (
        ["--config.method=byol"],
        ["config.method='byol'", "choose one of simclr, essl, duet"],
    ),
    "an unknown encoder": (
        ["--config.encoder.name=resnet101"],
        ["config.encoder.name='resnet101'", "choose one of cifar10_resnet20"],
    ),
    "an unknown augmentation": (
        ["--config.augmentation.stack=sca,rotate"],
        ["config.augmentation.stack='rotate'", "rot"],
    ),
    "bins that do not divide": (
        ["--config.duet.num_bins=7"],
        ["config.duet.num_bins=7 must divide", "use 2, 4, 8"],
    ),
    "learned but not in the stack": (
        ["--config.learned=fli"],
        ["config.learned='fli'", "config.augmentation.stack='sca rot'", "add"],
    ),
    "a two-point line with a von Mises": (
        [
            "--config.learned=gra",
            "--config.augmentation.stack=gra",
            "--config.duet.target=von_mises",
        ],
        ["config.duet.target='von_mises'", "'gra'", "use 'gaussian' or 'auto'"],
    ),
    "a warm-up longer than the run": (
        ["--config.warmup_epochs=5"],
        ["config.warmup_epochs=5", "config.epochs=2", "set config.warmup_epochs=0"],
    ),
    "a field of another method": (
        ["--config.method=simclr", "--config.duet.num_bins=4"],
        ["config.duet.num_bins has no effect", "leave it out"],
    ),
    "huge widths": (
        ["--config.encoder.width_multiplier=1e300"],
        ["config.encoder.width_multiplier=1e+300", "up to 64"],
    ),
    "a batch larger than the data": (
        ["--config.batch_size=1443"],
        ["config.batch_size=1443", "1442 training images", "use at most 1442"],
    ),
    "a network for no machine": (
        ["--config.projector.hidden=1000000000000"],
        ["config.projector.hidden=1000000000000", "to 65536"],
    ),
    "a checkpoint at every moment": (
        ["--config.checkpoint.within_epoch=1000000000000"],
        ["config.checkpoint.within_epoch=1000000000000", "to 1000"],
    ),
    "more steps than batches": (
        ["--config.steps_per_epoch=46"],
        ["config.steps_per_epoch=46", "use at most 45"],
    ),
    "an empty workdir": (["--workdir="], ["--workdir=''", "must name a directory"]),
    "a workdir that is not UTF-8": (
        ["--workdir=run\udcff"],
        [r"--workdir=run\udcff is not UTF-8", "another name"],
    ),
    "a name with an end of line": (
        ["--config.dataset.name=a\nb\x1b[2J"],
        [r"config.dataset.name='a\nb\x1b[2J'", "choose digits, folder"],
    ),
    "flags from a file": (
        ["--flagfile=/etc/hostname"],
        ["--flagfile=/etc/hostname is not taken", "the flags are --config"],
    ),
    "flags to be overlooked": (
        ["--undefok=wrkdir", "--wrkdir=x"],
        ["--undefok=wrkdir is not taken", "the flags are --config"],
    ),
    "a flag of another mode": (
        ["--out=x.npz"],
        ["--out has no effect", "--mode=benchmark or compare or features"],
    ),
    "an unknown mode": (["--mode=test"], ["--mode='test'", "train"]),
    "a mode without a run": (
        ["--mode=knn", "--workdir=nothing"],
        ["--workdir=nothing holds no run", "name the --workdir of a training"],
    ),
}


@pytest.fixture(scope="module")
def refused(request):
    """The outcome of every command line that is asked for."""

    def ask(case, place):
        arguments, _ = COMMAND_LINES[case]
        config = () if "--mode=knn" in arguments else (SMOKE,)
        told = int("batch" in case)  # known when the digits are there
        return refusal(*config, *arguments, cwd=place, told=told)

    return side_by_side(ask, request)


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_command_lines(case, refused):
    line, parts = refused[case].result(), COMMAND_LINES[case][1]
    assert [part for part in parts if part not in line] == [], line


# The text of a configuration file, and what the line has to say.
FILES = {
    "empty": ("", ["KeyError: 'get_config'", "must define get_config()"]),
    "no Python": ("epochs: 3\nmethod: duet\n", ["NameError", "must define"]),
    "half a line": ("def get_config(:\n", ["SyntaxError", "config.py, line 1"]),
    "not text": ("\0\0\x7fELF", ["cannot be read", "must define get_config()"]),
    "ends the program": ("import sys\nsys.exit(0)\n", ["SystemExit: 0", "must define"]),
    "ends it within": (
        "def get_config():\n    raise SystemExit('no')\n",
        ["SystemExit: no", "must define get_config()"],
    ),
    "goes round": (
        "def get_config():\n    return get_config()\n",
        ["RecursionError", "must define get_config()"],
    ),
    "several lines": (
        "def get_config():\n    raise ValueError('a\\nb\\x1b[2Jc')\n",
        [r"ValueError: a b\x1b[2Jc", "must define get_config()"],
    ),
    "nothing": ("def get_config():\n    pass\n", ["NoneType", "like configs/base.py"]),
    "a dict": (
        "def get_config():\n    return {'epochs': 3}\n",
        ["is missing", "start from base.get_config()"],
    ),
    "a field too many": (
        f"{BEGIN}def get_config():\n"
        "    config = base['get_config']()\n    config.colour = 3\n    return config\n",
        ["config.colour is not a field", "config.epochs"],
    ),
    "another type": (
        f"{BEGIN}def get_config():\n"
        "    config = base['get_config']()\n"
        "    with config.ignore_type():\n        config.epochs = 'many'\n"
        "    return config\n",
        ["config.epochs='many'", "a whole number, such as 800"],
    ),
    "a zero byte": (
        f"{BEGIN}def get_config():\n"
        "    config = base['get_config']()\n    config.dataset.path = 'a\\0b'\n"
        "    return config\n",
        [r"config.dataset.path='a\x00b'", "zero byte"],
    ),
}


@pytest.fixture(scope="module")
def refused_files(request):
    """The outcome of every configuration file that is asked for."""

    def ask(case, place):
        (place / "config.py").write_text(FILES[case][0])
        return refusal("--config=config.py", "--workdir=run", cwd=place)

    return side_by_side(ask, request)


@pytest.mark.parametrize("case", FILES)
def test_configuration_files(case, refused_files):
    line, parts = refused_files[case].result(), FILES[case][1]
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize("name", [".", "", "x" * 300])
def test_no_configuration_file(name, tmp_path):
    line = refusal(f"--config={name}", cwd=tmp_path)
    assert f"--config={name} is not a file; choose one of base, " in line


def test_debug_shows_the_traceback(tmp_path):
    bad = [SMOKE, "--config.epochs=0", "--workdir=run"]
    told = refusal(*bad, cwd=tmp_path)
    done = run(*bad, "--debug", cwd=tmp_path)
    assert (done.status, done.out, done.errors) == (2, "", [f"error: {told}"])
    assert done.lines[-1] == f"error: {told}"
    assert done.lines[0] == "Traceback (most recent call last):"
    assert "checks.py" in "".join(done.lines)
    assert not any(tmp_path.iterdir())
