"""SimCLR on CIFAR-100 with its usual crops, mirroring, colours and blur.

python main.py --config=configs/cifar100_simclr.py
"""

from configs import cifar10_simclr


def get_config():
    config = cifar10_simclr.get_config()
    config.dataset.name = "cifar100"
    return config
