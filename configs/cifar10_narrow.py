"""CIFAR-10 in a folder, 16 pixels and a narrow encoder: ten minutes on two CPU cores.

python main.py --config=configs/cifar10_narrow.py

with --config.dataset.path=<images>, a directory of train/<class>/ and test/<class>/.
The baselines on the same views: --config.method=simclr, --config.method=essl.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset.name = "folder"
    config.dataset.image_size = 16
    config.epochs = 10
    config.warmup_epochs = 1
    config.batch_size = 128
    config.encoder.name = "Cifar10_ResNet"
    config.encoder.blocks = (1, 1, 1)
    config.encoder.widths = (16, 16, 32, 128)
    config.projector.hidden = 256
    config.projector.output = 64
    config.essl.hidden = 256
    config.duet.structure_weight = 100.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "step"
    config.evaluate_every = 1
    config.checkpoint.every = 1
    return config
