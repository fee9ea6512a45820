"""SimCLR on CIFAR-10 as others train it: ResNet-18, SGD, temperature 0.5, 500 epochs.

python main.py --config=configs/recipes/cifar10_simclr_resnet18.py

On an A100 others have 90.3 % with it (quoted: kNN of 10, cosine, unweighted); not run
here. What differs from the reference's setting: docs/recipes.md.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "simclr"
    config.epochs = 500
    config.warmup_epochs = 0
    config.batch_size = 512
    config.augmentation.stack = ("sca", "fli", "jit", "gra")
    config.augmentation.grey_probability = 0.1
    config.encoder.name = "resnet18"
    config.projector.layers = 2
    config.projector.hidden = 1024
    config.projector.norm = False
    config.temperature = 0.5
    config.nt_xent.reduction = "mean"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.scale = "linear"
    config.optimizer.schedule = "step"
    config.optimizer.weight_decay = 5e-4
    config.knn.k = 10
    config.knn.weights = "uniform"
    return config
