"""Many devices compute what one computes, and say little to each other."""

import math
import re

import jax
import many_devices
import numpy as np
import pytest
from program import run

from duet_jax.errors import UsageError
from duet_jax.runtime import mesh
from duet_jax.training import compiled, plan

# Of SimCLR both have everything.
METHODS = ("duet", "essl")


@pytest.fixture(scope="module", params=METHODS)
def found(request, tmp_path_factory):
    """What `many_devices.py` found: run -> name -> array."""
    place = tmp_path_factory.mktemp(request.param)
    out = place / "out.npz"
    done = run(request.param, out, script=many_devices.__file__, cwd=place)
    assert done.status == 0, done.lines
    results = {}
    with np.load(out) as arrays:
        for name in arrays.files:
            devices, _, what = name.partition("/")
            results.setdefault(devices, {})[what] = arrays[name]
    return results


def test_eight_devices_train_like_one(found):
    one, eight = found["one"], found["eight"]
    assert set(one) == set(eight)
    for name in set(one) - {"program"}:
        limit = 1e-7 * np.abs(one[name]).max() + 1e-9
        np.testing.assert_allclose(eight[name], one[name], atol=limit, err_msg=name)
    losses = [one[f"step {i} loss"] for i in range(many_devices.UPDATES)]
    assert len(np.unique(losses)) == many_devices.UPDATES  # it does train


COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


def collectives(program: str) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape of everything that is exchanged in a compiled program."""
    return [
        (match[2], tuple(int(n) for n in dims.split(",") if n))
        for match in COLLECTIVE.finditer(program)
        for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])
    ]


def test_gradients_embeddings_and_statistics_are_all_that_is_exchanged(found):
    exchanged = collectives(str(found["eight"]["program"]))
    assert not collectives(str(found["one"]["program"]))

    def layout(shape):  # of whatever order: a gradient may be transposed
        return tuple(sorted(size for size in shape if size > 1))

    parameters = {
        layout(array.shape)
        for name, array in found["eight"].items()
        if name.startswith(("state.params", "state.batch_stats"))
    }
    # Positions of a transformer, as resampled for the 2 x 2 patches of half a view.
    parameters |= {(5, each[1]) for each in parameters if each[:1] == (17,)}
    batch, embedding = many_devices.BATCH, many_devices.EMBEDDING
    gathered = [math.prod(shape) for kind, shape in exchanged if kind == "all-gather"]
    # The embeddings once; for the way back, two numbers for each.
    assert gathered == [2 * batch * embedding, 2 * batch * 2]
    embeddings = {(2 * batch, embedding), (2, batch, embedding), (2, batch, 2)}
    for kind, shape in exchanged:
        assert kind in ("all-reduce", "all-gather")
        # Scalars are the means that are reported, vectors statistics of a BN.
        known = shape in embeddings or layout(shape) in parameters
        assert len(shape) < 2 or known, (kind, shape)


def test_the_seed_is_the_same_inside_a_compiled_function():
    for seed in (0, 7, 2**31, 2**32 - 1):
        run = plan_of(seed=seed)
        keys = compiled.make_keys(run)
        expected = compiled.train_step.stream(seed, compiled.train_step.TRAINING)
        assert (
            jax.random.key_data(keys.training) == jax.random.key_data(expected)
        ).all()


def plan_of(**changes):
    config = many_devices.configuration("simclr")
    for name, value in changes.items():
        config[name] = value
    return plan.make_plan(config, many_devices.tiny.dataset(48, 21, channels=3).facts)


@pytest.mark.parametrize(
    ("batch", "devices", "nearest"),
    [(20, 8, "use 16 or 24"), (6, 8, "use 8,"), (1001, 2, "use 1000 or 1002")],
)
def test_a_batch_that_cannot_be_split(batch, devices, nearest, monkeypatch):
    have_devices(monkeypatch, devices)
    for field in ("config.batch_size", "config.generation.batch_size"):
        said = rf"^{field}={batch} .* {devices} .*{nearest}"
        with pytest.raises(UsageError, match=said):
            mesh.check_batch_size(batch, field)


def have_devices(monkeypatch, count, local=None):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    monkeypatch.setattr(jax, "local_device_count", lambda: local or count)


def test_processes_have_equally_many_devices(monkeypatch):
    have_devices(monkeypatch, 4, local=3)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        UsageError, match="has 3 of 4 devices, and there are 2 processes"
    ):
        mesh.check_batch_size(16)


def test_small_test_splits_are_shared_by_all_devices(monkeypatch):
    have_devices(monkeypatch, 8)
    run = plan_of(batch_size=16)
    assert run.test_batch_size == 16
    assert run.test_batches == 2
    have_devices(monkeypatch, 4)
    assert plan_of(batch_size=32, steps_per_epoch=1).test_batch_size == 24
