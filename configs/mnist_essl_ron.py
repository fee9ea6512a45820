"""ESSL predicting quarter turns on MNIST, main views from crops and blur.

python main.py --config=configs/mnist_essl_ron.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "essl"
    config.learned = "ron"
    config.dataset.name = "mnist"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "blu")
    return config
