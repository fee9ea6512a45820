"""DUET in the setting of cifar10_simclr_resnet18: rotations become structure.

python main.py --config=configs/recipes/cifar10_duet_resnet18.py

A rotation by any angle joins the views. Lambda is half of the reference's 1000, since
the mean of NT-Xent's directions is half of their sum. Not run here.
"""

from configs.recipes import cifar10_simclr_resnet18


def get_config():
    config = cifar10_simclr_resnet18.get_config()
    config.method = "duet"
    config.augmentation.stack = ("sca", "rot", "fli", "jit", "gra")
    config.duet.structure_weight = 500.0
    return config
