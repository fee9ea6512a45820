"""DUET learning rotation on scikit-learn's digits: no download, no GPU.

make train
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset.name = "digits"
    config.dataset.image_size = 16
    config.epochs = 60
    config.warmup_epochs = 5
    config.batch_size = 128
    config.encoder.name = "Cifar10_ResNet"
    config.encoder.blocks = (1, 1, 1)
    config.encoder.widths = (16, 32, 64, 128)
    config.projector.hidden = 256
    config.projector.output = 64
    config.optimizer.learning_rate = 2e-3
    return config
