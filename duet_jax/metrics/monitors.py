"""Monitors: what features alone tell of a representation, without labels or training.

Three ask over how many directions features are spread, and two, of the directions on
the sphere, how near views of one image are and how far apart those of others. All are
computed in float64 on the host, from features of any floating type. They are finite for
finite features, whatever has collapsed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Added to shares, so that directions without any do not count, and have a logarithm.
_SMOOTHING = 1e-7
# Added to the covariance within images, which may have directions without variance.
_RIDGE = 1e-4
# Rows that are compared with all others at a time.
_BLOCK = 1024


def rank_me(features: np.ndarray) -> float:
    """Returns RankMe, the exponential of the entropy of the singular values.

    From 1 (all features are multiples of one another) to the smaller of n and
    dimensions; the same for scaled and rotated features. They are not centered.

    Args:
      features: of images, [n, dimensions].

    Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of
    Pretrained Self-Supervised Representations by Their Rank".
    """
    return _entropy_rank(np.linalg.svd(_float64(features), compute_uv=False))


def alpha_req(features: np.ndarray) -> float:
    """Returns the exponent of the power law that the covariance's spectrum follows.

    It is minus the slope, by least squares, of log λ_i over log i. 0 for features that
    are spread alike in all directions, and larger the faster the spectrum falls; about
    1 is said to go with good features. The same for scaled and rotated features.

    Eigenvalues are fitted if the standard deviation that they stand for is above the
    rounding of float32, the type in which encoders compute: a share max(n, dimensions)
    eps of the largest, the tolerance of `numpy.linalg.matrix_rank`. What is below says
    nothing of the features, and would decide over the slope. If there are not two of
    them, the result is that of a second eigenvalue of rounding: the fastest decay that
    can be told, 26 of a thousand images or dimensions and more of fewer.

    Args:
      features: of images, [n, dimensions].

    Source: Agrawal et al. 2022, "alpha-ReQ: Assessing Representation Quality in
    Self-Supervised Learning by Measuring Eigenspectrum Decay"; which eigenvalues are
    fitted is ours.
    """
    features = _float64(features)
    centered = features - features.mean(axis=0, keepdims=True)
    deviations = np.linalg.svd(centered, compute_uv=False)
    # Of the features, not of the spectrum: what is left of equal ones is all rounding.
    largest = np.linalg.norm(features, 2)
    rounding = max(features.shape) * np.finfo(np.float32).eps
    fitted = deviations[deviations > rounding * largest]
    if len(fitted) < 2:
        return float(-2 * np.log2(rounding))
    places = np.log(np.arange(1, len(fitted) + 1))
    places -= places.mean()
    return float(-(places @ np.log(np.square(fitted))) / (places @ places))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mean squared distance of the directions of two views of an image.

    From 0, all views of an image alike, to 4; 2 if they have nothing in common.
    Collapsed features are aligned too: look at the uniformity beside it.

    Args:
      first: features of one view of each image, [n, dimensions].
      second: features of another view of the same images.

    Source: Wang & Isola 2020, "Understanding Contrastive Representation Learning
    through Alignment and Uniformity on the Hypersphere", with alpha = 2.
    """
    difference = _directions(first) - _directions(second)
    return float(np.mean(np.sum(np.square(difference), axis=1)))


def uniformity(features: np.ndarray) -> float:
    """Returns log E exp(-2 ||z - z'||²) over pairs of different rows' directions.

    0 if all directions are equal (collapse), and the lower the more evenly they cover
    the sphere: about -4 in many dimensions, and above it in few.

    Args:
      features: of images, [n, dimensions], n at least 2.

    Raises:
      ValueError: there is no pair.

    Source: Wang & Isola 2020, with t = 2; see `alignment`.
    """
    directions = _directions(features)
    count = len(directions)
    if count < 2:
        raise ValueError(f"uniformity is of pairs, and there are {count} features")
    total = 0.0
    for start in range(0, count, _BLOCK):
        cosines = directions[start : start + _BLOCK] @ directions.T
        squares = np.square(directions).sum(axis=1)  # 1, or 0 for no direction
        own = squares[start : start + _BLOCK, None]
        apart = np.maximum(own + squares[None, :] - 2 * cosines, 0)
        total += np.exp(-2 * apart).sum()
    return float(min(0.0, np.log((total - count) / (count * (count - 1)))))


def lidar(features: np.ndarray) -> float:
    """Returns LiDAR, over how many directions images differ more than their views do.

    The exponential of the entropy of the eigenvalues of Sw^(-1/2) Sb Sw^(-1/2), with
    the covariance Sb of the means of images, and the mean covariance Sw of the views of
    an image plus 1e-4 on its diagonal. From 1 to the dimensions; the same for rotated
    features, and nearly the same for scaled ones as long as Sw is far above 1e-4.

    Of V views, a mean keeps 1/V of what the views of an image differ by, in every
    direction. With few views LiDAR is too large therefore; compare it only with that of
    as many images and views.

    Args:
      features: of views of images, [images, views, dimensions], two or more of each.

    Raises:
      ValueError: there is a single image or view.

    Source: Thilak et al. 2024, "LiDAR: Sensing Linear Probing Performance in Joint
    Embedding SSL Architectures".
    """
    features = _float64(features)
    images, views, dimensions = features.shape
    if images < 2 or views < 2:
        raise ValueError(f"LiDAR compares images and views: {images} and {views}")
    means = features.mean(axis=1)
    within = (features - means[:, None, :]).reshape(-1, dimensions)
    within = within.T @ within / (images * (views - 1))
    between = (means - means.mean(axis=0, keepdims=True)) / np.sqrt(images - 1)
    variances, axes = np.linalg.eigh(within)
    # Rounding may make them negative, by more than the ridge if features are large.
    whitening = axes / np.sqrt(np.maximum(variances, 0) + _RIDGE)[None, :]
    # The eigenvalues are the squares of these; the others are 0.
    found = np.linalg.svd(between @ whitening, compute_uv=False)
    values = np.zeros(dimensions)
    values[: len(found)] = np.square(found)
    return _entropy_rank(values)


class Monitor(NamedTuple):
    """A measure of the features of a sample of images.

    Attributes:
      measure: (features of the images as they are, [images, dimensions]; features of
        augmented views of them, [images, views, dimensions]) -> its value. There are
        two images and two views or more.
      title: what it is, for tables and pictures.
      about: what its values mean, in one line.
    """

    measure: Callable[[np.ndarray, np.ndarray], float]
    title: str
    about: str


# Names are those of the rows of a training.
MONITORS: dict[str, Monitor] = {
    "rank_me": Monitor(
        lambda plain, views: rank_me(plain),
        "RankMe",
        "over how many directions features are spread; 1: collapsed",
    ),
    "lidar": Monitor(
        lambda plain, views: lidar(views),
        "LiDAR",
        "over how many directions images differ more than their views do",
    ),
    "alpha_req": Monitor(
        lambda plain, views: alpha_req(plain),
        "alpha-ReQ",
        "how fast the spectrum falls; 0: evenly spread",
    ),
    "alignment": Monitor(
        lambda plain, views: alignment(views[:, 0], views[:, 1]),
        "alignment",
        "squared distance of two views of an image; 0: the same, 2: unrelated",
    ),
    # Of augmented views, as alignment is: the two are parts of one loss.
    "uniformity": Monitor(
        lambda plain, views: uniformity(views[:, 0]),
        "uniformity",
        "0: collapsed; about -4: all over the sphere",
    ),
}


def monitors(plain: np.ndarray, views: np.ndarray) -> dict[str, float]:
    """Returns all measures of MONITORS, by name.

    Args:
      plain: features of images as they are, [images, dimensions], two or more.
      views: features of augmented views of them, [images, views, dimensions], likewise.
    """
    return {name: each.measure(plain, views) for name, each in MONITORS.items()}


def _entropy_rank(values: np.ndarray) -> float:
    """Returns exp(-Σ p log p) with p the shares of values, not below 0, plus 1e-7."""
    shares = values / max(values.sum(), np.finfo(np.float64).tiny) + _SMOOTHING
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _float64(features: np.ndarray) -> np.ndarray:
    return np.asarray(features).astype(np.float64)


def _directions(features: np.ndarray) -> np.ndarray:
    """Returns rows of length 1; rows of zeros stay."""
    features = _float64(features)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float64).tiny)
