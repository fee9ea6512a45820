"""DUET learning rotation on MNIST: the reference's README example on MNIST.

python main.py --config=configs/mnist_duet_rot.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "duet"
    config.learned = "rot"
    config.dataset.name = "mnist"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "rot")
    config.duet.structure_weight = 1000.0
    return config
