"""Knobs of random images, whose every frame and number is another one."""

import numpy as np

from duet_jax.figures import Dial, Knob, make_sheet

IMAGES, STEPS, BINS = 3, 8, 4
SHORT = 5  # steps of the second of two dials
EVIL = (
    """</script><script>window.hit = 1</script>"'<img src=x onerror="window.hit=1">"""
)


def frames(seed=0, images=IMAGES, steps=STEPS, side=12, channels=3):
    shape = (images, steps, side, side, channels)
    levels = np.random.default_rng(seed).integers(0, 256, shape)
    return (levels / 255 - 0.5).astype(np.float32)


def natural(seed=0, images=12, steps=24, side=32, channels=3):
    """Noise with about the spectrum of photographs."""
    rng = np.random.default_rng(seed)
    rates = np.fft.fftfreq(side)
    size = np.hypot(*np.meshgrid(rates, rates))[:, :, None]
    weight = np.maximum(size, 1 / side) ** -1.3
    white = rng.normal(size=(images, steps, side, side, channels))
    white += 4 * rng.normal(size=(images, steps, side, side, 1))  # gray for the most
    pink = np.fft.ifft2(weight * np.fft.fft2(white, axes=(2, 3)), axes=(2, 3)).real
    return np.clip(pink / pink.std() / 4, -0.5, 0.5).astype(np.float32)


def make_dial(predictions, topology="circle", frames=STEPS, steps=STEPS, seed=1):
    """One around a circle of degrees, or along a line of shares that fall."""
    rng = np.random.default_rng(seed)
    shape = (IMAGES, frames)
    whole = np.linspace(0, 360, steps, endpoint=False)
    parameters = (whole + 180) % 360 - 180
    bins = BINS
    if topology == "line":
        parameters = np.linspace(1, 0.3, steps).round(4)  # they may fall
        bins = BINS if steps == STEPS else BINS - 1
    return Dial(
        code="rot" if topology == "circle" else "sca",
        summary="rotation by any angle" if topology == "circle" else "random crop",
        unit="degrees" if topology == "circle" else "share",
        topology=topology,
        parameters=parameters,
        plain=0 if topology == "circle" else 2,
        read={name: rng.uniform(-180, 180, shape).round(1) for name in predictions},
        marginals={
            name: rng.dirichlet(np.ones(bins), shape).round(4) for name in predictions
        },
        targets=rng.dirichlet(np.ones(bins), steps).round(4),
    )


def make_knob(predictions=("steer", "shift"), topology="circle", **changes) -> Knob:
    """One dial; 12 pixels in 3 colors. Changes are of the knob or of the dial."""
    dial = make_dial(predictions, topology)
    of_dial = {name: changes.pop(name) for name in Dial._fields if name in changes}
    return _make(predictions, [dial._replace(**of_dial)], STEPS)._replace(**changes)


def make_two(predictions=("steer", "shift"), **changes) -> Knob:
    """A circle of 8 steps and a line of 5, of which the line changes first."""
    frames = STEPS * SHORT
    dials = [
        make_dial(predictions, "circle", frames),
        make_dial(predictions, "line", frames, SHORT, 2),
    ]
    return _make(predictions, dials, frames)._replace(**changes)


def _make(predictions, dials, steps) -> Knob:
    rng = np.random.default_rng(3)
    return Knob(
        dials=dials,
        captions=["cat", "", "a dog with a very long name"],
        side=12,
        true=make_sheet(frames(steps=steps)),
        made={
            n: make_sheet(frames(k, steps=steps)) for k, n in enumerate(predictions, 1)
        },
        error={
            name: rng.uniform(0, 1, (IMAGES, steps)).round(3) for name in predictions
        },
    )
