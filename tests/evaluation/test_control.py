"""Control of encoders whose answers are known."""

import dataclasses

import numpy as np
import pytest

from duet_jax.augmentations import Options, make_stack, measuring_stack
from duet_jax.evaluation import control
from duet_jax.evaluation.codes import Code
from duet_jax.methods.groups import Group
from duet_jax.metrics import equivariance as measures
from duet_jax.metrics.knobs import KNOBS

SIDE, BINS = 24, 8
RADII = np.linspace(1.5, 11, 12)
KAPPA = 1.0  # of the marginal
GAIN = 1 / 0.3  # the height of the first wave times this is KAPPA
# Bin g stands for a rotation by these degrees.
ANGLES = 2 * np.pi * (measures.bin_centers(BINS) - 0.5)


def sampled(views: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Values of gray views on rings, [n, angles, radii]; bilinear."""
    middle = (SIDE - 1) / 2
    x = middle + RADII[None, :] * np.cos(angles)[:, None]
    y = middle - RADII[None, :] * np.sin(angles)[:, None]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = x - left, y - top
    images = np.pad(views[..., 0], ((0, 0), (0, 1), (0, 1)))
    corners = [
        (1 - down) * (1 - right) * images[:, top, left],
        (1 - down) * right * images[:, top, left + 1],
        down * (1 - right) * images[:, top + 1, left],
        down * right * images[:, top + 1, left + 1],
    ]
    return sum(corners)


def drawn(rings: np.ndarray) -> np.ndarray:
    """The views that have these values on the rings, [n, bins, radii]."""
    place = np.arange(SIDE) - (SIDE - 1) / 2
    radius = np.hypot(place[:, None], place[None, :])
    angle = np.arctan2(-place[:, None], place[None, :])
    waves = np.fft.rfft(rings, axis=1) / BINS
    image = np.zeros((len(rings), SIDE, SIDE))
    at = np.clip(np.searchsorted(RADII, radius) - 1, 0, len(RADII) - 2)
    share = np.clip((radius - RADII[at]) / (RADII[at + 1] - RADII[at]), 0, 1)
    for frequency in range(BINS // 2):  # without Nyquist's
        height = waves[:, frequency] * (1 if frequency == 0 else 2)
        height = (1 - share) * height[:, at] + share * height[:, at + 1]
        turned = np.exp(1j * frequency * (angle - ANGLES[0]))
        image += np.real(height * turned[None])
    return np.float32(image[..., None])


def images(count: int, seed: int) -> np.ndarray:
    """Smooth images: the same first wave, which tells the angle, and others."""
    rng = np.random.default_rng(seed)
    rings = 0.3 * np.cos(ANGLES)[None, :, None] * np.ones((count, 1, len(RADII)))
    for frequency in (0, 2, 3):
        # Their mean over the rings is zero: the structure does not see them.
        profile = np.cos(np.pi * (np.arange(len(RADII)) + 0.5) / 6)
        height = rng.normal(0, 0.06, (count, 1, 1)) * profile
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        rings = rings + height * np.cos(frequency * ANGLES[None, :, None] - phase)
    return np.uint8(np.round(255 * np.clip(drawn(rings) + 0.5, 0, 1)))


def structure(matrix: np.ndarray) -> np.ndarray:
    logits = matrix.mean(axis=2)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def perfect(views: np.ndarray) -> dict[str, np.ndarray]:
    matrix = GAIN * sampled(views, ANGLES)
    full = np.float32(matrix.reshape(len(views), -1))
    return {"full": full, "structure": structure(matrix)}


def invariant(views: np.ndarray) -> dict[str, np.ndarray]:
    rings = sampled(views, 2 * np.pi * np.arange(64) / 64).mean(axis=1, keepdims=True)
    matrix = GAIN * np.repeat(rings, BINS, axis=1)
    full = np.float32(matrix.reshape(len(views), -1))
    return {"full": full, "structure": structure(matrix)}


def decode(features: np.ndarray) -> np.ndarray:
    return drawn(features.reshape(len(features), BINS, -1) / GAIN)


GROUP = Group("rot", BINS, "von_mises", KAPPA)


def code(name: str, **options) -> Code:
    stack = make_stack(
        (), input_side=SIDE, image_size=SIDE, channels=1, options=Options(**options)
    )
    stack = measuring_stack((name,), stack)
    return Code(name, stack, *stack.stages[0])


def measured(encode) -> control.Control:
    subject = control.Subject(encode, decode, {"rot": GROUP})
    return control_of("rot", subject, images(80, 0), images(20, 1), shown=[3, 5])


def control_of(name, subject, *splits, **options) -> control.Control:
    alone = code(name)
    return control.measure([alone], alone.stack, subject, *splits, **options)


@pytest.fixture(scope="module")
def of_perfect() -> control.Control:
    return measured(perfect)


@pytest.fixture(scope="module")
def of_invariant() -> control.Control:
    return measured(invariant)


def degrees(found: control.Control, name: str, reading: str) -> float:
    read = found.outcomes[name].read["rot"][reading]
    errors = measures.errors(found.values["rot"][:, None], read, circular=True)
    return 360 * np.abs(errors).mean()


def mse(found: control.Control, name: str) -> float:
    return found.outcomes[name].mse.mean()


def test_perfect_bins_are_controlled_up_to_interpolation(of_perfect):
    interpolation = mse(of_perfect, control.ORACLE)
    assert interpolation < 5e-4
    assert mse(of_perfect, control.SHIFTED) < 1.5 * interpolation + 1e-5
    assert mse(of_perfect, control.UNCHANGED) > 50 * interpolation
    assert mse(of_perfect, control.ANOTHER) > 5 * interpolation


@pytest.mark.parametrize("reading", ["regression", "structure"])
@pytest.mark.parametrize("knob", [*KNOBS, control.TARGET, control.REAL])
def test_the_angle_of_perfect_bins_is_right_to_a_degree(of_perfect, knob, reading):
    assert degrees(of_perfect, knob, reading) < 1


def test_steering_turns_what_the_structure_sees(of_perfect):
    """It turns the first wave and leaves the others, which a shift turns too."""
    left = mse(of_perfect, control.STEERED)
    assert left < 0.2 * mse(of_perfect, control.UNCHANGED)
    assert left > 3 * mse(of_perfect, control.SHIFTED)
    assert 0.8 < of_perfect.steerable < 1
    for other in (control.TARGET, control.TRUE):
        assert mse(of_perfect, other) == pytest.approx(left, rel=0.1)


def test_an_invariant_encoder_is_not_controlled(of_invariant):
    for knob in (control.SHIFTED, control.STEERED, "linear map", control.ORACLE):
        assert degrees(of_invariant, knob, "regression") == pytest.approx(90, abs=5)
        assert mse(of_invariant, knob) == pytest.approx(
            mse(of_invariant, control.UNCHANGED), rel=0.02
        )


def test_the_untouched_image_reads_as_untouched(of_perfect):
    read = of_perfect.outcomes[control.UNCHANGED].read["rot"]["regression"]
    np.testing.assert_allclose(read, 0.5, atol=0.02)
    assert degrees(of_perfect, control.UNCHANGED, "regression") == pytest.approx(90, 1)


def test_what_is_shown(of_perfect):
    found = of_perfect.outcomes[control.SHIFTED]
    assert found.shown.shape == of_perfect.shown.shape == (24, 2, SIDE, SIDE, 1)
    assert found.marginals["rot"].shape == (24, 2, BINS)
    inside = control._mask([code("rot")], SIDE)
    apart = np.abs(found.shown - of_perfect.shown)[:, :, inside]
    assert apart.mean() < 0.01
    # Counterclockwise: what was on the right is on top after a quarter turn.
    right, top = of_perfect.shown[0, 0, 12, 20], of_perfect.shown[6, 0, 3, 12]
    assert right > 0.1
    assert top > 0.1
    peak = measures.bin_centers(BINS)[found.marginals["rot"].argmax(axis=2)]
    errors = measures.errors(of_perfect.values["rot"][:, None], peak, circular=True)
    assert np.abs(errors).max() < 0.1


def test_predictions_without_a_structure():
    subject = control.Subject(perfect, decode, {})
    found = control_of("rot", subject, images(80, 0), images(5, 1))
    assert control.STEERED not in found.outcomes
    assert not {control.TARGET, control.TRUE} & {*found.outcomes}
    assert control.SHIFTED in found.outcomes  # a control, at as many bins
    assert {*found.outcomes["oracle"].read["rot"]} == {"regression"}
    assert np.isnan(found.steerable)
    line = control_of("bri", subject, images(40, 0), images(5, 1))
    assert control.SHIFTED not in line.outcomes
    assert mse(line, "linear map") < mse(line, control.UNCHANGED) / 5


def test_parameters_are_those_that_are_drawn():
    full = control.parameters(code("rot"))
    np.testing.assert_allclose(full, (0.5 + np.arange(24) / 24) % 1)
    part = code("rot", rotation_degrees=45.0).parameter(
        control.parameters(code("rot", rotation_degrees=45.0))
    )
    np.testing.assert_allclose(part, [0, 15, 30, 45, -45, -30, -15], atol=1e-4)
    np.testing.assert_allclose(control.parameters(code("fli")), [0.25, 0.75])
    low, *_, high = code("sca").parameter(control.parameters(code("sca")))
    assert (low, high) == pytest.approx((1, 0.42), abs=0.06)


def test_only_what_stays_inside_counts():
    views = np.zeros((2, SIDE, SIDE, 1), np.float32)
    corners = views.copy()
    corners[:, :2, :2] = 0.5
    subject = control.Subject(perfect, decode, {})

    def error(name):
        features = perfect(views)["full"]
        asker = control._Asker([code(name)], subject, {}, features, [])
        return asker.outcome(views, corners).mse

    assert not error("rot").any()
    assert error("bri").all()


# --- two codes together ---------------------------------------------------------------

BRIGHT = Group("bri", BINS, "gaussian", 0.2, place=1, of=2)
TURN = dataclasses.replace(GROUP, place=0, of=2)


def perfect_both(views: np.ndarray) -> dict[str, np.ndarray]:
    """The rings of a picture, and beside them a group whose mean says how bright."""
    # Of the rings: a rotation leaves the corners black.
    bright = sampled(views, ANGLES).mean(axis=(1, 2)) + 0.5
    rings = perfect((views + 0.5) / bright[:, None, None, None] * 0.5 - 0.5)["full"]
    ramp = np.linspace(-1, 1, BINS)
    logits = 20 * (bright - 0.5)[:, None] * ramp[None, :]
    block = np.repeat(logits, len(RADII), axis=1)
    full = np.float32(np.concatenate([rings, block], axis=1))
    found = {"full": full}
    for group in (TURN, BRIGHT):
        found[group.name] = structure(np.asarray(group.matrix(full)))
    return found


def decode_both(features: np.ndarray) -> np.ndarray:
    half = features.shape[1] // 2
    logits = features[:, half:].reshape(len(features), BINS, -1).mean(axis=2)
    ramp = np.linspace(-1, 1, BINS)
    bright = 0.5 + logits @ ramp / (ramp @ ramp) / 20
    return (decode(features[:, :half]) + 0.5) * bright[:, None, None, None] / 0.5 - 0.5


@pytest.fixture(scope="module")
def of_both() -> control.Control:
    plain = make_stack(
        (), input_side=SIDE, image_size=SIDE, channels=1, options=Options()
    )
    subject = control.Subject(perfect_both, decode_both, {"rot": TURN, "bri": BRIGHT})
    return control.measure(
        [code("rot"), code("bri")],
        measuring_stack(("rot", "bri"), plain),
        subject,
        images(60, 0),
        images(10, 1),
        shown=[2],
        steps=6,
    )


def test_every_combination_is_asked_for(of_both):
    assert {name: len(x) for name, x in of_both.steps.items()} == {"rot": 6, "bri": 6}
    turns, lights = (of_both.values[name].reshape(6, 6) for name in ("rot", "bri"))
    np.testing.assert_array_equal(turns.T, np.tile(of_both.steps["rot"], (6, 1)))
    np.testing.assert_array_equal(lights, np.tile(of_both.steps["bri"], (6, 1)))
    assert of_both.shown.shape == (36, 1, SIDE, SIDE, 1)
    # The true images are turned by one and brightened by the other.
    bright = sampled(of_both.shown[:, 0], ANGLES).mean(axis=(1, 2)).reshape(6, 6)
    assert (np.diff(bright, axis=1) > 0.02).all()
    assert np.ptp(bright, axis=0).max() < 0.05


def test_both_codes_are_controlled_at_once(of_both):
    """Steered each in its own group, no image with both was ever seen."""
    oracle, left = mse(of_both, control.ORACLE), mse(of_both, control.UNCHANGED)
    assert mse(of_both, control.STEERED) < 0.4 * left
    assert mse(of_both, "linear map") < 0.4 * left
    assert oracle < 0.1 * left
    assert control.SHIFTED not in of_both.outcomes  # brightness is no circle
    assert 0.5 < of_both.steerable <= 1


@pytest.mark.parametrize("name", ["rot", "bri"])
def test_each_code_is_read_off_what_both_changed(of_both, name):
    about, wanted = code(name), of_both.values[name][:, None]
    chance = about.distance(wanted, wanted.mean()).mean()
    for knob in (control.STEERED, control.REAL):
        read = of_both.outcomes[knob].read[name]["regression"]
        assert about.distance(wanted, read).mean() < 0.3 * chance


def test_steering_one_group_leaves_the_other(of_both):
    marginals = of_both.outcomes[control.STEERED].marginals
    assert {name: each.shape for name, each in marginals.items()} == {
        "rot": (36, 1, BINS),
        "bri": (36, 1, BINS),
    }
    rot = marginals["rot"].reshape(6, 6, BINS)
    assert np.abs(rot - rot[:, :1]).max() < 0.1 < np.abs(rot - rot[:1]).max()
