"""Knobs of random images, whose every frame and number is another one."""

import numpy as np

from duet_jax.figures import Knob, make_sheet

IMAGES, STEPS, BINS = 3, 8, 4
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


def make_knob(predictions=("steer", "shift"), topology="circle", **changes) -> Knob:
    """One around a circle of degrees, or along a line; 12 pixels in 3 colors."""
    rng = np.random.default_rng(1)
    shape = (IMAGES, STEPS)
    whole = np.linspace(0, 360, STEPS, endpoint=False)
    parameters = (whole + 180) % 360 - 180
    if topology == "line":
        parameters = np.linspace(1, 0.3, STEPS)  # they may fall
    knob = Knob(
        code="rot",
        summary="rotation by any angle",
        unit="degrees" if topology == "circle" else "share",
        topology=topology,
        parameters=parameters,
        plain=0 if topology == "circle" else 2,
        captions=["cat", "", "a dog with a very long name"],
        side=12,
        true=make_sheet(frames()),
        made={n: make_sheet(frames(k)) for k, n in enumerate(predictions, 1)},
        read={name: rng.uniform(-180, 180, shape).round(1) for name in predictions},
        error={name: rng.uniform(0, 1, shape).round(3) for name in predictions},
        marginals={
            name: rng.dirichlet(np.ones(BINS), shape).round(4) for name in predictions
        },
        targets=rng.dirichlet(np.ones(BINS), STEPS).round(4),
    )
    return knob._replace(**changes)
