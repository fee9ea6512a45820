"""Contracts of every augmentation, pixel oracles, distributions, and messages."""

import colorsys
import dataclasses
import itertools

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.scipy import ndimage

from duet_jax import augmentations
from duet_jax.augmentations import (
    AUGMENTATIONS,
    LEARNABLE,
    PREDICTABLE,
    Options,
    check_learned,
    check_predicted,
    make_stack,
    measuring_stack,
    options_read,
)
from duet_jax.augmentations import geometric as geo
from duet_jax.augmentations import photometric as pho
from duet_jax.augmentations.record import Frame
from duet_jax.errors import UsageError

PARTS = ("bri", "con", "sat", "hue")
MANY = 4000  # draws, for statistics

USUAL_AND_OTHER = pytest.mark.parametrize(
    "options", [Options(), tiny.OTHER_OPTIONS], ids=["usual", "other"]
)


def compiled(function, **kwargs):
    """Compiles once, not operation by operation; returns what numpy can slice."""
    function = jax.jit(function, **kwargs)
    return lambda *args: jax.tree.map(np.asarray, function(*args))


rotate, turn = compiled(geo.rotate), compiled(geo.turn)
resize = compiled(geo.resize, static_argnums=1)
crop_and_resize = compiled(geo.crop_and_resize, static_argnums=2)
blur, solarize = compiled(pho.blur), compiled(pho.solarize)
adjust_brightness = compiled(pho.adjust_brightness)
adjust_contrast = compiled(pho.adjust_contrast)
adjust_saturation = compiled(pho.adjust_saturation)
adjust_hue = compiled(pho.adjust_hue)


def stack_of(*codes, side=32, size=32, channels=3, options=None):
    return make_stack(
        codes,
        input_side=side,
        image_size=size,
        channels=channels,
        options=options or Options(),
        dataset_name="mnist",
    )


def pictures(n=3, side=32, channels=3, seed=0):
    """Noise with pure black and white in it."""
    noise = np.random.default_rng(seed).uniform(-0.2, 1.2, (n, side, side, channels))
    return np.clip(noise, 0, 1).astype(np.float32)


def close(ours, expected, atol=1e-6):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def draw(stack, n, seed=0):
    return jax.tree.map(np.asarray, stack.draw(jax.random.key(seed), n))


def test_tables():
    for code, record in AUGMENTATIONS.items():
        assert record.code == code
        assert record.source
        assert (record.structure is None) == (record.topology is None)
        assert (record.structure is None) == (record.scale is None)
        assert record.probability in {None, *Options.__dataclass_fields__}
    assert set(LEARNABLE) == set(AUGMENTATIONS) - {"jit", "res", "ccr"}
    assert list(PREDICTABLE) == ["rot", "ron", "fli", "flv", "gra", *PARTS]
    names = {record.topology: [] for record in AUGMENTATIONS.values()}
    for code, record in AUGMENTATIONS.items():
        names[record.topology].append(code)
    assert names == {
        "circle": ["rot", "ron", "fli", "flv"],
        "line": ["sca", "gra", "blu", *PARTS, "sol"],
        None: ["jit", "res", "ccr"],
    }
    two_point = {code for code, record in AUGMENTATIONS.items() if record.two_point}
    assert two_point == {"fli", "flv", "gra", "blu"}


# Contracts that hold for every record.

CODES_AND_CHANNELS = [
    (code, channels)
    for code, record in AUGMENTATIONS.items()
    for channels in record.channels
]


@pytest.mark.parametrize(("code", "channels"), CODES_AND_CHANNELS)
def test_identity_changes_no_bit(code, channels):
    stack, images = stack_of(code, channels=channels), pictures(channels=channels)
    ours = compiled(stack.apply)(images, stack.identity(len(images)))
    np.testing.assert_array_equal(ours, images)


IDENTITY_STRUCTURE = {
    **{"sca": 0, "rot": 0.5, "ron": 0.125, "fli": 0.25, "flv": 0.25, "gra": 0},
    **{"blu": 0, "bri": 0.5, "con": 0.5, "sat": 0.5, "hue": 0.5, "sol": 1},
}


@pytest.mark.parametrize("code", LEARNABLE)
def test_structure_of_the_identity(code):
    stack = stack_of(code, side=36)
    (value,) = stack.structure(stack.identity(3)).values()
    close(value, np.full(3, IDENTITY_STRUCTURE[code]), 1e-7)


STRUCTURE = {  # from the parameters and the side, with numpy
    "sca": lambda p, side: 1 - (p["height"] - 1) / (side - 1),
    "rot": lambda p, side: (p["degrees"] + 180) / 360,
    "ron": lambda p, side: p["turns"] / 4 + 0.125,
    "fli": lambda p, side: np.where(p["mirrored"], 0.75, 0.25),
    "flv": lambda p, side: np.where(p["mirrored"], 0.75, 0.25),
    "gra": lambda p, side: np.where(p["grey"], 1, 0),
    "blu": lambda p, side: np.where(p["sigma"] > 0, 1, 0),
    "bri": lambda p, side: (p["bri"] - 0.6) / 0.8,
    "con": lambda p, side: (p["con"] - 0.6) / 0.8,
    "sat": lambda p, side: (p["sat"] - 0.6) / 0.8,
    "hue": lambda p, side: (p["hue"] + 0.1) / 0.2,
    "sol": lambda p, side: np.where(p["solarized"], (p["threshold"] - 0.4) / 0.2, 1),
}


@pytest.mark.parametrize("side", [32, 36])
@pytest.mark.parametrize("code", LEARNABLE)
def test_structure_is_the_place_of_what_was_drawn(code, side):
    stack = stack_of(code, side=side)
    params = draw(stack, MANY)
    (value,) = compiled(stack.structure)(params).values()
    assert value.shape == (MANY,)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    assert value.min() >= 0
    assert value.max() <= 1
    (leaves,) = params.values()
    close(value, STRUCTURE[code](leaves, side), 2e-6)
    if AUGMENTATIONS[code].two_point:
        assert len(np.unique(value)) == 2
    elif code == "ron":
        close(np.unique(value), [0.125, 0.375, 0.625, 0.875], 0)
    elif code == "sca":
        assert value.max() < 0.65  # a box has at least 15 % of the area in a square
    else:
        assert value.min() < 0.01
        assert value.max() > 0.99


@pytest.mark.parametrize("code", AUGMENTATIONS)
def test_batch_is_loop_and_jit_is_eager(code):
    stack, images = stack_of(code), pictures()
    params = draw(stack, 3, seed=4)
    # The batch operation by operation, against image by image compiled as a whole.
    together, apply = np.asarray(stack.apply(images, params)), compiled(stack.apply)
    assert together.shape == images.shape
    assert together.min() >= -1e-6
    assert together.max() <= 1 + 1e-6
    for i in range(3):
        single = jax.tree.map(lambda p, i=i: p[i : i + 1] if p.ndim else p, params)
        close(apply(images[i : i + 1], single), together[i : i + 1], 1e-5)


UNTOUCHED = {
    "fli": lambda p: ~p["mirrored"],
    "flv": lambda p: ~p["mirrored"],
    "gra": lambda p: ~p["grey"],
    "blu": lambda p: p["sigma"] == 0,
    **dict.fromkeys(("jit", *PARTS), lambda p: ~p["jittered"]),
    "sol": lambda p: ~p["solarized"],
}


@USUAL_AND_OTHER
@pytest.mark.parametrize("code", UNTOUCHED)
def test_probability(code, options):
    (params,) = draw(stack_of(code, options=options), MANY).values()
    expected = getattr(options, AUGMENTATIONS[code].probability)
    share = 1 - np.mean(UNTOUCHED[code](params))
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / MANY)


@pytest.mark.parametrize("code", UNTOUCHED)
def test_the_others_come_out_bit_for_bit(code):
    n, stack = 48, stack_of(code)
    images, params = pictures(n), draw(stack, n, seed=1)
    ours = compiled(stack.apply)(images, params)
    (leaves,) = params.values()
    untouched = np.asarray(UNTOUCHED[code](leaves))
    assert 0 < untouched.sum() < n
    np.testing.assert_array_equal(ours[untouched], images[untouched])
    changed = np.abs(ours - images).max(axis=(1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, ~untouched)


# What is drawn.


def ranges(options):
    """(code, leaf) -> ends of the uniform distribution."""
    bri, con, sat, hue = options.jitter_strength
    return {
        ("rot", "degrees"): (-options.rotation_degrees, options.rotation_degrees),
        ("blu", "sigma"): options.blur_sigma,
        ("sol", "threshold"): options.solarize_threshold,
        ("sol", "addition"): options.solarize_addition,
        ("jit", "bri"): (1 - bri, 1 + bri),
        ("jit", "con"): (1 - con, 1 + con),
        ("jit", "sat"): (1 - sat, 1 + sat),
        ("jit", "hue"): (-hue, hue),
    }


@USUAL_AND_OTHER
@pytest.mark.parametrize(("code", "leaf"), ranges(Options()))
def test_uniform_draws(code, leaf, options):
    ((record, frame),) = stack_of(code, options=options).stages
    values = np.asarray(record.draw(jax.random.key(2), MANY, frame)[leaf])
    low, high = ranges(options)[code, leaf]
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    counts, _ = np.histogram(values, bins=20, range=(low, high))
    chi_square(counts, np.full(20, MANY / 20))


def chi_square(counts, expected):
    """Accepts counts within five standard deviations of the chi-square statistic."""
    statistic = np.sum((counts - expected) ** 2 / expected)
    freedom = len(counts) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), statistic


def test_factors_are_independent():
    ((record, frame),) = stack_of("jit").stages
    params = record.draw(jax.random.key(0), MANY, frame)
    correlation = np.corrcoef([params[code] for code in PARTS])
    assert np.abs(correlation - np.eye(4)).max() < 0.08


def test_quarter_turns_and_orders_are_equally_frequent():
    ((record, frame),) = stack_of("ron").stages
    turns = record.draw(jax.random.key(0), MANY, frame)["turns"]
    chi_square(np.bincount(turns, minlength=4), np.full(4, MANY / 4))
    ((record, frame),) = stack_of("jit").stages
    keys = jax.random.split(jax.random.key(0), 4800)
    orders = jax.jit(jax.vmap(lambda k: record.draw(k, 1, frame)["order"]))(keys)
    chi_square(np.bincount(orders, minlength=24), np.full(24, 200.0))


@USUAL_AND_OTHER
def test_crop_boxes(options):
    n, side = 100_000, 36
    (box,) = draw(stack_of("sca", side=side, options=options), n).values()
    top, left, height, width = (
        np.asarray(box[name]) for name in ("top", "left", "height", "width")
    )
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == side
    assert (left + width).max() == side
    low, high = (area * side**2 for area in options.crop_area)
    rounding = (height + width) / 2 + 0.25  # of two sides by half a pixel each
    assert (height * width >= low - rounding).all()
    assert (height * width <= high + rounding).all()
    low, high = options.crop_ratio
    assert ((width + 0.5) / (height - 0.5) >= low).all()
    assert ((width - 0.5) / (height + 0.5) <= high).all()
    # The place is uniform over what fits, and independent in the two directions.
    for start, extent in ((top, height), (left, width)):
        extent_to_test = np.bincount(extent).argmax()
        places = start[extent == extent_to_test]
        choices = side + 1 - extent_to_test
        counts = np.bincount(places, minlength=choices)
        chi_square(counts, np.full(choices, len(places) / choices))
    slack = (side + 1 - height, side + 1 - width)
    assert abs(np.corrcoef(top / slack[0], left / slack[1])[0, 1]) < 0.02


def test_crop_of_the_whole_image_where_no_proposal_fits():
    options = Options(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    (box,) = draw(stack_of("sca", side=36, options=options), 5).values()
    for name, value in {"top": 0, "left": 0, "height": 36, "width": 36}.items():
        np.testing.assert_array_equal(box[name], np.full(5, value))


# Pixels, against other implementations.


dm_pix_rotate = jax.jit(jax.vmap(pix.rotate, (0, None)))


@pytest.mark.parametrize("degrees", [10.0, -77.0, 160.0])
def test_rotation_agrees_with_dm_pix_inside(degrees):
    images = pictures(2)
    ours = rotate(images, jnp.full(2, degrees))
    theirs = dm_pix_rotate(images, np.deg2rad(degrees))
    axis = np.arange(32) - 15.5
    inside = np.hypot(axis[:, None], axis[None, :]) < 15
    close(ours[:, inside], theirs[:, inside], 1e-5)


def test_rotation_blends_with_zero_outside():
    images = pictures(2)
    padded = np.pad(images, ((0, 0), (32, 32), (32, 32), (0, 0)))
    ours = rotate(images, jnp.array([33.0, -140.0]))
    theirs = rotate(padded, jnp.array([33.0, -140.0]))[:, 32:64, 32:64]
    close(ours, theirs, 2e-5)
    assert (ours[:, 0, 0] == 0).all()


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_agree_with_dm_pix_and_with_rotation(turns):
    images = pictures()
    ours = turn(images, jnp.full(3, turns))
    np.testing.assert_array_equal(ours, pix.rot90(images, turns))
    close(ours, rotate(images, jnp.full(3, 90.0 * turns)), 2e-5)


def test_mirrors_agree_with_dm_pix():
    images, mirrored = pictures(2), jnp.array([True, False])
    for code, flip in {"fli": pix.flip_left_right, "flv": pix.flip_up_down}.items():
        ours = stack_of(code).apply(images, {code: {"mirrored": mirrored}})
        np.testing.assert_array_equal(ours[0], flip(images[0]))
        np.testing.assert_array_equal(ours[1], images[1])


def boxes(*rows):
    names = ("top", "left", "height", "width")
    return dict(zip(names, np.array(rows, np.int32).T, strict=True))


def test_crop_agrees_with_map_coordinates():
    images = pictures(3, side=36)
    box = boxes((3, 7, 20, 29), (0, 0, 36, 36), (35, 1, 1, 14))
    ours = crop_and_resize(images, box, 32)
    for i in range(3):
        top, left, height, width = (int(box[name][i]) for name in box)
        rows = np.linspace(top, top + height - 1, 32)
        columns = np.linspace(left, left + width - 1, 32)
        grid = [jnp.asarray(a) for a in np.meshgrid(rows, columns, indexing="ij")]
        for channel in range(3):
            theirs = ndimage.map_coordinates(
                images[i, :, :, channel], grid, order=1, mode="nearest"
            )
            close(ours[i, :, :, channel], theirs, 1e-5)


def test_crop_of_the_size_of_the_view_only_cuts():
    images = pictures(1, side=36)
    ours = crop_and_resize(images, boxes((3, 1, 32, 32)), 32)
    np.testing.assert_array_equal(ours, images[:, 3:35, 1:33])


def test_blur_agrees_with_dm_pix_on_reflected_images():
    images, sigma = pictures(3), jnp.array([0.1, 0.7, 2.0])
    ours = blur(images, sigma)
    for i in range(3):
        padded = np.pad(images[i], ((1, 1), (1, 1), (0, 0)), mode="reflect")
        close(ours[i], pix.gaussian_blur(padded, sigma[i], 3, padding="VALID"))


def test_brightness_agrees_with_dm_pix_on_uniform_images():
    value, factor = jnp.array([0.2, 0.5, 0.9]), jnp.array([0.6, 1.4, 1.05])
    images = jnp.broadcast_to(value[:, None, None, None], (3, 4, 4, 3))
    ours = adjust_brightness(images, factor)
    for i in range(3):
        delta = value[i] * (factor[i] - 1)
        close(ours[i], pix.adjust_brightness(images[i], delta))
    close(adjust_brightness(images, jnp.full(3, 7.0)), 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_agrees_with_dm_pix_on_grey_images(channels):
    images = np.repeat(pictures(3, channels=1), channels, axis=3)
    factor = jnp.array([0.6, 1.0, 1.4])
    ours = adjust_contrast(images, factor)
    for i in range(3):
        close(ours[i], jnp.clip(pix.adjust_contrast(images[i], factor[i]), 0, 1))


def test_saturation_agrees_with_dm_pix_where_it_changes_nothing():
    grey = np.repeat(pictures(2, channels=1), 3, axis=3)
    close(adjust_saturation(grey, jnp.array([0.6, 1.4])), grey)
    close(pix.adjust_saturation(grey, 1.4), grey)
    images = pictures(2)
    close(adjust_saturation(images, jnp.ones(2)), pix.adjust_saturation(images, 1))


def test_saturation_blends_with_grey():
    images, factor = pictures(2), np.array([0.3, 1.7], np.float32)
    grey = (images @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    blend = (
        factor[:, None, None, None] * images + (1 - factor)[:, None, None, None] * grey
    )
    close(adjust_saturation(images, factor), np.clip(blend, 0, 1))
    chosen = stack_of("gra").apply(images, {"gra": {"grey": np.ones(2, bool)}})
    close(chosen, np.repeat(grey, 3, axis=3))
    # dm-pix has .2989 for red.
    close(chosen, pix.rgb_to_grayscale(images, keep_dims=True), 1.1e-4)


HUE_COLOURS = [*itertools.product((0.0, 0.4, 1.0), repeat=3), (0.2, 0.7, 0.70001)]


def test_hue_agrees_with_the_standard_library_and_dm_pix():
    turns = jnp.array([-0.5, -0.1, 0.0, 0.03, 0.4])
    colours = jnp.array(HUE_COLOURS)[None, :, None, :]
    images = jnp.tile(colours, (5, 1, 1, 1))
    ours = adjust_hue(images, turns)
    close(ours, pix.adjust_hue(images, turns[:, None, None]), 2e-6)
    for row, colour in itertools.product(range(5), range(len(HUE_COLOURS))):
        hue, saturation, value = colorsys.rgb_to_hsv(*HUE_COLOURS[colour])
        shifted = colorsys.hsv_to_rgb((hue + float(turns[row])) % 1, saturation, value)
        close(ours[row, colour, 0], shifted, 2e-6)


def test_hue_is_safe_to_fuse_with_what_comes_before():
    # Compiled together with a rotation, dm-pix's own shift is wrong by up to .95.
    images, degrees = pictures(32), jnp.linspace(-170, 170, 32)
    turns = jnp.linspace(-0.1, 0.1, 32)
    apart = adjust_hue(rotate(images, degrees), turns)
    fused = compiled(lambda i: pho.adjust_hue(geo.rotate(i, degrees), turns))(images)
    close(fused, apart, 1e-4)


def test_solarize_agrees_with_dm_pix():
    images, threshold = pictures(3), jnp.array([0.4, 0.5, 0.6])
    ours = solarize(images, threshold, jnp.zeros(3))
    for i in range(3):
        close(ours[i], pix.solarize(images[i], threshold[i]), 0)
    pixels = jnp.array([0.3, 0.45, 0.95]).reshape(1, 1, 3, 1)
    added = solarize(pixels, jnp.array([0.5]), jnp.array([0.1]))
    close(added.ravel(), [0.4, 0.45, 0.0])


@pytest.mark.parametrize("codes", [("jit",), ("hue", "con"), ("sat", "bri", "hue")])
def test_jitter_carries_out_its_components_in_the_drawn_order(codes):
    functions = {
        "bri": adjust_brightness,
        "con": adjust_contrast,
        "sat": adjust_saturation,
        "hue": adjust_hue,
    }
    stack, images = stack_of(*codes), pictures(2)
    ((record, frame),) = stack.stages
    params = record.draw(jax.random.key(0), 2, frame)
    listed = PARTS if codes == ("jit",) else codes
    assert set(params) == {"jittered", "order", *listed}
    apply = compiled(stack.apply)
    results = []
    for number, order in enumerate(itertools.permutations(PARTS)):
        expected = images
        for code in order:
            if code in listed:
                expected = functions[code](expected, params[code])
        ours = apply(images, {"jitter": {**params, "order": jnp.int32(number)}})
        close(ours, expected, 5e-6)
        results.append(np.round(ours, 4).tobytes())
    assert len(set(results)) > 1


# Stacks.


def test_stack_order_and_place_of_the_jitter():
    stack = stack_of("hue", "rot", "bri", "fli")
    assert [record.stage for record, _ in stack.stages] == ["jitter", "rot", "fli"]
    assert stack.stages[0][1].codes == ("hue", "bri")
    params = draw(stack, 3)
    assert list(stack.structure(params)) == ["hue", "bri", "rot", "fli"]
    images = pictures(3)
    expected = images
    for record, frame in stack.stages:
        expected = record.apply(expected, params[record.stage], frame)
    close(compiled(stack.apply)(images, params), expected, 1e-5)


@pytest.mark.parametrize(
    ("codes", "sides"),
    [
        (("rot", "sca", "fli"), [36, 36, 32]),
        (("ccr", "rot"), [36, 32]),
        (("res", "sca"), [36, 32]),
        (("rot", "fli"), [36, 36]),
    ],
)
def test_sides_of_the_stages(codes, sides):
    stack = stack_of(*codes, side=36)
    assert [frame.side for _, frame in stack.stages] == sides
    view = jax.eval_shape(
        lambda key, images: stack.apply(images, stack.draw(key, 2)),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 36, 36, 3), jnp.float32),
    )
    assert view.shape == (2, 32, 32, 3)
    assert view.dtype == jnp.float32


def test_larger_images_are_cut_at_the_end():
    images = pictures(2, 36)
    np.testing.assert_array_equal(
        stack_of(side=36).apply(images, {}), images[:, 2:34, 2:34]
    )
    stack = stack_of("rot", side=36)
    params = draw(stack, 2)
    turned = rotate(images, params["rot"]["degrees"])
    close(stack.apply(images, params), turned[:, 2:34, 2:34], 1e-5)


def test_empty_stack_draws_nothing():
    stack = stack_of()
    assert stack.draw(jax.random.key(0), 2) == {}
    assert stack.structure({}) == {}
    images = pictures(2)
    np.testing.assert_array_equal(stack.apply(images, {}), images)


def test_stages_have_their_own_keys():
    params = draw(stack_of("fli", "flv", "gra"), MANY)
    choices = [params["fli"]["mirrored"], params["flv"]["mirrored"]]
    assert abs(np.corrcoef(choices)[0, 1]) < 0.08
    assert (
        draw(stack_of("rot"), 3)["rot"]["degrees"][0]
        != (draw(stack_of("rot"), 3, seed=1)["rot"]["degrees"][0])
    )


def test_a_second_call_does_not_recompile_and_no_tracer_leaks():
    view = jax.jit(
        lambda stack, key, images: stack.apply(images, stack.draw(key, 2)),
        static_argnums=0,
    )
    codes = ("sca", "fli", "hue", "blu")
    images = pictures(2)
    with jax.checking_leaks():
        first = view(stack_of(*codes), jax.random.key(0), images)
        # An equal stack, made anew, is the same static argument.
        second = view(stack_of(*codes), jax.random.key(1), images)
        again = view(stack_of(*codes), jax.random.key(0), images)
    assert view._cache_size() == 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1


def test_plain_view():
    images = pictures(2, 36)
    view = stack_of("sca", "jit", "rot", side=36).apply(images, None)
    np.testing.assert_array_equal(view, images[:, 2:34, 2:34])


def test_pixels_to_normalized_images():
    pixels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    images = augmentations.to_float(pixels)
    assert images.dtype == jnp.float32
    close(images.ravel(), np.arange(256) / 255, 1e-7)
    close(augmentations.normalize(images).ravel(), np.arange(256) / 255 - 0.5, 1e-7)


# One augmentation alone, and the structure in its own units.


PARAMETERS = {  # unit, and the parameter from what was drawn and the side
    "sca": ("side of the crop / side of the image", lambda p, side: p["height"] / side),
    "rot": ("degrees", lambda p, side: p["degrees"]),
    "ron": ("quarter turns", lambda p, side: p["turns"]),
    "fli": ("mirrored", lambda p, side: p["mirrored"]),
    "flv": ("mirrored", lambda p, side: p["mirrored"]),
    "gra": ("gray", lambda p, side: p["grey"]),
    "blu": ("blurred", lambda p, side: p["sigma"] > 0),
    "bri": ("factor", lambda p, side: p["bri"]),
    "con": ("factor", lambda p, side: p["con"]),
    "sat": ("factor", lambda p, side: p["sat"]),
    "hue": ("turns of hue", lambda p, side: p["hue"]),
    "sol": ("threshold", lambda p, side: p["threshold"]),
}


@USUAL_AND_OTHER
@pytest.mark.parametrize("code", LEARNABLE)
def test_scale_is_the_way_back_to_the_parameter(code, options):
    stack = measuring_stack((code,), stack_of("ccr", "jit", side=36, options=options))
    params = draw(stack, MANY)
    ((record, frame),) = stack.stages
    scale, value = AUGMENTATIONS[code].scale, stack.structure(params)[code]
    unit, parameter = PARAMETERS[code]
    assert scale.unit == unit
    expected = np.asarray(parameter(params[record.stage], 36), np.float32)
    assert np.ptp(expected) > 0
    close(scale.parameter(value, frame), expected, 1e-4 * np.ptp(expected))


@USUAL_AND_OTHER
@pytest.mark.parametrize("code", LEARNABLE)
def test_every_level_and_nothing_else_is_measured(code, options):
    stack = measuring_stack((code,), stack_of("rot", options=options))
    params = draw(stack, MANY)
    values, counts = np.unique(stack.structure(params)[code], return_counts=True)
    levels = AUGMENTATIONS[code].scale.levels
    if levels is not None:
        np.testing.assert_array_equal(values, np.float32(levels))
        chi_square(counts, np.full(len(levels), MANY / len(levels)))
    else:
        assert len(values) > 10
        (leaves,) = params.values()
        if code in UNTOUCHED:
            assert not UNTOUCHED[code](leaves).any()


@pytest.mark.parametrize("code", LEARNABLE)
def test_structure_of_params_that_were_asked_for(code):
    ((record, frame),) = measuring_stack((code,), stack_of()).stages
    asked = np.float32(record.scale.levels or np.linspace(0, 1, frame.side))
    params = record.scale.params(asked, frame)
    assert jax.tree.structure(params) == jax.tree.structure(record.identity(1, frame))
    close(record.structure(params, frame), asked, 1e-5)
    # Between the levels the nearest one; 0 and 1 are one point, with one answer.
    if record.scale.levels and record.topology == "circle":
        ends = record.structure(record.scale.params(np.float32([0, 1]), frame), frame)
        close(ends, np.repeat(ends[:1], 2))
        assert ends[0] in asked
        half = 0.5 / len(asked)
        for moved in (asked + 0.9 * half, asked - 0.9 * half):
            params = record.scale.params(moved % 1, frame)
            close(record.structure(params, frame), asked)


def test_params_that_were_asked_for_change_one_thing():
    image = np.float32(np.random.default_rng(0).random((1, 32, 32, 3)))

    def made(code, *values):
        stack = measuring_stack((code,), stack_of())
        ((record, frame),) = stack.stages
        params = record.scale.params(np.float32(values), frame)
        rows = np.repeat(image, len(values), axis=0)
        return np.asarray(record.apply(rows, params, frame)), params

    # In the middle of its range, a factor is 1, and a shift 0: nothing is left but it.
    for code in PARTS:
        close(made(code, 0.5)[0], image, 1e-5)
    close(made("bri", 1.0)[0], np.clip(1.4 * image, 0, 1), 1e-6)
    boxes = made("sca", 0.0, 9 / 31)[1]
    assert {k: v.tolist() for k, v in boxes.items()} == {
        "top": [0, 4], "left": [0, 4], "height": [32, 23], "width": [32, 23]
    }  # fmt: skip
    assert made("blu", 0.0, 1.0)[1]["sigma"].tolist() == pytest.approx([0, 1.05])
    close(made("gra", 0.0)[0], image, 0)
    assert np.ptp(made("gra", 1.0)[0], axis=3).max() < 1e-6
    solarized, params = made("sol", 0.5)
    assert params["threshold"].tolist() == pytest.approx([0.5])
    close(solarized, np.where(image < 0.5, image, 1 - image), 1e-6)


class Reading:
    """Options that note which of them are read."""

    def __init__(self):
        self.names = set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(Options(), name)


def test_which_options_an_augmentation_reads():
    jitter = {"jitter_probability", "jitter_strength"}
    expected = {
        "sca": {"crop_area", "crop_ratio"},
        "rot": {"rotation_degrees"},
        "ron": set(),
        "fli": {"flip_probability"},
        "flv": {"flip_probability"},
        "gra": {"grey_probability"},
        "blu": {"blur_probability", "blur_sigma"},
        "sol": {
            "solarize_probability",
            "solarize_threshold",
            "solarize_addition",
        },
        "res": set(),
        "ccr": set(),
        **dict.fromkeys(("jit", *PARTS), jitter),
    }
    assert {code: options_read(code) for code in AUGMENTATIONS} == expected
    for code, record in AUGMENTATIONS.items():
        options = Reading()
        frame = Frame(options, side=8, image_size=8, crop_side=8, codes=(code,))
        params = jax.eval_shape(
            lambda r=record, f=frame: r.draw(jax.random.key(0), 2, f)
        )
        if record.structure:
            jax.eval_shape(lambda p, r=record, f=frame: r.structure(p, f), params)
        assert options.names | ({record.probability} - {None}) == expected[code]
    assert set().union(*expected.values()) == set(vars(Options()))


def test_measuring_stack_is_otherwise_the_same():
    like = stack_of("ccr", "jit", side=36, options=tiny.OTHER_OPTIONS).half_size()
    stack = measuring_stack(("hue",), like)
    options = dataclasses.replace(tiny.OTHER_OPTIONS, jitter_probability=1.0)
    assert stack == dataclasses.replace(like, codes=("hue",), options=options)
    assert measuring_stack(("rot",), like).options == tiny.OTHER_OPTIONS


@pytest.mark.parametrize(
    ("code", "channels", "parts"),
    [
        ("jit", 3, ["not known", ", ".join(LEARNABLE)]),
        ("rott", 3, ["not known", ", ".join(LEARNABLE), "Did you mean 'rot'?"]),
        (
            "hue",
            1,
            ["hue (", "needs images with 3", "among sca rot ron fli flv blu bri con"],
        ),
    ],
)
def test_measuring_errors(code, channels, parts):
    line = message(measuring_stack, (code,), stack_of(channels=channels))
    assert line.startswith(f"--codes={code!r}")
    for part in parts:
        assert part in line


# Half-size views and what ESSL predicts.


@pytest.mark.parametrize("side", [32, 36])
@pytest.mark.parametrize("code", ["ccr", "res", "sca", "fli"])
def test_half_size_view_shows_the_same_scene(code, side):
    full = stack_of(code, side=side)
    half, images = full.half_size(), pictures(2, side)
    params = draw(full, 2)
    ours = compiled(half.apply)(images, params)
    assert ours.shape == (2, 16, 16, 3)
    if code == "sca":
        expected = crop_and_resize(images, params["sca"], 16)
    elif code == "res":
        expected = resize(images, 16)
    else:
        expected = resize(full.apply(images, params), 16)
    close(ours, expected, 1e-5)
    for code, value in full.structure(params).items():
        close(half.structure(params)[code], value, 0)


def test_half_size_plain_view():
    images, stack = pictures(2, 36), stack_of("sca", "rot", side=36)
    full, half = stack.apply(images, None), stack.half_size().apply(images, None)
    close(half, resize(full, 16), 1e-5)
    close(half[:, 0, 0], images[:, 2, 2])
    close(half[:, -1, -1], images[:, 33, 33])


PREDICTED = {  # outputs, and the low and high end of the regression's targets
    **{"rot": (1, -0.5, 0.5), "ron": (4,), "fli": (2,), "flv": (2,), "gra": (2,)},
    **{"bri": (1, 0.6, 1.4), "con": (1, 0.6, 1.4), "sat": (1, 0.6, 1.4)},
    "hue": (1, -0.1, 0.1),
}


@pytest.mark.parametrize("code", PREDICTABLE)
def test_prediction(code):
    prediction = AUGMENTATIONS[code].prediction
    num_outputs, *ends = PREDICTED[code]
    assert prediction.num_outputs == num_outputs
    assert prediction.classification == (not ends)
    images, key = pictures(3, 16), jax.random.key(3)
    made, targets = compiled(prediction.make)(key, images)
    assert made.shape == (3 * num_outputs, 16, 16, 3)
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
    assert targets.shape == (3 * num_outputs,)
    assert targets.dtype == (jnp.float32 if ends else jnp.int32)
    if ends:
        targets = prediction.targets(prediction.draw(key, MANY))
        counts, _ = np.histogram(targets, bins=10, range=ends)
        chi_square(counts, np.full(10, MANY / 10))
    else:
        np.testing.assert_array_equal(targets, np.tile(np.arange(num_outputs), 3))
        np.testing.assert_array_equal(made[::num_outputs], images)


def test_predicted_images_are_transformed_by_their_targets():
    images, key = pictures(3, 16), jax.random.key(0)
    made, _ = compiled(AUGMENTATIONS["ron"].prediction.make)(key, images)
    for turns in range(4):
        np.testing.assert_array_equal(made[turns::4], pix.rot90(images, turns))
    made, targets = compiled(AUGMENTATIONS["rot"].prediction.make)(key, images)
    close(made, rotate(images, 180 * targets), 1e-5)
    made, targets = compiled(AUGMENTATIONS["hue"].prediction.make)(key, images)
    close(made, adjust_hue(images, targets), 1e-5)


def test_without_keeps_the_order():
    codes = ("sca", "rot", "fli")
    assert augmentations.without(codes, ("rot",)) == ("sca", "fli")
    assert augmentations.without(codes, ("hue",)) == codes


# Messages.


def message(function, *args, **kwargs):
    with pytest.raises(UsageError) as error:
        function(*args, **kwargs)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("codes", "channels", "parts"),
    [
        (("sca", "rto"), 3, ["config.augmentation.stack='rto'", "Did you mean 'rot'?"]),
        (("fli", "sca", "fli"), 3, ["stack='fli sca fli' lists fli 2 times", "once"]),
        (
            ("sca", "jit", "hue"),
            3,
            [
                "stack='sca jit hue' lists jit and hue",
                "bri con sat hue in place of jit",
            ],
        ),
        *(
            (
                ("sca", code),
                1,
                [
                    f"stack='sca {code}': {code} (",
                    "needs images with 3 channels",
                    "those of mnist have 1",
                    "choose among sca rot ron fli flv blu bri con res ccr sol.",
                ],
            )
            for code in ("gra", "jit", "sat", "hue")
        ),
    ],
)
def test_stack_errors(codes, channels, parts):
    line = message(stack_of, *codes, channels=channels)
    assert line.startswith("config.augmentation.stack=")
    for part in parts:
        assert part in line


def test_views_larger_than_the_images():
    with pytest.raises(ValueError, match=r"input_side=28 .* image_size=32"):
        stack_of("rot", side=28)


@pytest.mark.parametrize(
    ("code", "stack", "parts"),
    [
        ("jit", ("jit",), ["bri con sat hue", "in place of jit"]),
        ("res", ("res",), [f"choose one of {' '.join(LEARNABLE)}."]),
        ("ccr", ("ccr",), [f"choose one of {' '.join(LEARNABLE)}."]),
        ("rott", ("rot",), ["not known", "Did you mean 'rot'?"]),
        (
            "rot",
            ("sca", "jit"),
            ["not in config.augmentation.stack='sca jit'", "(sca)"],
        ),
        ("rot", (), ["not in config.augmentation.stack=''", "none so far"]),
        ("hue", ("sca", "jit"), ["write bri con sat hue in place of jit"]),
    ],
)
def test_learned_errors(code, stack, parts):
    line = message(check_learned, code, stack)
    assert line.startswith(f"config.learned={code!r}")
    for part in parts:
        assert part in line


def test_learned():
    for code in LEARNABLE:
        check_learned(code, ("sca", code))


COLOR = {"channels": 3, "dataset_name": "cifar10"}


@pytest.mark.parametrize("code", PREDICTABLE)
def test_predicted(code):
    check_predicted(code, **COLOR)


@pytest.mark.parametrize("code", sorted(set(AUGMENTATIONS) - set(PREDICTABLE)))
def test_predicted_errors(code):
    line = message(check_predicted, code, **COLOR)
    assert line.startswith(f"config.learned={code!r} (")
    assert line.endswith("choose one of rot ron fli flv gra bri con sat hue.")


def test_predicted_unknown():
    assert "Did you mean 'rot'?" in message(check_predicted, "rott", **COLOR)


@pytest.mark.parametrize("code", ["gra", "sat", "hue"])
def test_predicted_channels(code):
    line = message(check_predicted, code, channels=1, dataset_name="mnist")
    assert line.startswith(f"config.learned={code!r}: {code} (")
    assert "those of mnist have 1; choose among rot ron fli flv bri con." in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.8, 0.2)),
        ("crop_area", (0.2, 1.2)),
        ("crop_area", (0.2,)),
        ("crop_ratio", (0.0, 1.0)),
        ("rotation_degrees", 0.0),
        ("rotation_degrees", 270.0),
        ("flip_probability", 1.5),
        ("grey_probability", -0.1),
        ("blur_probability", 2.0),
        ("blur_sigma", (2.0, 0.1)),
        ("jitter_probability", -1.0),
        ("jitter_strength", (0.4, 0.4, 0.4)),
        ("jitter_strength", (0.0, 0.4, 0.4, 0.1)),
        ("jitter_strength", (0.4, 1.4, 0.4, 0.1)),
        ("jitter_strength", (0.4, 0.4, 0.4, 0.6)),
        ("solarize_probability", 1.1),
        ("solarize_threshold", (0.5, 0.5)),
        ("solarize_addition", (-2.0, 0.1)),
    ],
)
def test_options_errors(field, value):
    line = message(Options, **{field: value})
    assert line.startswith(f"config.augmentation.{field}={value!r} must ")


def test_every_option_is_another_in_the_tests_above():
    for field in dataclasses.fields(Options):
        assert getattr(tiny.OTHER_OPTIONS, field.name) != field.default
