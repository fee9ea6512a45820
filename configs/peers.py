r"""DUET's peers on the same views: a crop and a rotation, which each uses in its way.

    python main.py --config=configs/peers.py:equimod
    python sweep.py --experiment=configs/peers.py --seeds=3 \
        --rows='simclr,essl,duet,augself,equimod,care,sie'

All rows have a resized crop and a rotation; of the views of essl the rotation is taken
out, and predicted. Every row is measured with the rotation.

    simclr    ignores it              augself   predicts how two views differ in it
    essl      predicts it             equimod   predicts what it does to an embedding
    duet      makes it structure      sie       likewise, in half of the features
                                      care      makes it a turn of all embeddings

The weight of each second loss is picked on images that are neither trained on nor
reported: on a held-out tenth of the training split, which a folder of classes without
splits is given (dataset.holdout).

    <method>-weight-<weight>   for three weights of each method but simclr

    python sweep.py --experiment=configs/peers.py --rows='*-weight-*' --seeds=1 \
        --scale=short --workdir=runs/peers-weights --config.dataset.name=folder \
        --config.dataset.path=<images>/train

The sum of the linear probe's accuracy and of the R² of the angle decides. At the scale
short it is the highest with those below, on CIFAR-10; digits come with a split of their
own, so they take the same:

    python sweep.py --experiment=configs/peers.py --seeds=3 --scale=short \
        --rows='simclr,essl,duet,augself,equimod,care,sie' --workdir=runs/peers \
        --config.dataset.name=folder --config.dataset.path=<images> \
        --config.essl.prediction_weight=40 --config.duet.structure_weight=100 \
        --config.augself.weight=8 --config.equimod.weight=4 \
        --config.care.weight=0.1 --config.sie.weight=0.1

Measured: docs/results.md, "The peers". No number is quoted: the settings of the papers
are others. The candidates are about the papers' weights, four or ten times apart.
NT-Xent is the sum of two directions here: a weight that a paper has for their mean is
twice as much.
"""

from configs import _scales

COMMON = {
    "dataset.center_crop": True,
    "augmentation.stack": ("sca", "rot"),
    "learned": "rot",
    "duet.structure_weight": 1000.0,
}
# Without the matrix, which is a picture of one run.
MEASURES = {
    "linear_probe": {},
    "knn": {},
    "equivariance": {"measures": "readouts,actions,local"},
}

METHODS = ("simclr", "essl", "duet", "augself", "equimod", "care", "sie")
# Field of the weight -> candidates.
WEIGHTS = {
    "essl.prediction_weight": (0.4, 4.0, 40.0),
    "duet.structure_weight": (10.0, 100.0, 1000.0),
    "augself.weight": (0.5, 2.0, 8.0),
    "equimod.weight": (0.25, 1.0, 4.0),
    "care.weight": (0.01, 0.1, 1.0),
    "sie.weight": (0.1, 1.0, 10.0),
}


def _candidate(field, weight):
    return {"method": field.partition(".")[0], field: weight}


ROWS = {
    **{method: {"method": method} for method in METHODS},
    **{
        f"{field.partition('.')[0]}-weight-{weight:g}": _candidate(field, weight)
        for field, weights in WEIGHTS.items()
        for weight in weights
    },
}
# Also of the rows that learn nothing of it.
CODES = dict.fromkeys(ROWS, "rot")


def get_config(row):
    return _scales.build(ROWS, COMMON, row)
