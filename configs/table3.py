"""Table 3 of the paper: transfer of the encoders of Table 2 to other data sets.

    python sweep.py --experiment=configs/table3.py --rows='cifar10-*' --seeds=3

Rows and trainings are those of configs/table2.py; measured is a linear probe of the
frozen features on other data sets. With the work directory of Table 2 its encoders are
used, and not trained again:

    python sweep.py --experiment=configs/table3.py --workdir=runs/table2 --out=runs/t3

We do not know which data sets the paper uses; these are our choice of what TensorFlow
Datasets has with class labels and small images. No number is quoted.
"""

from configs import table2

ROWS = table2.ROWS
get_config = table2.get_config

# What is measured: modes of main.py, and their flags.
MEASURES = {
    "transfer": {
        "datasets": "cifar10,cifar100,svhn_cropped,mnist,fashion_mnist,stl10,dtd,"
        "oxford_flowers102"
    }
}
