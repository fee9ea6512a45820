"""ESSL predicting quarter turns on CIFAR-100, main views from the SimCLR stack.

python main.py --config=configs/cifar100_essl_ron.py
"""

from configs import cifar10_essl_ron


def get_config():
    config = cifar10_essl_ron.get_config()
    config.dataset.name = "cifar100"
    return config
