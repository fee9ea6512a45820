"""DUET learning rotation on CIFAR-100: the reference's README example on CIFAR-100.

python main.py --config=configs/cifar100_duet_rot.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "duet"
    config.learned = "rot"
    config.dataset.name = "cifar100"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "rot")
    config.duet.structure_weight = 1000.0
    return config
