"""SimCLR on MNIST with crops and blur: digits are grey and not to be mirrored.

python main.py --config=configs/mnist_simclr.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "simclr"
    config.dataset.name = "mnist"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "blu")
    return config
