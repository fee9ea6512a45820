"""The augmentations against the reference's pixels and structure values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax import augmentations
from duet_jax.augmentations import AUGMENTATIONS, Options, make_stack
from duet_jax.augmentations import geometric as geo
from duet_jax.augmentations import photometric as pho
from golden_parts.arrays import load

# Ten times what float32 and float64 differ by in the reference.
AUGMENT_ATOL = 2e-5
AUGMENT_ATOL_ROTATION = 1e-4
AUGMENT_ATOL_STRUCTURE = 2e-6

# Tested with the data: the preprocessing of the images.
AUGMENT_ELSEWHERE = re.compile("pre_")
# Inputs, and what has no counterpart here: corners of a box divided by the view's side.
AUGMENT_INPUTS = re.compile(r"img_|center_\w+_param$|crop_\w+(?<!scale)_param$")
AUGMENT_HANDLED = re.compile(
    "rot_|ron_|crop|center_|resize_|fli_|flv_|gra_|blu_|jitter_|jit_zero|stack_|essl_"
    "|testview_|normalize_|colour_|hue_|brightness_|contrast_|saturation_"
)

AUGMENT_ARRAYS = load("augment")
AUGMENT_TAGS = sorted(
    name.removeprefix("stack_").removesuffix("_codes")
    for name in AUGMENT_ARRAYS
    if re.fullmatch(r"stack_\w+_codes", name)
)
AUGMENT_STRUCTURES = {  # code -> the reference's name of its parameter
    "rot": "RandomRotation",
    "ron": "RandomRotation90",
    "fli": "RandomHorizontalFlip",
    "flv": "RandomVerticalFlip",
    "gra": "RandomGrayscale",
    "blu": "RandomGaussianBlur",
}
AUGMENT_COMPONENTS = ("bri", "con", "sat", "hue")


def augment_matches(pattern):
    """Returns the groups of all names that fit a pattern."""
    found = [re.fullmatch(pattern, name) for name in sorted(AUGMENT_ARRAYS)]
    groups = [match.groups() for match in found if match]
    assert groups, pattern
    return groups


def augment_images(name):
    """Returns images by name, channels last; further leading axes are joined."""
    array = np.moveaxis(AUGMENT_ARRAYS[name], -3, -1)
    return jnp.asarray(array.reshape(-1, *array.shape[-3:]))


def augment_repeat(images, times):
    return jnp.tile(images, (times, 1, 1, 1))


def augment_box(boxes):
    left, top, width, height = boxes.reshape(-1, 4).T.astype(np.int32)
    return {"top": top, "left": left, "height": height, "width": width}


def augment_spread(mask, values, rest):
    """Returns the values at the places of the mask, and `rest` at the others."""
    result = np.full((len(mask), *values.shape[1:]), rest, np.float32)
    result[mask.astype(bool)] = values
    return result


def augment_stack(codes, images, image_size):
    return make_stack(
        tuple(codes),
        input_side=images.shape[1],
        image_size=image_size,
        channels=images.shape[3],
        options=Options(),
    )


def augment_only(code, images, image_size=None):
    """Returns the record and frame of the stack of one code."""
    ((record, frame),) = augment_stack(
        [code], images, image_size or images.shape[1]
    ).stages
    return record, frame


def augment_apply(record, images, params, frame):
    return jax.jit(record.apply, static_argnums=2)(images, params, frame)


def augment_close(ours, name, atol=AUGMENT_ATOL):
    np.testing.assert_allclose(ours, augment_images(name), rtol=0, atol=atol)


def augment_structure_close(ours, theirs):
    np.testing.assert_allclose(
        ours, np.ravel(theirs), rtol=0, atol=AUGMENT_ATOL_STRUCTURE
    )


def test_augment_every_array_is_compared():
    for name in AUGMENT_ARRAYS:
        assert any(
            pattern.match(name)
            for pattern in (AUGMENT_ELSEWHERE, AUGMENT_INPUTS, AUGMENT_HANDLED)
        ), name


@pytest.mark.parametrize(
    "kind", [k for (k,) in augment_matches(r"rot_((?:rgb|gray)\d+)")]
)
def test_augment_rotation(kind):
    images = augment_images(f"img_{kind}")
    degrees = AUGMENT_ARRAYS["rot_degrees"]
    repeated = augment_repeat(images, len(degrees))
    ours = jax.jit(geo.rotate)(repeated, np.repeat(degrees, len(images)))
    augment_close(ours, f"rot_{kind}", AUGMENT_ATOL_ROTATION)


@pytest.mark.parametrize("prefix", ["rot", "rot_mixed"])
def test_augment_rotation_structure(prefix):
    record, frame = augment_only("rot", augment_images("img_rgb32"))
    degrees = AUGMENT_ARRAYS[f"{prefix}_degrees"]
    ours = record.structure({"degrees": degrees}, frame)
    augment_structure_close(ours, AUGMENT_ARRAYS[f"{prefix}_param"])


def test_augment_rotation_by_an_angle_per_image():
    for (kind,) in augment_matches(r"rot_mixed_((?:rgb|gray)\d+)"):
        ours = jax.jit(geo.rotate)(
            augment_images(f"img_{kind}"), AUGMENT_ARRAYS["rot_mixed_degrees"]
        )
        augment_close(ours, f"rot_mixed_{kind}", AUGMENT_ATOL_ROTATION)


@pytest.mark.parametrize(
    "kind", [k for (k,) in augment_matches(r"ron_((?:rgb|gray)\d+)")]
)
def test_augment_quarter_turns(kind):
    images = augment_images(f"img_{kind}")
    turns = np.rint(AUGMENT_ARRAYS["ron_degrees"] / 90).astype(np.int32)
    record, frame = augment_only("ron", images)
    ours = augment_apply(
        record,
        augment_repeat(images, len(turns)),
        {"turns": np.repeat(turns, len(images))},
        frame,
    )
    # The reference interpolates; a quarter turn here only moves pixels.
    augment_close(ours, f"ron_{kind}", AUGMENT_ATOL_ROTATION)
    augment_structure_close(
        record.structure({"turns": jnp.asarray(turns)}, frame),
        AUGMENT_ARRAYS["ron_param"],
    )


@pytest.mark.parametrize(
    ("kind", "side"), augment_matches(r"crop_(\w+)_to(\d+)_boxes_xywh")
)
def test_augment_crop(kind, side):
    images, side = augment_images(f"img_{kind}"), int(side)
    name = f"crop_{kind}_to{side}"
    boxes = AUGMENT_ARRAYS[f"{name}_boxes_xywh"]
    record, frame = augment_only("sca", images, side)
    params = augment_box(boxes)
    ours = augment_apply(record, augment_repeat(images, len(boxes)), params, frame)
    augment_close(ours, name)

    structure = record.structure(params, frame)
    height, last = boxes[..., 3].ravel(), images.shape[1] - 1
    augment_structure_close(structure, 1 - (height - 1) / last)
    # The reference divides by the side of the result, we by that of the image.
    theirs = AUGMENT_ARRAYS[f"{name}_scale_param"].ravel()
    augment_structure_close(structure, 1 - (1 - theirs) * side / last)


@pytest.mark.parametrize(("kind", "side"), augment_matches(r"crop_(\w+)_full_to(\d+)"))
def test_augment_crop_of_the_whole_image(kind, side):
    images = augment_images(f"img_{kind}")
    record, frame = augment_only("sca", images, int(side))
    identity = record.identity(len(images), frame)
    augment_close(
        augment_apply(record, images, identity, frame),
        f"crop_{kind}_full_to{int(side)}",
    )
    augment_structure_close(record.structure(identity, frame), np.zeros(len(images)))


@pytest.mark.parametrize(
    "side", [s for (s,) in augment_matches(r"cropstats_(\d+)_hist_hw")]
)
def test_augment_crop_sampler(side):
    theirs = AUGMENT_ARRAYS[f"cropstats_{side}_hist_hw"]
    images, number = jnp.zeros((1, int(side), int(side), 3)), int(theirs.sum())
    record, frame = augment_only("sca", images)
    box = jax.jit(lambda key: record.draw(key, number, frame))(jax.random.key(0))
    height, width = np.asarray(box["height"]), np.asarray(box["width"])
    ours = np.zeros_like(theirs)
    np.add.at(ours, (height, width), 1)

    # Chi-square test that two samples of the same size have one distribution; the
    # sides that few boxes have are put together. Five standard deviations.
    common = ours + theirs >= 20
    pairs = [[*hist[common], hist[~common].sum()] for hist in (ours, theirs)]
    pairs = np.array([pair for pair in zip(*pairs, strict=True) if sum(pair)])
    statistic = np.sum((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs.sum(axis=1))
    freedom = len(pairs) - 1
    assert freedom > 200
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)

    mean, deviation, low, high = AUGMENT_ARRAYS[
        f"cropstats_{side}_scale_param_mean_std_min_max"
    ]
    reference_value = 1 - (height - 1) / 32
    error = deviation * np.sqrt(2 / number)
    assert abs(reference_value.mean() - mean) < 5 * error
    assert abs(reference_value.std() - deviation) < 5 * error
    assert (reference_value.min(), reference_value.max()) == (low, high)


@pytest.mark.parametrize(("kind", "side"), augment_matches(r"center_(\w+)_to(\d+)"))
def test_augment_centre_crop(kind, side):
    images = augment_images(f"img_{kind}")
    record, frame = augment_only("ccr", images, int(side))
    augment_close(
        augment_apply(record, images, {}, frame), f"center_{kind}_to{side}", 0
    )


@pytest.mark.parametrize(("kind", "side"), augment_matches(r"resize_(\w+)_to(\d+)"))
def test_augment_resize(kind, side):
    images = augment_images(f"img_{kind}")
    record, frame = augment_only("res", images, int(side))
    augment_close(augment_apply(record, images, {}, frame), f"resize_{kind}_to{side}")


@pytest.mark.parametrize(
    ("code", "leaf"), [("fli", "mirrored"), ("flv", "mirrored"), ("gra", "grey")]
)
def test_augment_on_or_off(code, leaf):
    images = augment_images("img_rgb32")
    record, frame = augment_only(code, images)
    params = {leaf: jnp.asarray(AUGMENT_ARRAYS[f"{code}_mask"] > 0)}
    augment_close(augment_apply(record, images, params, frame), f"{code}_rgb32")
    augment_structure_close(
        record.structure(params, frame), AUGMENT_ARRAYS[f"{code}_param"]
    )


def test_augment_grey_for_all():
    images = augment_images("img_rgb32")
    record, frame = augment_only("gra", images)
    params = {"grey": jnp.ones(len(images), bool)}
    augment_close(record.apply(images, params, frame), "gra_all_rgb32")


@pytest.mark.parametrize(
    "kind", [k for (k,) in augment_matches(r"blu_((?:rgb|gray)\d+)")]
)
def test_augment_blur(kind):
    sigma = AUGMENT_ARRAYS["blu_sigma"]
    augment_close(
        jax.jit(pho.blur)(augment_images(f"img_{kind}"), sigma), f"blu_{kind}"
    )


def test_augment_blur_of_some_images():
    images, mask = augment_images("img_rgb32"), AUGMENT_ARRAYS["blu_partial_mask"]
    record, frame = augment_only("blu", images)
    params = {"sigma": augment_spread(mask, AUGMENT_ARRAYS["blu_partial_sigma"], 0)}
    augment_close(augment_apply(record, images, params, frame), "blu_partial_rgb32")
    augment_structure_close(
        record.structure(params, frame), AUGMENT_ARRAYS["blu_partial_param"]
    )


@pytest.mark.parametrize(
    ("factors", "name", "function"),
    [
        ("colour_factors", "brightness_rgb32", pho.adjust_brightness),
        ("colour_factors", "contrast_rgb32", pho.adjust_contrast),
        ("colour_factors", "saturation_rgb32", pho.adjust_saturation),
        ("colour_factors", "brightness_gray32", pho.adjust_brightness),
        ("hue_factors", "hue_rgb32", pho.adjust_hue),
    ],
)
def test_augment_colours(factors, name, function):
    images, factors = (
        augment_images(f"img_{name[-6:].strip('_')}"),
        AUGMENT_ARRAYS[factors],
    )
    repeated = augment_repeat(images, len(factors))
    augment_close(jax.jit(function)(repeated, np.repeat(factors, len(images))), name)


def test_augment_contrast_of_grey_images():
    # The reference takes the mean over the batch, we over the image: the images are
    # handed over as one, and the results put side by side.
    images, factors = augment_images("img_gray32"), AUGMENT_ARRAYS["colour_factors"]
    one = images.reshape(1, -1, *images.shape[2:])
    ours = jax.jit(pho.adjust_contrast)(augment_repeat(one, len(factors)), factors)
    ours = ours.reshape(-1, *images.shape[1:])
    augment_close(ours, "contrast_gray32_batchmean")
    each = pho.adjust_contrast(images, np.repeat(factors[:1], len(images)))
    mean = images.mean((1, 2, 3), keepdims=True)
    expected = jnp.clip(factors[0] * images + (1 - factors[0]) * mean, 0, 1)
    np.testing.assert_allclose(each, expected, rtol=0, atol=1e-6)
    assert np.abs(each - ours[: len(images)]).max() > 50 * AUGMENT_ATOL


def test_augment_saturation_of_grey_images():
    # Not defined for one channel here; on three equal channels it is the identity too.
    images, factors = augment_images("img_gray32"), AUGMENT_ARRAYS["colour_factors"]
    rgb = jnp.repeat(augment_repeat(images, len(factors)), 3, axis=3)
    ours = pho.adjust_saturation(rgb, np.repeat(factors, len(images)))
    for channel in range(3):
        augment_close(ours[..., channel : channel + 1], "saturation_gray32")


def augment_jitter(mask, factors, order, codes=AUGMENT_COMPONENTS):
    """Returns params from the factors of the jittered images, in the usual order."""
    order = pho.JITTER_ORDERS.index(tuple(AUGMENT_COMPONENTS[i] for i in order))
    spread = augment_spread(mask, factors, np.array([1, 1, 1, 0]))
    by_code = dict(zip(AUGMENT_COMPONENTS, jnp.asarray(spread.T), strict=True))
    return {
        "jittered": jnp.asarray(mask > 0),
        "order": jnp.int32(order),
        **{code: by_code[code] for code in codes},
    }


def augment_jitter_structure_close(params, theirs, frame):
    for column, code in enumerate(AUGMENT_COMPONENTS):
        if code in params:
            ours = AUGMENTATIONS[code].structure(params, frame)
            augment_structure_close(ours, theirs[:, column])


def test_augment_jitter():
    images = augment_images("img_rgb32")
    record, frame = augment_only("jit", images)
    theirs = np.moveaxis(AUGMENT_ARRAYS["jitter_rgb32"], -3, -1)
    for row, order in enumerate(AUGMENT_ARRAYS["jitter_order"]):
        factors = AUGMENT_ARRAYS["jitter_factors_bcsh"][row]
        params = augment_jitter(np.ones(len(images)), factors, order)
        ours = augment_apply(record, images, params, frame)
        np.testing.assert_allclose(ours, theirs[row], rtol=0, atol=AUGMENT_ATOL)
        augment_jitter_structure_close(
            params, AUGMENT_ARRAYS["jitter_param"][row], frame
        )


def test_augment_jitter_of_some_images():
    images, mask = augment_images("img_rgb32"), AUGMENT_ARRAYS["jitter_partial_mask"]
    record, frame = augment_only("jit", images)
    params = augment_jitter(
        mask,
        AUGMENT_ARRAYS["jitter_partial_factors_bcsh"],
        AUGMENT_ARRAYS["jitter_partial_order"],
    )
    augment_close(augment_apply(record, images, params, frame), "jitter_partial_rgb32")
    augment_jitter_structure_close(
        params, AUGMENT_ARRAYS["jitter_partial_param"], frame
    )


def test_augment_jitter_without_strength():
    # The code `jit` of the reference has no strength: there and back through HSV.
    images = augment_images("img_rgb32")
    record, frame = augment_only("jit", images)
    identity = record.identity(len(images), frame)
    augment_close(
        augment_apply(record, images, identity, frame), "jit_zero_strength_rgb32"
    )
    augment_close(
        jax.jit(pho.adjust_hue)(images, jnp.zeros(len(images))),
        "jit_zero_strength_rgb32",
    )


def test_augment_normalize():
    ours = augmentations.normalize(augment_images("img_rgb32"))
    augment_close(ours, "normalize_rgb32", 1e-7)


def test_augment_plain_view():
    images = augment_images("img_rgb36")
    side = AUGMENT_ARRAYS["testview_rgb36"].shape[-1]
    codes = ["sca", *(c for c in AUGMENT_STRUCTURES if c != "ron"), *AUGMENT_COMPONENTS]
    stack = augment_stack(codes, images, side)
    view = stack.apply(images, None)
    structure = stack.structure(stack.identity(len(images)))
    augment_close(augmentations.normalize(view), "testview_rgb36", 1e-7)
    for code, name in AUGMENT_STRUCTURES.items():
        if code in codes:
            augment_structure_close(
                structure[code], AUGMENT_ARRAYS[f"testview_param_{name}"]
            )
    for column, code in enumerate(AUGMENT_COMPONENTS):
        theirs = AUGMENT_ARRAYS["testview_param_ColorJitter"][:, column]
        augment_structure_close(structure[code], theirs)
    # The reference has the value of the central cut, 1 - 31/32; the identity has 0.
    augment_structure_close(
        1 - AUGMENT_ARRAYS["testview_param_RandomResizedCrop"][:, 3],
        np.full(len(images), 1 / side),
    )
    augment_structure_close(structure["sca"], np.zeros(len(images)))


def augment_stack_input(tag):
    kind = f"img_{'gray' if 'gray' in tag else 'rgb'}{32 if tag.endswith('32') else 36}"
    number = len(AUGMENT_ARRAYS[f"stack_{tag}_out"])
    exact = f"{kind}_x{number}"
    return augment_images(exact if exact in AUGMENT_ARRAYS else kind)


def augment_stack_params(tag, codes):
    """Returns our parameters, by stage, from the raw values of a stack."""

    def raw(name):
        return AUGMENT_ARRAYS[f"stack_{tag}_raw_{name}"]

    params = {}
    for code in codes:
        if code == "sca":
            params[code] = augment_box(raw("boxes_xywh"))
        elif code == "rot":
            params[code] = {"degrees": raw("degrees")}
        elif code == "ron":
            turns = np.rint(raw("degrees90") / 90).astype(np.int32)
            params[code] = {"turns": jnp.asarray(turns)}
        elif code in ("fli", "flv"):
            mask = raw(f"{AUGMENT_STRUCTURES[code]}_mask")
            params[code] = {"mirrored": jnp.asarray(mask > 0)}
        elif code == "gra":
            params[code] = {"grey": jnp.asarray(raw("RandomGrayscale_mask") > 0)}
        elif code == "blu":
            sigma = augment_spread(raw("blur_mask"), raw("blur_sigma"), 0)
            params[code] = {"sigma": sigma}
        else:
            params["jitter"] = augment_jitter(
                raw("jitter_mask"),
                raw("jitter_factors_bcsh"),
                raw("jitter_order"),
                [c for c in AUGMENT_COMPONENTS if c in codes],
            )
    return params


@pytest.mark.parametrize("tag", AUGMENT_TAGS)
def test_augment_stack(tag):
    images = augment_stack_input(tag)
    codes = AUGMENT_ARRAYS[f"stack_{tag}_codes"].tolist()
    side = int(AUGMENT_ARRAYS[f"stack_{tag}_image_size"])
    half = tag.startswith("essl")
    stack = augment_stack(codes, images, 2 * side if half else side)
    stack = stack.half_size() if half else stack
    params = augment_stack_params(tag, codes)
    ours = augmentations.normalize(jax.jit(stack.apply)(images, params))
    augment_close(ours, f"stack_{tag}_out", AUGMENT_ATOL_ROTATION)

    structure = stack.structure(params)
    assert sorted(structure) == sorted(codes)
    prefix = f"stack_{tag}_param"
    for code in set(codes) & set(AUGMENT_STRUCTURES):
        theirs = AUGMENT_ARRAYS[f"{prefix}_{AUGMENT_STRUCTURES[code]}"]
        augment_structure_close(structure[code], theirs)
    if "sca" in codes:
        theirs = 1 - AUGMENT_ARRAYS[f"{prefix}_RandomResizedCrop"][:, 3]
        entering = next(f.side for r, f in stack.stages if r.code == "sca")
        augment_structure_close(
            structure["sca"], 1 - (1 - theirs) * side / (entering - 1)
        )
    for column, code in enumerate(AUGMENT_COMPONENTS):
        if code in codes:
            # Where only one component is listed, the reference's other columns are
            # 0/0 and mean nothing; those codes are not in the stack.
            theirs = AUGMENT_ARRAYS[f"{prefix}_ColorJitter"][:, column]
            augment_structure_close(structure[code], theirs)


@pytest.mark.parametrize("code", [c for (c,) in augment_matches(r"essl_(\w+)_images")])
def test_augment_prediction(code):
    images, prediction = augment_images("essl_input"), AUGMENTATIONS[code].prediction
    labels = AUGMENT_ARRAYS[f"essl_{code}_labels"]
    if prediction.classification:
        params = prediction.draw(jax.random.key(0), len(images))
    elif code == "rot":
        params = {"degrees": AUGMENT_ARRAYS["essl_rot_degrees"]}
    else:
        params = {code: labels.ravel()}

    def member_by_member(rows):  # the reference's order; ours is image by image
        split = rows.reshape(len(images), -1, *rows.shape[1:])
        return split.swapaxes(0, 1).reshape(rows.shape)

    ours = member_by_member(jax.jit(prediction.transform)(images, params))
    augment_close(ours, f"essl_{code}_images", AUGMENT_ATOL_ROTATION)
    targets = member_by_member(prediction.targets(params))
    np.testing.assert_allclose(targets, labels.ravel(), rtol=0, atol=1e-6)
