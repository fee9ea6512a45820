"""ESSL predicting quarter turns on CIFAR-10, main views from the SimCLR stack.

python main.py --config=configs/cifar10_essl_ron.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "essl"
    config.learned = "ron"
    config.dataset.name = "cifar10"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "fli", "jit", "gra", "blu")
    return config
