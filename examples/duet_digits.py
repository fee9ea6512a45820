"""DUET in a training loop of your own, from the parts of duet_jax, on digits.

    python -m examples.duet_digits

The features are read as bins of the angle by channels. Their sums over the bins are
contrasted, the mean over the channels is pulled to a target around the angle that was
drawn. In the end the angle is read off test images that were turned.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import duet_jax as dj

BINS, BATCH, LAMBDA, TEMPERATURE = 8, 64, 100.0, 0.1


class Network(nnx.Module):
    """An encoder, and a projector of the content."""

    def __init__(self):
        self.encoder = dj.encoders.create("Cifar10_ResNet", channels=1)
        content = self.encoder.num_features // BINS
        self.projector = nnx.Linear(content, 64, rngs=nnx.Rngs(1))

    def __call__(self, views, *, train):
        """Returns bins by channels, [batch, BINS, channels]."""
        features = self.encoder(dj.augment.normalize(views), train=train)
        return dj.as_matrix(features, BINS)


def loss_of(network, views, angles):
    """Returns NT-Xent of the content plus the weighted structure loss."""
    embeddings, structure = [], 0.0
    for images, angle in zip(views, angles, strict=True):
        matrix = network(images, train=True)
        embeddings.append(network.projector(dj.content(matrix)))
        targets = dj.losses.von_mises(angle, BINS, concentration=3.0)
        structure += dj.losses.structure_loss(dj.structure_logits(matrix), targets) / 2
    return dj.losses.nt_xent(*embeddings, TEMPERATURE).loss + LAMBDA * structure


def make_step(graphdef, optimizer, stack):
    """Returns the compiled update of (parameters, statistics, optimizer's state)."""

    def score(params, stats, views, angles):
        network = nnx.merge(graphdef, params, stats, copy=True)
        loss = loss_of(network, views, angles)
        return loss, nnx.state(network, nnx.BatchStat)

    @jax.jit
    def step(state, key, images):
        params, stats, opt_state = state
        drawn = [stack(each, images) for each in jax.random.split(key)]
        views, angles = zip(*((v, d["rot"].structure) for v, d in drawn), strict=True)
        scored = jax.value_and_grad(score, has_aux=True)
        (loss, stats), gradient = scored(params, stats, views, angles)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    return step


def main(steps=700):
    """Trains, and returns the mean error of the angles read off the test images."""
    digits = jnp.asarray(load_digits().images[..., None] / 16, jnp.float32)
    digits = jax.image.resize(digits, (len(digits), 16, 16, 1), "linear")
    train, test = digits[:1400], digits[1400:]

    stack = dj.augment.random_stack(("sca", "rot"), crop_area=(0.5, 1.0))
    graphdef, params, stats = nnx.split(Network(), nnx.Param, nnx.BatchStat)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    state = params, stats, optimizer.init(params)
    step, rng = make_step(graphdef, optimizer, stack), np.random.default_rng(0)
    for number in range(steps):
        batch = train[rng.choice(len(train), BATCH, replace=False)]
        state, loss = step(state, jax.random.fold_in(jax.random.key(0), number), batch)
        if number % 100 == 0:
            print(f"step {number:4}  loss {loss:.3f}")

    turned, draws = dj.augment.random_stack(("rot",))(jax.random.key(1), test)
    network = nnx.merge(graphdef, *state[:2])
    marginals = np.asarray(dj.structure(network(turned, train=False)))
    read = dj.metrics.read_structure(marginals, circular=True)
    true = np.asarray(draws["rot"].structure)
    error = 360 * np.abs(dj.metrics.errors(true, read, circular=True)).mean()
    print(f"the angle is read with {error:.1f} degrees of error; a guess errs by 90")
    return error


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
