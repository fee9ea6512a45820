"""What `--mode=benchmark` measures, and what it says of it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax

from duet_jax import profiling
from duet_jax.errors import UsageError
from duet_jax.methods.networks import split
from duet_jax.profiling import ceiling, flops, parts, timing
from duet_jax.training import compiled, plan, train_step
from duet_jax.training.batches import make_feed


def shape(*axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(axes, dtype)


def convolution(stride):
    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return convolve


def test_products_are_counted():
    def product(a, b):
        return jnp.einsum("bij,bjk->bik", a, b)

    arguments = shape(2, 3, 5), shape(2, 5, 7)
    assert flops.count(product, *arguments) == 2 * 2 * 3 * 5 * 7
    assert flops.count(jax.jit(product), *arguments) == 2 * 2 * 3 * 5 * 7
    assert flops.count(jnp.add, shape(3), shape(3)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients_are_counted(stride):
    """Each gradient of a convolution costs what the convolution costs."""
    convolve = convolution(stride)
    arguments = shape(4, 8, 8, 3), shape(3, 3, 3, 16)
    forward = 2 * 4 * (8 // stride) ** 2 * 16 * 9 * 3
    assert flops.count(convolve, *arguments) == forward

    def total(images, kernel):
        return jnp.sum(jnp.square(convolve(images, kernel)))

    of_kernel = flops.count(jax.grad(total, argnums=1), *arguments)
    assert of_kernel == 2 * forward
    both = flops.count(jax.grad(total, argnums=(0, 1)), *arguments)
    assert both == 3 * forward


def test_loops_and_recomputation_are_counted():
    def looped(a):
        return lax.scan(lambda x, _: (x @ x, None), a, length=5)[0]

    assert flops.count(looped, shape(4, 4)) == 5 * 2 * 4**3

    def loss(a):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x) @ x)(a))

    plain = flops.count(jax.grad(lambda a: jnp.sum(jnp.sin(a @ a) @ a)), shape(4, 4))
    assert flops.count(jax.grad(loss), shape(4, 4)) > plain


def test_the_step_costs_three_times_its_forward_pass():
    """But for the first layer, whose input needs no gradient."""
    config = tiny.config(batch_size=16, method="simclr", steps_per_epoch=1)
    run = plan.make_plan(config, tiny.dataset(16, 4).facts)
    update = train_step.make_train_step(
        run.method, run.graphdef, run.optimizer, run.rate
    )
    batch = shape(16, 16, 16, 1, dtype=jnp.uint8), shape(16, dtype=jnp.int32)
    state = compiled.initial_shapes(run)
    whole = flops.count(update, state, jax.random.key(0), *batch)
    networks = 16 * 2 * _multiplications(config)
    assert 2.8 * 2 * networks < whole < 3.1 * 2 * networks


def _multiplications(config):
    """Of one view in encoder and projector, added up by hand."""
    stem, *widths = config.encoder.widths
    side = config.dataset.image_size
    total = side**2 * 9 * stem
    for stage, (before, width) in enumerate(zip([stem, *widths], widths, strict=False)):
        side = side // (2 if stage else 1)
        total += side**2 * 9 * width * (before + width)
        if stage or before != width:
            total += side**2 * before * width
    hidden, output = config.projector.hidden, config.projector.output
    return total + widths[-1] * hidden + hidden**2 + hidden * output


def test_the_ceiling_is_a_rate():
    found = ceiling.measure("float32", seconds=0.1)
    assert 1e9 < found < 1e14


def test_times_are_of_calls_that_are_over():
    product = jax.jit(lambda x: x @ x @ x @ x)
    x = jnp.ones((600, 600))
    (found,) = timing.times_in_turn([lambda: product(x)], seconds=0.2)
    assert 0 < found.fastest <= found.median <= found.slowest
    assert found.calls >= 5
    # Slower than the arithmetic can be: the call was waited for.
    assert found.median > 3 * 2 * 600**3 / 1e13


@pytest.mark.parametrize("method", ["duet", "simclr", "essl"])
def test_a_part_is_what_the_step_does(method):
    """The forward part's number is the loss and metrics of the step on these views."""
    config = tiny.config(method=method, batch_size=8, steps_per_epoch=1)
    data = tiny.dataset(8, 4)
    run = plan.make_plan(config, data.facts)
    state, key = compiled.initial_state(run), jax.random.key(1)
    batch = jax.tree.map(jnp.asarray, data.train)
    views = run.method.make_views(key, batch.images, train=True)
    arguments = (state, key, batch, views)
    found = parts.compile_part(run, "forward", arguments)(*arguments)

    def forward(params):
        merged = parts.nnx.merge(run.graphdef, params, state.batch_stats)
        loss, metrics = run.method.loss(merged, views, batch.labels, None, train=True)
        return loss, (metrics, split(merged)[2])

    expected = sum(
        float(jnp.sum(x)) for x in jax.tree.leaves(jax.jit(forward)(state.params))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The benchmark of the smoke configuration, with little time for each part."""
    patch = pytest.MonkeyPatch()
    patch.setattr(profiling, "_SECONDS", 0.2)
    patch.setattr(profiling, "_PIPELINE_SECONDS", 0.2)
    patch.setattr(profiling, "_NOISE_IMAGES", 64)
    patch.setattr(ceiling.measure, "__defaults__", (0.05,))
    directory = tmp_path_factory.mktemp("run")
    before = jax.config.jax_compilation_cache_dir
    profiling.benchmark(tiny.config(compilation_cache="off"), directory)
    assert jax.config.jax_compilation_cache_dir == before
    patch.undo()
    return json.loads((directory / "benchmark.json").read_text())


def test_everything_is_measured(results):
    seconds = results["compile_seconds"]
    assert seconds["cold"] > seconds["cached"] > 0
    step = results["step"]
    assert step["fastest_ms"] <= step["median_ms"] <= step["slowest_ms"]
    np.testing.assert_allclose(
        results["images_per_second"], 32 / (step["median_ms"] / 1e3), rtol=1e-6
    )
    assert set(results["parts_ms"]) == set(parts.PARTS)
    assert all(value > 0 for value in results["parts_ms"].values())
    operations, rate = results["operations"], results["rate"]
    # XLA counts everything else too, and not the padding.
    assert 0.5 < operations["xla"] / operations["counted"] < 2
    np.testing.assert_allclose(
        rate["tflops_per_device"],
        operations["counted"] / (step["median_ms"] / 1e3) / 1e12,
        rtol=1e-6,
    )
    assert set(rate["ceiling_tflops"]) == {"float32", "bfloat16"}
    assert 0 < rate["share_of_ceiling"] < 1.5
    assert results["memory"]["temporaries"] > 0
    host = results["host"]
    assert 0 <= host["waits_for_device"] <= 1
    assert host["waits_for_images"] == 0
    assert results["config"]["encoder"]["name"] == "Cifar10_ResNet"


def test_the_table_says_it_all(results):
    lines = profiling.table(results).splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    text = "\n".join(lines)
    for word in (
        "compiled in", "encoder", "images per second", "augmentation", "forward",
        "backward", "update", "matrix ceiling", "share of the ceiling", "memory",
        "host waits",
    ):  # fmt: skip
        assert word in text


def test_a_brief_one_times_the_step_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_BRIEF_SECONDS", 0.1)
    monkeypatch.setattr(profiling, "_NOISE_IMAGES", 64)
    monkeypatch.setattr(ceiling.measure, "__defaults__", (0.05,))
    monkeypatch.setitem(ceiling._SIDES, "cpu", 256)
    monkeypatch.setattr(parts, "compile_part", None)
    out = tmp_path / "brief.json"
    config = tiny.config(compilation_cache="off")
    profiling.benchmark(config, tmp_path, out=str(out), brief=True)
    found = json.loads(out.read_text())
    assert set(found["compile_seconds"]) == {"cold"}
    assert (found["parts_ms"], found["host"]) == ({}, {})
    assert found["step"]["calls"] >= 5
    np.testing.assert_allclose(
        found["images_per_second"], 32 / (found["step"]["median_ms"] / 1e3), rtol=1e-6
    )
    assert found["rate"]["share_of_ceiling"] > 0
    text = profiling.table(found)
    assert "share of the ceiling" in text
    assert not {"alone", "cache", "host"} & set(text.replace(",", " ").split())


def test_what_is_only_compiled_is_counted(tmp_path, monkeypatch):
    """Sizes by hand of a narrow encoder: 1 input channel of 16 x 16, three stages."""
    monkeypatch.setattr(profiling, "times_in_turn", None)  # nothing runs
    monkeypatch.setattr(profiling, "initial_state", None)
    out = tmp_path / "compiled.json"
    config = tiny.config(compilation_cache="off")
    profiling.benchmark(config, tmp_path, out=str(out), compile_only=True)
    found = json.loads(out.read_text())
    assert not {"step", "images_per_second", "rate", "host"} & set(found)
    assert set(found["compile_seconds"]) == {"cold"}
    encoder = found["encoder"]
    run = plan.make_plan(config, profiling.noise(config, 0).facts)
    params = compiled.initial_shapes(run).params["encoder"]
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert (encoder["features"], encoder["parameters"]) == (32, size)
    hidden, output = config.projector.hidden, config.projector.output
    projector = 32 * hidden + hidden**2 + hidden * output
    # Of gray images; noise has three channels.
    alone = _multiplications(config) - projector + 2 * 16**2 * 9 * 8
    assert encoder["operations_per_image"] == 2 * alone
    assert found["memory"]["temporaries"] > 0
    text = profiling.table(found)
    assert f"32 features, {size:,} parameters" in text
    assert "the step: " in text
    assert "at most" not in text
    assert "images per second" not in text


def test_the_real_images_can_be_streamed(tmp_path):
    config = tiny.config(
        dataset__placement="host", dataset__workers=1, compilation_cache="off"
    )
    dataset = profiling.open_dataset(config)
    run = plan.make_plan(config, dataset.facts, streamed=True)
    feed = make_feed(run, dataset)
    calls = profiling._endless(feed)
    found = [next(calls) for _ in range(6)]  # the run has four steps
    calls.close()
    for one, other in zip(found[0], found[4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert feed.waited > 0


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="--images='sharp' must be one of noise, real"):
        profiling.benchmark(tiny.config(), tmp_path, images="sharp")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out: .* cannot be written"):
        profiling.benchmark(tiny.config(), tmp_path, out=f"{tmp_path}/file/x.json")
    (tmp_path / "benchmark.json").mkdir()
    with pytest.raises(UsageError, match=r"--workdir: .*benchmark.json .* directory"):
        profiling.benchmark(tiny.config(), tmp_path)
