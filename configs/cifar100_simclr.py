"""SimCLR on CIFAR-100 with its usual crops, mirroring, colours and blur.

python main.py --config=configs/cifar100_simclr.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "simclr"
    config.dataset.name = "cifar100"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "fli", "jit", "gra", "blu")
    return config
