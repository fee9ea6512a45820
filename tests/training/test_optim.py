import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from duet_jax import optim
from duet_jax.errors import UsageError
from duet_jax.training import plan


def rates(steps, **settings):
    rate = optim.learning_rate(1.0, **settings)
    return np.asarray(jax.vmap(rate)(jnp.arange(steps)))


def test_rate_is_constant_within_an_epoch():
    values = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4).reshape(10, 4)
    np.testing.assert_array_equal(values, values[:, :1].repeat(4, 1))
    np.testing.assert_allclose(values[:4, 0], [0.001, 0.5, 1, 0.96194], rtol=1e-5)


def test_rate_by_step_follows_the_same_curve():
    by_epoch = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4)[::4]
    by_step = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4, schedule="step")
    np.testing.assert_allclose(by_step[::4], by_epoch, rtol=1e-6)
    assert (np.diff(by_step[:9]) > 0).all()
    assert (np.diff(by_step[8:]) < 0).all()


def test_no_warm_up_starts_at_the_full_rate():
    values = rates(5, epochs=5, warmup_epochs=0, steps_per_epoch=1)
    expected = (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_warm_up_only():
    values = rates(4, epochs=4, warmup_epochs=4, steps_per_epoch=1)
    np.testing.assert_allclose(values, [0.001, 0.25, 0.5, 0.75], rtol=1e-6)


def test_weight_decay_reaches_every_parameter():
    optimizer = optim.adamw(lambda step: 0.1, weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for value in jax.tree.leaves(optax.apply_updates(params, updates)):
        np.testing.assert_allclose(value, 1 - 0.1 * 0.5, rtol=1e-6)


# --- updates --------------------------------------------------------------------------

# Weights and what is none; a bias that begins at 0.
PARAMS = {
    "encoder": {
        "stage": {0: {"conv": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]])}}},
        "norm": {"scale": np.array([1.0, 2.0]), "bias": np.zeros(2)},
        "positions": np.array([0.3, -0.4]),
    },
    "probe": {
        "linear": {"kernel": np.array([[2.0, 1.0]]), "bias": np.array([0.5, -1])}
    },
}
WEIGHTS = [["encoder", "stage", 0, "conv", "kernel"], ["probe", "linear", "kernel"]]
RATES = [0.5, 0.2, 0.05, 0.3]


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def leaves(tree):
    """Arrays by path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(part.key for part in path): np.asarray(x) for path, x in found}


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)


def updated(optimizer, given):
    """Parameters after an update by each of the gradients, by path."""
    params = as_float32(PARAMS)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for each in given:
        updates, state = update(as_float32(each), state, params)
        params = optax.apply_updates(params, updates)
    return leaves(params)


def rate_of(step):
    return jnp.asarray(RATES)[step]


def by_sgd(w, grads, decay, *, momentum, nesterov):
    """torch.optim.SGD, in float64."""
    v = np.zeros_like(w)
    for rate, g in zip(RATES, grads, strict=True):
        g = g + decay * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
    return w


def by_lars(w, grads, decay, *, momentum, nesterov, trust):
    """LARS as in SimCLR; `trust` None for an array that it leaves to SGD."""
    v = np.zeros_like(w)
    for rate, g in zip(RATES, grads, strict=True):
        g = g + decay * w
        norms = np.linalg.norm(w), np.linalg.norm(g)
        if trust is not None and all(norms):
            g = trust * norms[0] / norms[1] * g
        v = momentum * v + rate * g
        w = w - (rate * g + momentum * v if nesterov else v)
    return w


def by_adamw(w, grads, decay, *, b1, b2, eps):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, (rate, g) in enumerate(zip(RATES, grads, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        slope = m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps)
        w = w - rate * (slope + decay * w)
    return w


def expected(rule, grads, weight_decay, decay, **settings):
    """What a rule makes of every array, which decays or does not."""
    found = {}
    for path, w in leaves(PARAMS).items():
        is_weight = [*path] in WEIGHTS
        own = [leaves(each)[path] for each in grads]
        reached = decay == "all" or is_weight
        if "trust" in settings:
            settings["trust"] = TRUST if reached else None
        found[path] = rule(w, own, weight_decay * reached, **settings)
    return found


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        # Some roundings of float32, of values up to 3.
        np.testing.assert_allclose(
            ours[path], value, rtol=1e-5, atol=3e-6, err_msg=path
        )


TRUST = 0.02
MOMENTA = [(0.9, False), (0.9, True), (0.0, False)]


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_sgd_is_its_formula(momentum, nesterov, decay):
    given = [gradients(seed) for seed in range(4)]
    settings = {"momentum": momentum, "nesterov": nesterov}
    optimizer = optim.sgd(rate_of, weight_decay=0.1, decay=decay, **settings)
    theirs = expected(by_sgd, given, 0.1, decay, **settings)
    assert_close(updated(optimizer, given), theirs)


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_lars_is_its_formula(momentum, nesterov, decay):
    given = [gradients(seed) for seed in range(4)]
    given[1]["probe"]["linear"]["kernel"][:] = 0  # only decay is left
    settings = {"momentum": momentum, "nesterov": nesterov}
    optimizer = optim.lars(
        rate_of, trust_coefficient=TRUST, weight_decay=0.1, decay=decay, **settings
    )
    theirs = expected(by_lars, given, 0.1, decay, trust=TRUST, **settings)
    assert_close(updated(optimizer, given), theirs)


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_adamw_is_its_formula(decay):
    given = [gradients(seed) for seed in range(4)]
    constants = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    optimizer = optim.adamw(rate_of, weight_decay=0.1, decay=decay, **constants)
    theirs = expected(by_adamw, given, 0.1, decay, **constants)
    assert_close(updated(optimizer, given), theirs)


def test_lars_where_a_norm_is_zero():
    """An array of zeros moves by SGD, and one without gradient or decay stays."""
    params = {"kernel": jnp.zeros((2, 2)), "other": {"kernel": jnp.ones(3)}}
    grads = {"kernel": jnp.ones((2, 2)), "other": {"kernel": jnp.zeros(3)}}
    optimizer = optim.lars(lambda step: 0.1, weight_decay=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["other"]["kernel"], 0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_sgd_is_that_of_torch(momentum, nesterov, weight_decay):
    torch = pytest.importorskip("torch")
    given = [gradients(seed) for seed in range(4)]
    settings = {"momentum": momentum, "nesterov": nesterov}
    settings["weight_decay"] = weight_decay
    tensors = {k: torch.tensor(x).requires_grad_() for k, x in leaves(PARAMS).items()}
    theirs = torch.optim.SGD(tensors.values(), lr=1.0, **settings)
    for rate, each in zip(RATES, given, strict=True):
        theirs.param_groups[0]["lr"] = rate
        for path, gradient in leaves(each).items():
            tensors[path].grad = torch.tensor(gradient)
        theirs.step()
    after = {path: x.detach().numpy() for path, x in tensors.items()}
    assert_close(updated(optim.sgd(rate_of, **settings), given), after)


def test_the_state_of_adamw_is_as_it_was():
    """What old checkpoints hold: two means, and the counts of steps."""
    settings = tiny.config().optimizer
    state = optim.make(rate_of, settings).init(as_float32(PARAMS))
    like = optax.adamw(rate_of, b1=0.9, b2=0.95, weight_decay=1e-4)
    assert jax.tree.structure(state) == jax.tree.structure(
        like.init(as_float32(PARAMS))
    )


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_all_settings_reach_the_optimizer(name):
    """Each that is read changes an update, and no other is there."""
    given = [gradients(seed) for seed in range(2)]
    others = {
        "b1": 0.5,
        "b2": 0.5,
        "eps": 1.0,
        "momentum": 0.5,
        "nesterov": True,
        "trust_coefficient": 0.1,
        "weight_decay": 0.3,
        "decay": "weights",
    }
    before = updated(optim.make(rate_of, {"name": name}), given)
    for field, value in others.items():
        after = updated(optim.make(rate_of, {"name": name, field: value}), given)
        same = all(np.array_equal(before[path], x) for path, x in after.items())
        assert same == (field not in optim.fields_read(name)), field


@pytest.mark.parametrize(
    ("scale", "factor"), [("none", 1.0), ("linear", 2.0), ("sqrt", 2.0**0.5)]
)
def test_the_rate_grows_with_the_batch(scale, factor):
    assert optim.scaled(0.03, scale, 512) == pytest.approx(0.03 * factor)
    assert optim.scaled(0.03, scale, 256) == pytest.approx(0.03)
    config = tiny.config(
        optimizer__scale=scale, batch_size=512, steps_per_epoch=0, warmup_epochs=0
    )
    run = plan.make_plan(config, tiny.digits(config).facts)
    lr = config.optimizer.learning_rate
    assert float(run.rate(0)) == pytest.approx(lr * factor)
    assert run.base_rate == pytest.approx(lr * factor)


def test_unknown_optimizer():
    with pytest.raises(UsageError, match=r"optimizer.name='adam'.*adamw, sgd, lars"):
        optim.make(rate_of, {"name": "adam"})


def test_unknown_schedule():
    with pytest.raises(UsageError, match=r"optimizer.schedule='steps'.*epoch, step"):
        optim.learning_rate(
            1.0, epochs=1, warmup_epochs=0, steps_per_epoch=1, schedule="steps"
        )


def cosine(done):
    return (1 + np.cos(np.pi * done)) / 2


# Four epochs of two steps, one of them warm-up, extended to eight.
RUN = {"epochs": 4, "warmup_epochs": 1, "steps_per_epoch": 2}


@pytest.mark.parametrize("schedule", ["epoch", "step"])
@pytest.mark.parametrize("begin", [4, 5, 8])
def test_an_extension_falls_from_the_last_rate_to_the_new_end(schedule, begin):
    before = rates(8, **RUN, schedule=schedule)
    values = rates(17, **RUN, schedule=schedule, extensions=[(begin, 8)])
    np.testing.assert_array_equal(values[:begin], before[:begin])
    steps = np.arange(begin, 17)
    epochs = steps // 2 if schedule == "epoch" else steps / 2
    first = begin // 2 if schedule == "epoch" else begin / 2
    expected = before[begin - 1] * cosine((epochs - first) / (8 - first))
    np.testing.assert_allclose(values[begin:], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(values[begin], before[begin - 1], rtol=1e-6)
    assert before[begin - 1] > 0
    np.testing.assert_allclose(values[16], 0, atol=1e-7)


def test_extensions_in_a_row():
    once = rates(10, **RUN, extensions=[(6, 8)])
    twice = rates(24, **RUN, extensions=[(6, 8), (10, 12)])
    np.testing.assert_array_equal(twice[:10], once)
    expected = once[9] * cosine((np.arange(10, 24) // 2 - 5) / 7)
    np.testing.assert_allclose(twice[10:], expected, rtol=1e-5)
    # From an older checkpoint, where newer ones were damaged.
    back = rates(24, **RUN, extensions=[(6, 8), (4, 12)])
    np.testing.assert_array_equal(back, rates(24, **RUN, extensions=[(4, 12)]))


@pytest.mark.parametrize("schedule", ["epoch", "step"])
@pytest.mark.parametrize("begin", [1, 3, 4])
def test_an_extension_in_the_warm_up_is_the_longer_schedule(schedule, begin):
    """Whose cosine begins with the end of the warm-up, after step 4."""
    common = {"warmup_epochs": 2, "steps_per_epoch": 2, "schedule": schedule}
    values = rates(16, epochs=3, extensions=[(begin, 8)], **common)
    np.testing.assert_array_equal(values, rates(16, epochs=8, **common))
