"""ESSL in the setting of cifar10_simclr_resnet18: a third view's rotation is predicted.

python main.py --config=configs/recipes/cifar10_essl_resnet18.py

By any angle, as DUET learns it in cifar10_duet_resnet18; --config.learned=ron predicts
quarter turns, as in the paper. Its two main views are those of SimCLR. Lambda is half
of the reference's 0.4, since the mean of NT-Xent's directions is half of their sum. Not
run here.
"""

from configs.recipes import cifar10_simclr_resnet18


def get_config():
    config = cifar10_simclr_resnet18.get_config()
    config.method = "essl"
    config.essl.prediction_weight = 0.2
    return config
