"""CIFAR-10 in a folder, 16 pixels, a narrow encoder: ten minutes on two CPU cores.

python main.py --config=configs/cifar10_narrow.py

with --config.dataset.path=<images>, a directory of train/<class>/ and test/<class>/.
The baselines on the same views: --config.method=simclr, --config.method=essl.
"""

from configs import digits_duet_rot


def get_config():
    config = digits_duet_rot.get_config()
    config.dataset.name = "folder"
    config.epochs = 10
    config.warmup_epochs = 1
    config.batch_size = 128
    config.augmentation.crop_area = (0.2, 1.0)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "step"
    config.evaluate_every = 1
    config.checkpoint.every = 1
    config.generation.epochs = 1
    return config
