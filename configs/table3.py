"""Table 3 of the paper: what the encoders of Table 2 are worth on other data.

    python sweep.py --experiment=configs/table3.py --rows='cifar10-*' --seeds=3

The rows are those of configs/table2.py, and so are the trainings; what is measured is
a linear probe of the frozen features on other data sets. With the work directory of
Table 2 its encoders are used, and not trained again:

    python sweep.py --experiment=configs/table3.py --workdir=runs/table2 --out=runs/t3

Which data sets the paper uses is not known to this project; these are our choice of
what TensorFlow Datasets has with class labels and small enough images. No number is
quoted.
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
