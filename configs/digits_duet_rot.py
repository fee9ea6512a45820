"""DUET learning rotation on scikit-learn's digits: no download, no GPU.

make train

The baselines on the same views: --config.method=simclr, --config.method=essl.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset.name = "digits"
    config.dataset.image_size = 16
    config.epochs = 40
    config.warmup_epochs = 5
    config.batch_size = 64
    # The digits fill their images: smaller crops lose what tells them apart.
    config.augmentation.crop_area = (0.5, 1.0)
    config.encoder.name = "Cifar10_ResNet"
    config.encoder.blocks = (1, 1, 1)
    config.encoder.widths = (16, 16, 32, 128)
    config.projector.hidden = 256
    config.projector.output = 64
    config.essl.hidden = 256
    config.duet.structure_weight = 100.0
    config.optimizer.learning_rate = 3e-3
    config.generation.batch_size = 32
    return config
