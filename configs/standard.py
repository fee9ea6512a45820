"""The three methods on CIFAR-10, CIFAR-100 and MNIST, as the reference trains them.

    python main.py --config=configs/standard.py:cifar10-simclr
    python sweep.py --experiment=configs/standard.py --rows='cifar10-*' --seeds=3

Rows, for <data> in cifar10, cifar100, mnist:

    <data>-simclr     crops, mirroring, colors and blur; MNIST, which is gray and should
                      not be mirrored, has crops and blur only
    <data>-essl-ron   quarter turns are predicted; the main views are those of SimCLR
    <data>-duet-rot   a crop and a rotation, which becomes structure: the example in the
                      reference's README

A row can be named like a file of its own: configs/cifar10_simclr.py. The only number in
the reference's README is quoted in configs/cifar10_duet_rot.py.
"""

from configs import _scales

STACKS = {
    "cifar10": ("sca", "fli", "jit", "gra", "blu"),
    "cifar100": ("sca", "fli", "jit", "gra", "blu"),
    "mnist": ("sca", "blu"),
}

COMMON = {"dataset.center_crop": True}


def _rows(data, stack):
    views = {"dataset.name": data, "augmentation.stack": stack}
    yield f"{data}-simclr", {**views, "method": "simclr"}
    yield f"{data}-essl-ron", {**views, "method": "essl", "learned": "ron"}
    yield (
        f"{data}-duet-rot",
        {
            "dataset.name": data,
            "augmentation.stack": ("sca", "rot"),
            "method": "duet",
            "learned": "rot",
            "duet.structure_weight": 1000.0,
        },
    )


ROWS = {name: row for data, stack in STACKS.items() for name, row in _rows(data, stack)}


def get_config(row):
    return _scales.build(ROWS, COMMON, row)
