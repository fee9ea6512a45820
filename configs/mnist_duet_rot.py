"""DUET learning rotation on MNIST: the reference's README example on MNIST.

python main.py --config=configs/mnist_duet_rot.py
"""

from configs import cifar10_duet_rot


def get_config():
    config = cifar10_duet_rot.get_config()
    config.dataset.name = "mnist"
    return config
