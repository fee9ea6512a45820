"""The programs in `examples/` run, shortened."""

import numpy as np

from examples import duet_digits


def test_duet_digits(capsys):
    error = duet_digits.main(steps=2)
    assert np.isfinite(error)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step    0  loss ")
    assert last.startswith(f"the angle is read with {error:.1f} degrees of error")
