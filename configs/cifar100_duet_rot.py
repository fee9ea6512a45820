"""DUET learning rotation on CIFAR-100: the reference's README example on CIFAR-100.

python main.py --config=configs/cifar100_duet_rot.py
"""

from configs import cifar10_duet_rot


def get_config():
    config = cifar10_duet_rot.get_config()
    config.dataset.name = "cifar100"
    return config
