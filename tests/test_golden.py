"""Every file of reference arrays, compared with what this project computes.

The files are those of the directory in the environment variable DUET_GOLDEN_DIR, or of
`tests/golden`; its README says what each array is and what differences to expect. The
comparisons are in `golden_parts`, one module a subject.
"""

import re

import pytest
from golden_parts import arrays

pytest.register_assert_rewrite(
    *(
        f"golden_parts.{subject}"
        for subject in ("augmentations", "losses", "models", "preprocessing", "steps")
    )
)

from golden_parts.augmentations import *  # noqa: E402, F403
from golden_parts.losses import *  # noqa: E402, F403
from golden_parts.models import *  # noqa: E402, F403
from golden_parts.preprocessing import *  # noqa: E402, F403
from golden_parts.steps import *  # noqa: E402, F403

COMPARED = {
    "augment": ("augmentations", "preprocessing"),
    "encoder": ("models",),
    "essl_loss": ("losses",),
    "full_width": ("models",),
    "group_loss": ("losses",),
    "heads": ("models",),
    "nt_xent": ("losses",),
    "optim": ("losses",),
    "step": ("steps",),
}


def test_every_file_is_compared():
    names = {path.stem for path in arrays.DIRECTORY.glob("*.npz")}
    assert names == set(COMPARED)
    for name, subjects in COMPARED.items():
        for subject in subjects:
            text = (arrays.HERE / f"{subject}.py").read_text()
            assert re.search(rf'load\("{name}"\)', text), (name, subject)
