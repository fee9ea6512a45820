"""Representations of images by a trained, frozen encoder.

All evaluations of a checkpoint use these representations.
"""

import collections
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.methods import Method
from duet_jax.methods.networks import split
from duet_jax.runs.external import External
from duet_jax.runtime import terminal
from duet_jax.types import Array

Representations = dict[str, np.ndarray]
# Random parameters of a stack's stages for a number of images, from `Stack.draw`.
Draws = Mapping[str, Mapping[str, Array]]

# Side of the views whose pixels are features: a linear classifier of more is too large.
_MOST_PIXELS = 32


def encoder_shapes(method: Method) -> tuple[nnx.GraphDef, dict, dict]:
    """Returns the encoder's structure, parameters and running statistics as shapes."""
    networks = nnx.eval_shape(lambda: method.init(nnx.Rngs(0)))
    return split(networks.encoder)


class FrozenEncoder:
    """A trained encoder with its running statistics.

    By default it encodes the center crop of the images, not augmented.

    Attributes:
      input_shape: side, side and channels of the input images.
    """

    def __init__(self, method: Method, *, batch_size: int):
        """Prepares an encoder without parameters; `use` sets them.

        Args:
          method: defines the encoder, the representations and the size of the views.
          batch_size: images on the device at a time.
        """
        stack = method.two_views.stack
        self.input_shape = (stack.input_side, stack.input_side, stack.channels)
        self._method = method
        self._stack = stack
        self._batch_size = batch_size
        self._state: tuple[dict, dict] | None = None
        represent = self._representations(method)

        def encode(params, batch_stats, images, draws, stack):
            views = _views(images, draws, stack, plain=self._stack)
            return represent(params, batch_stats, views)

        self._encode = jax.jit(encode, static_argnames="stack")
        self._represent = jax.jit(represent)

    def _representations(self, method: Method) -> Callable[..., dict[str, Array]]:
        """Returns `f(params, batch_stats, views)`, to be compiled."""
        graphdef = encoder_shapes(method)[0]

        def represent(params, batch_stats, views):
            encoder = nnx.merge(graphdef, params, batch_stats)
            features = encoder(views, train=False)
            return method.representations(features.astype(np.float32))

        return represent

    def use(self, params: dict, batch_stats: dict) -> "FrozenEncoder":
        """Sets the encoder's parameters and running statistics; returns itself."""
        self._state = params, batch_stats
        return self

    @property
    def state(self) -> tuple[dict, dict]:
        """The parameters and running statistics in use."""
        return self._state

    def fingerprint(self) -> str:
        """Returns a hash of the parameters and running statistics in use."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._state):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def __call__(
        self,
        images: ArrayLike,
        stack: Stack | None = None,
        draws: Draws | None = None,
    ) -> Representations:
        """Returns the representations of all images.

        Args:
          images: uint8, [n, *input_shape], n at least 1; or what NumPy converts to
            such an array, such as a JAX array.
          stack: augmentations to apply first, of the same sides; None for none.
          draws: its parameters by stage for the n images, from `stack.draw`.

        Returns:
          Name -> float32, [n, dimensions]; the names are those of
          `Method.representations`, including "full".

        Raises:
          ValueError: the images have another type or shape, or there are none.
        """
        parts = list(self.batches(images, stack, draws))
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def batches(
        self,
        images: ArrayLike,
        stack: Stack | None = None,
        draws: Draws | None = None,
    ) -> Iterator[Representations]:
        """Yields the representations batch by batch, in order; see `__call__`."""
        images = self._checked(images)
        draws = jax.device_get(draws) if draws else {}
        size = min(self._batch_size, _power_of_two(len(images)))
        # One batch ahead: while the host fetches one, the device computes the next.
        waiting: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()
        with terminal.bar(
            None, "encoding", len(images), unit=" images", delay=2, disable=None,
            leave=False,
        ) as bar:  # fmt: skip
            for start in range(0, len(images), size):
                rows = slice(start, start + size)
                count = len(images[rows])
                batch = _padded(images[rows], size)
                drawn = jax.tree.map(functools.partial(_rows, rows, size), draws)
                waiting.append((count, self._encode(*self._state, batch, drawn, stack)))
                bar.update(count)
                if len(waiting) > 1:
                    yield _fetched(*waiting.popleft())
            while waiting:
                yield _fetched(*waiting.popleft())

    def of_views(self, views: ArrayLike) -> Representations:
        """Returns the representations of finished views, such as decoded images.

        Args:
          views: normalized to [-0.5, 0.5], [n, side, side, channels] with the side of
            the views, n at least 1.
        """
        views = np.asarray(views, np.float32)
        size = min(self._batch_size, _power_of_two(len(views)))
        parts = []
        for start in range(0, len(views), size):
            rows = views[start : start + size]
            found = self._represent(*self._state, _padded(rows, size))
            parts.append({k: np.asarray(v)[: len(rows)] for k, v in found.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def of_images(self) -> Callable[[Array], dict[str, Array]]:
        """Returns what a call does, as a pure function of images with these weights.

        It takes float32 [n, *input_shape] in [0, 1], not bytes, for JAX to trace; the
        central crop and the normalization are part of it.
        """

        def represent(images: Array) -> dict[str, Array]:
            views = normalize(self._stack.apply(images, None))
            return self._represent(*self._state, views)

        return represent

    def differentiable(self) -> Callable[[tuple[dict, dict], Array], dict[str, Array]]:
        """Returns a pure function of `state` and views that `jax.jvp` can take.

        Views are normalized. It returns the representations; and for the stem and every
        stage of the encoder "layer <name>", the mean of its output over the pixels,
        [n, channels], which does not change where the output moves with the image.
        """
        graphdef = encoder_shapes(self._method)[0]

        def represent(state: tuple[dict, dict], views: Array) -> dict[str, Array]:
            encoder = nnx.merge(graphdef, *state)
            for _, module in nnx.iter_modules(encoder):
                if isinstance(module, nnx.Conv):  # ours have no forward derivative
                    module.conv_general_dilated = jax.lax.conv_general_dilated
            features = encoder(views, train=False).astype(np.float32)
            maps = getattr(encoder, "maps", lambda *_, **__: ())  # of ours
            layers = {
                f"layer {name}": jnp.mean(each.astype(np.float32), (1, 2))
                for name, each in maps(views, train=False)
            }
            return self._method.representations(features) | layers

        return represent

    def _checked(self, images: ArrayLike) -> np.ndarray:
        """Returns the images as a NumPy array; raises the errors of `__call__`."""
        wanted = f"uint8 [n, {', '.join(map(str, self.input_shape))}], n at least 1"
        try:
            array = np.asarray(images)
        except Exception as error:  # of any type, from other array libraries
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"images must be {wanted}, not a {type(images).__name__} that NumPy "
                f"cannot convert ({reason})"
            ) from error
        shaped = array.shape[1:] == self.input_shape and len(array)
        if array.dtype != np.uint8 or not shaped:
            raise ValueError(
                f"images must be {wanted}, not {array.dtype} {list(array.shape)}"
            )
        return array


class PixelEncoder(FrozenEncoder):
    """Takes the pixels of the views for features, to compare an encoder with them."""

    def __init__(self, method: Method, *, batch_size: int):
        """Prepares the views that `method` encodes; see `FrozenEncoder`."""
        super().__init__(method, batch_size=batch_size)
        self.use({}, {})

    def _representations(self, method: Method) -> Callable[..., dict[str, Array]]:
        """Returns the pixels as "full"; views of more than 32 pixels are reduced."""
        side = min(method.two_views.stack.image_size, _MOST_PIXELS)

        def represent(params, batch_stats, views):
            del params, batch_stats
            shape = (len(views), side, side, views.shape[-1])
            # From 0 to 1, as stored: the views are centered, which favors cosines.
            reduced = jax.image.resize(views + 0.5, shape, "linear")
            return {"full": reduced.reshape(len(views), -1).astype(np.float32)}

        return represent


class ExternalEncoder(FrozenEncoder):
    """Calls a function from elsewhere on the views, which the device makes.

    The function is given batches of one size, [n, side, side, channels] in [0, 1], the
    last one padded; what it returns is "full", the only representation.
    """

    def __init__(
        self, method: Method, external: External, *, batch_size: int, fingerprint: str
    ):
        """Prepares the views that `external` encodes; see `FrozenEncoder`.

        Args:
          method: defines the size of the views.
          external: the function.
          batch_size: images that it is given at a time.
          fingerprint: identifies the function, and the views that it is given.
        """
        super().__init__(method, batch_size=batch_size)
        self.use({}, {})
        self._external, self._fingerprint = external, fingerprint
        self._encode, self._represent = (
            functools.partial(self._call, make)
            for make in (self._encode, self._represent)
        )

    def _representations(self, method: Method) -> Callable[..., dict[str, Array]]:
        """Returns the views from 0 to 1; the function cannot be compiled with them."""

        def represent(params, batch_stats, views):
            del params, batch_stats
            # Rounding may have taken a pixel past an end.
            return {"views": jnp.clip(views + 0.5, 0, 1)}

        return represent

    def _call(self, make: Callable[..., dict[str, Array]], *arguments) -> dict:
        # A copy: PyTorch warns of an array that cannot be written to.
        views = np.array(make(*arguments)["views"], np.float32)
        return {"full": self._external.features(views)}

    def fingerprint(self) -> str:
        """Returns what it was made with."""
        return self._fingerprint

    @property
    def differentiable(self) -> NoReturn:
        """Is not there: JAX does not see into the function, to take derivatives."""
        raise AttributeError("an encoder from elsewhere has no derivatives")


def _views(images: Array, draws: Draws, stack: Stack | None, plain: Stack) -> Array:
    """Returns the normalized views of a batch, augmented if there is a stack."""
    images = to_float(images)
    if stack is None:
        return normalize(plain.apply(images, None))
    return normalize(stack.apply(images, draws))


def _power_of_two(count: int) -> int:
    """Rounds up to a power of two: few shapes, and so few compilations."""
    return 1 << max(count - 1, 0).bit_length()


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]) if missing else rows


def _rows(rows: slice, size: int, leaf: np.ndarray) -> np.ndarray:
    """Returns one batch of a parameter; a scalar is shared by all images."""
    return _padded(leaf[rows], size) if np.ndim(leaf) else leaf


def _fetched(count: int, arrays: Mapping[str, Array]) -> Representations:
    """Returns the rows without padding on the host, the full features first."""
    names = sorted(arrays, key=lambda name: (name != "full", name))
    return {name: np.asarray(arrays[name])[:count] for name in names}
