"""ESSL predicting quarter turns on CIFAR-100, main views from the SimCLR stack.

python main.py --config=configs/cifar100_essl_ron.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "essl"
    config.learned = "ron"
    config.dataset.name = "cifar100"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "fli", "jit", "gra", "blu")
    return config
