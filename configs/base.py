"""All fields of a configuration, with their defaults and meanings.

The other files change some of these fields; the command line can change any field of
any file:

    python main.py --config=configs/cifar10_duet_rot.py --config.batch_size=512

Defaults are those of the reference (Apple's ml-duet); its flag for a field is at the
end of the comment, in brackets. Durations are in epochs. Tuples are written with
commas: `--config.augmentation.stack=sca,rot`.
"""

import ml_collections


def _one_or_several(default):
    """Returns a field that takes a number, or a tuple of one for each learned code."""
    return ml_collections.FieldReference(default, field_type=object)


def get_config() -> ml_collections.ConfigDict:
    """Returns DUET with rotation on CIFAR-10, at the reference's default settings."""
    config = ml_collections.ConfigDict()

    # duet, simclr, essl; augself, equimod, care, sie. [--model]
    config.method = "duet"
    # The augmentation whose parameter becomes structure, or several, such as rot,hue.
    # DUET learns them and needs them in the stack, AugSelf predicts them, EquiMod and
    # SIE are told them, likewise; ESSL predicts them and removes them from the stack of
    # its two main views; SimCLR and CARE ignore them. [--equi-tx]
    config.learned = "rot"
    # Seed of everything random.
    config.seed = 0
    # cpu, gpu, or auto: a GPU if there is one. [--device]
    config.device = "auto"

    config.epochs = 800  # [--epochs]
    # Epochs in which the learning rate rises linearly. [--warmup-epochs]
    config.warmup_epochs = 10
    # Updates in an epoch; 0: as many as the training split has full batches.
    # [--debug-steps]
    config.steps_per_epoch = 0
    # Images in a batch, over all devices of all processes. [--batch-size]
    config.batch_size = 1024
    # Updates per call of the compiled step, rounded to a divisor of the steps in an
    # epoch; 0: 50 on a GPU, 1 on a CPU, where XLA's convolutions are about 20 times
    # slower inside a loop.
    config.steps_per_call = 0
    # Compute type of encoder and heads: float32 or bfloat16. Parameters, statistics and
    # losses are always float32.
    config.compute_dtype = "float32"
    # What to do at a loss or gradient that is not finite. stop: end the run with the
    # state before that update, and write a diagnosis; skip: omit the update, count it
    # and continue.
    config.on_nonfinite = "stop"

    config.dataset = dataset = ml_collections.ConfigDict()
    # What is read from dataset.path, or by name:
    #   digits   comes with scikit-learn
    #   folder   class folders: <path>/{train,test}/<class>/ or <path>/<class>/
    #   images   no labels: all images below <path>, or a text file of paths
    #   csv      a table with path,label and perhaps split
    #   npz      arrays: images, and perhaps labels, test_images, test_labels
    #   parquet  a directory of the Hugging Face hub
    #   another  of TensorFlow Datasets: mnist, cifar10, svhn_cropped ... [--dataset]
    dataset.name = "cifar10"
    # For a name of TFDS: its data_dir, its own default when empty. [--dataset-root]
    dataset.path = ""
    # Share of the images that become test images if the data set has none. The name of
    # an image decides, so that it stays in its split when others come or go.
    dataset.holdout = 0.1
    # 1 or 3 converts all images to gray or to color; 0: gray if all of them are.
    dataset.channels = 0
    # Side of the views in pixels. [--image-size]
    dataset.image_size = 32
    # Store images 256/224 larger than the views, so that crops can leave out the edge.
    # [--center-crop]
    dataset.center_crop = False
    # Classes that the data must have; 0: whatever they have. [--num-classes]
    dataset.num_classes = 0
    # Share of the training images that is used: at least one of every class, evenly
    # spread in the order of the data set (the first of every ten, say). In a TFDS data
    # set, whose classes are known only after reading it, spread over the whole set. The
    # images are the same for all methods and seeds. All test images are always used.
    dataset.train_fraction = 1.0
    # Where the images are while training. device: all of them, decoded, in the memory
    # of every device. host: read and decoded batch by batch by worker processes, for
    # data sets that do not fit; the batches are the same. auto: device if they fill at
    # most a quarter of its memory.
    dataset.placement = "auto"
    # host only: processes that read and decode; 0: only the main one; -1: one for each
    # core that it may use.
    dataset.workers = -1
    # Where decoded images are kept; empty: duet_jax in the user's cache directory.
    dataset.cache_dir = ""

    config.augmentation = augmentation = ml_collections.ConfigDict()
    # Codes in order of application. [--tx]
    #   sca resized crop   rot rotation        ron quarter turns   fli/flv mirror
    #   gra gray           blu blur            sol solarize        jit color jitter
    #   bri con sat hue    the four parts of the jitter, which can be learned
    #   res resize         ccr center crop
    augmentation.stack = ("sca", "rot")
    augmentation.crop_area = (0.2, 1.0)  # sca: share of the image that is kept
    augmentation.crop_ratio = (0.75, 4 / 3)  # sca: width / height
    augmentation.rotation_degrees = 180.0  # rot: up to this angle, either way
    augmentation.flip_probability = 0.5  # fli, flv
    augmentation.grey_probability = 0.2  # gra
    augmentation.blur_probability = 0.5  # blu
    augmentation.blur_sigma = (0.1, 2.0)  # blu: pixels
    augmentation.jitter_probability = 0.8  # jit bri con sat hue
    # Brightness, contrast, saturation (factors 1 +- s) and hue (turns +- s).
    augmentation.jitter_strength = (0.4, 0.4, 0.4, 0.1)
    augmentation.solarize_probability = 0.2  # sol
    augmentation.solarize_threshold = (0.4, 0.6)  # sol: inverts from this brightness
    augmentation.solarize_addition = (-0.1, 0.1)  # sol: added before that

    config.encoder = encoder = ml_collections.ConfigDict()
    # cifar10_resnet{20,32,44,56,110,1202}, lifted_cifar10_resnet{...} (the same behind
    # a steerable pyramid), or Cifar10_ResNet with the two tuples below; resnet18,
    # resnet34, resnet50 as in torchvision; vit_tiny, vit_small as in timm. [--encoder]
    encoder.name = "cifar10_resnet32"
    # Factor on all widths, for small machines; widths stay multiples of 8. Of a vit, on
    # the number of heads, which have 64 features each; one at least.
    encoder.width_multiplier = 1.0
    # Keep only the input of each block for the backward pass and recompute the rest: a
    # third more arithmetic, a fraction of the memory.
    encoder.remat = False
    encoder.blocks = (3, 3, 3)  # Cifar10_ResNet only: blocks of each stage
    encoder.widths = (64, 128, 256, 512)  # likewise: channels of stem and stages
    # resnet18, resnet34, resnet50: cifar, a 3x3 convolution; or imagenet, one of 7x7
    # and a maximum over 3x3, each of stride 2, for images of 64 pixels and more.
    encoder.stem = "cifar"
    # vit: side of a patch in pixels; divides the side of the views, of ESSL also of its
    # views of half the size.
    encoder.patch_size = 4

    config.projector = projector = ml_collections.ConfigDict()
    projector.layers = 3  # or 2, with one hidden layer
    projector.hidden = 2048  # width of the hidden layers
    projector.output = 128  # dimension of the contrasted embeddings
    projector.norm = True  # batch normalization after every layer
    config.temperature = 0.1  # of NT-Xent
    config.nt_xent = nt_xent = ml_collections.ConfigDict()
    # Of the two directions: sum, as in the reference; or mean, over all 2 batch_size
    # anchors, as in other code. The mean is half as much: so is its gradient, which is
    # a factor of the rate under sgd, and the weight of a method's second loss counts
    # twice as much beside it.
    nt_xent.reduction = "sum"

    config.duet = duet = ml_collections.ConfigDict()
    # With several codes in config.learned, the features have a group for each, and
    # num_bins, target, sigma and concentration may name one value for each: 8,4.
    # G; must divide the encoder's features, or those of a group. [--duet-bins]
    duet.num_bins = _one_or_several(8)
    duet.structure_weight = 10.0  # lambda, of the mean over codes. [--duet-lambda]
    # Logits of the structure: the mean over the channels, as in the reference's code,
    # or their sum, as in the paper's Figure 1, many times as sharp.
    duet.marginal = "mean"
    # gaussian, von_mises, or auto: von_mises on a circle, gaussian on a line.
    # [--duet-target]
    duet.target = "auto"
    # gaussian: standard deviation; the whole range is 1
    duet.sigma = _one_or_several(0.2)
    # von_mises: kappa, about 1/sigma^2 in radians
    duet.concentration = _one_or_several(3.0)

    config.essl = essl = ml_collections.ConfigDict()
    essl.prediction_weight = 0.4  # lambda. [--essl-lambda]
    essl.hidden = 2048  # of the predictor

    config.augself = augself = ml_collections.ConfigDict()
    augself.weight = 1.0  # lambda, of the mean over codes
    augself.hidden = 512  # of the predictors

    config.equimod = equimod = ml_collections.ConfigDict()
    equimod.weight = 1.0  # lambda

    config.care = care = ml_collections.ConfigDict()
    care.weight = 0.1  # lambda
    care.chunk = 16  # images that share their augmentations

    config.sie = sie = ml_collections.ConfigDict()
    sie.weight = 1.0  # of the second loss
    sie.hidden = 64  # of the network that makes the predictor's weights

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # or sgd, lars
    optimizer.learning_rate = 4e-4  # after the warm-up. [--lr]
    # What the rate is multiplied by: none: 1; linear: batch_size / 256; sqrt: the root
    # of that.
    optimizer.scale = "none"
    # epoch: constant within an epoch; step: the same curve at every step.
    optimizer.schedule = "epoch"
    optimizer.b1 = 0.9  # adamw: decay of the mean gradient
    optimizer.b2 = 0.95  # adamw: decay of the mean squared gradient
    optimizer.eps = 1e-8  # adamw: added to its square root
    optimizer.momentum = 0.9  # sgd, lars
    optimizer.nesterov = False  # sgd, lars: a step ahead of the momentum
    # lars: the rate of an array is this times its norm over that of its gradient.
    optimizer.trust_coefficient = 0.001
    # adamw: times the rate, beside the update; sgd, lars: a part of the gradient.
    optimizer.weight_decay = 1e-4
    # What decays, and what has a rate of its own under lars. all: every parameter;
    # weights: those of convolutions and linear layers, without biases, normalization,
    # tokens and positions.
    optimizer.decay = "all"

    # Epochs between evaluations of the test split; also done at every checkpoint.
    # [--test-every]
    config.evaluate_every = 10
    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 10  # epochs; the last epoch is always saved
    # Additional checkpoints within each epoch, evenly spaced; for epochs of hours.
    checkpoint.within_epoch = 0
    checkpoint.keep = 2  # newest ones; the one with the best online top-1 is kept too

    config.knn = knn = ml_collections.ConfigDict()
    knn.k = 200  # neighbors that vote; at most as many as training images
    # What a vote counts. similarity: exp(cosine / temperature); uniform: one.
    knn.weights = "similarity"
    knn.temperature = 0.1  # similarity only
    # Epochs between evaluations with a kNN classification of the test split; 0: never
    # while training.
    knn.every = 0
    config.monitor = monitor = ml_collections.ConfigDict()
    # Test images of which every evaluation measures RankMe, LiDAR, alpha-ReQ, alignment
    # and uniformity; 0: none. Ranks are at most their number, so take more than the
    # encoder has features; all test images if there are fewer.
    monitor.images = 1024
    config.linear_probe = linear_probe = ml_collections.ConfigDict()
    # These three are for --mode=linear_probe --protocol=sgd only.
    linear_probe.epochs = 100  # of stochastic gradient descent
    linear_probe.repeats = 5  # classifiers; mean and standard deviation are given
    linear_probe.learning_rate = 30.0  # at the start of the cosine

    # These are for --mode=generation, which trains decoders of the frozen encoder.
    config.generation = generation = ml_collections.ConfigDict()
    generation.epochs = 20  # of the training images
    generation.batch_size = 128  # images; a decoder sees two views of each
    generation.learning_rate = 2e-3  # of AdamW, at the start of the cosine
    generation.width = 16  # channels of the last stage; each before has twice as many

    config.tensorboard = True  # event files in tensorboard/ of the work directory
    config.figures_every = 10  # epochs between updates of curves.png
    config.wandb = wandb = ml_collections.ConfigDict()
    wandb.project = ""  # empty: no WandB. [--wandb-project]
    wandb.entity = ""  # user or team; empty: the account's own
    wandb.mode = ""  # online, offline or disabled; empty: $WANDB_MODE, else online

    # Where compiled programs are kept between runs; empty: duet_jax in the user's cache
    # directory; off: nowhere.
    config.compilation_cache = ""
    return config
