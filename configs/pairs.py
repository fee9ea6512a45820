r"""Two augmentations at once on CIFAR-10: a group of features for each.

    python main.py --config=configs/pairs.py:duet-rot+hue
    python sweep.py --experiment=configs/pairs.py --rows='*hue*' --seeds=3

What does a second group cost the first, and what does each of two gain over one group
with the same views? The views of all rows of a pair are the same, a resized crop with
both augmentations, and both are measured of each row:

    duet-<a>+<b>          both become structure, each in a half of the features
    duet-<a>-beside-<b>   only <a> does, in all features; the views have <b> as well
    duet-<b>-beside-<a>   and the other way round
    essl-<a>+<b>          the main views have neither, and two heads predict them
    simclr-<a>+<b>        the features should ignore both

for <a>, <b> in rot, hue; rot, sca (the scale of the crop itself); ron, gra. ESSL does
not predict sca. Grey digits can take rot, sca:

    python sweep.py --experiment=configs/pairs.py --rows='*sca*' --seeds=3 \
        --scale=short --workdir=runs/pairs-digits --config.dataset.name=digits \
        --config.dataset.train_fraction=1 --config.epochs=40 \
        --config.warmup_epochs=5 --config.batch_size=64 \
        --config.augmentation.crop_area=0.5,1 \
        --config.optimizer.learning_rate=3e-3 --config.evaluate_every=40 \
        --config.checkpoint.every=20

and CIFAR-10 in a folder all of them:

    python sweep.py --experiment=configs/pairs.py --seeds=3 --scale=short \
        --workdir=runs/pairs-cifar10 --config.dataset.name=folder \
        --config.dataset.path=<images>

Measured at the scale short: docs/results.md, "Two groups". No number is quoted: the
reference's program trains one group only. The pairs are our
choice, and so is lambda for all rows: 1000, as in configs/figure4.py, and 100 at the
smaller scales. It weighs the mean of the groups' losses, so that of two groups each has
half the weight of a single one.
"""

from configs import _scales

PAIRS = (("rot", "hue"), ("rot", "sca"), ("ron", "gra"))

COMMON = {"dataset.center_crop": True, "duet.structure_weight": 1000.0}
MEASURES = {"linear_probe": {}, "knn": {}, "equivariance": {"measures": "basic"}}


def _rows(a, b):
    def row(method, learned):
        stack = ("sca", *(code for code in (a, b) if code != "sca"))
        return {"method": method, "learned": learned, "augmentation.stack": stack}

    both = f"{a},{b}"
    rows = {
        f"duet-{a}+{b}": row("duet", both),
        f"duet-{a}-beside-{b}": row("duet", a),
        f"duet-{b}-beside-{a}": row("duet", b),
    }
    if "sca" not in (a, b):
        rows[f"essl-{a}+{b}"] = row("essl", both)
    return {**rows, f"simclr-{a}+{b}": row("simclr", both)}


ROWS = {name: row for pair in PAIRS for name, row in _rows(*pair).items()}
# What is measured of a row: both, also where only one of them is learned.
CODES = {name: ",".join(pair) for pair in PAIRS for name in _rows(*pair)}


def get_config(row):
    return _scales.build(ROWS, COMMON, row)
