"""A run of a few seconds for tests: a narrow encoder on a part of the digits.

python main.py --config=configs/smoke.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset.name = "digits"
    config.dataset.image_size = 16
    config.epochs = 2
    config.warmup_epochs = 1
    config.steps_per_epoch = 2
    config.batch_size = 32
    config.encoder.name = "Cifar10_ResNet"
    config.encoder.blocks = (1, 1, 1)
    config.encoder.widths = (8, 8, 16, 32)
    config.projector.hidden = 32
    config.projector.output = 16
    config.essl.hidden = 32
    config.duet.structure_weight = 1000.0
    config.evaluate_every = 1
    config.checkpoint.every = 1
    config.generation.epochs = 1
    return config
