"""DUET learning rotation on CIFAR-10: the reference's README example.

    python main.py --config=configs/cifar10_duet_rot.py

Quoted from the README of the reference, not measured by us: an accuracy of about 73 %,
"as in Figure 4" of the paper, after these 800 epochs.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "duet"
    config.learned = "rot"
    config.dataset.name = "cifar10"
    config.dataset.center_crop = True
    config.augmentation.stack = ("sca", "rot")
    config.duet.structure_weight = 1000.0
    return config
