"""The race: 90 % kNN on CIFAR-10 in the fewest minutes on one A100; bfloat16.

python main.py --config=configs/recipes/cifar10_race.py

python benchmarks/race.py records the accuracy over the minutes, and draws it. What is
chosen and why: docs/recipes.md. Not run on a GPU yet.
"""

from configs.recipes import cifar10_simclr_resnet18


def get_config():
    config = cifar10_simclr_resnet18.get_config()
    config.epochs = 400
    config.warmup_epochs = 5
    config.compute_dtype = "bfloat16"
    config.temperature = 0.2
    config.optimizer.nesterov = True
    config.checkpoint.every = 50
    config.knn.every = 10
    return config
