"""DUET's own settings, one at a time: lambda, bins, target, its width, marginal.

    python sweep.py --experiment=configs/duet_sweep.py --rows='lambda-*' --seeds=3

A resized crop and a rotation on CIFAR-10; every row changes one field of DUET and
keeps the others as in lambda-1000: 8 bins, von Mises, kappa 3. The other rows have that
lambda at full scale, and 100 at the smaller ones, where they compare with lambda-100.
The bins must divide the encoder's features: 512, short 128, tiny 32.

Quoted, not measured by us: about 73 % test accuracy for lambda-1000 after these 800
epochs (README of the reference; the paper's batch is 2048).
"""

from configs import _scales

COMMON = {
    "method": "duet",
    "learned": "rot",
    "augmentation.stack": ("sca", "rot"),
    "dataset.center_crop": True,
    "duet.structure_weight": 1000.0,
}

LAMBDAS = (0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
BINS = (2, 4, 16, 32)
SIGMAS = (0.05, 0.1, 0.2, 0.4)
KAPPAS = (1.0, 10.0, 30.0)

ROWS = {
    **{f"lambda-{value:g}": {"duet.structure_weight": value} for value in LAMBDAS},
    **{f"bins-{value}": {"duet.num_bins": value} for value in BINS},
    **{
        f"kappa-{value:g}": {
            "duet.target": "von_mises",
            "duet.concentration": value,
        }
        for value in KAPPAS
    },
    **{
        f"sigma-{value:g}": {"duet.target": "gaussian", "duet.sigma": value}
        for value in SIGMAS
    },
    # Logits as many times as sharp as there are channels: 64, short 16, tiny 4.
    "marginal-sum": {"duet.marginal": "sum"},
}


def get_config(row):
    return _scales.build(ROWS, COMMON, row)
