"""Table 2 of the paper: SimCLR's full stack, with and without rotation.

    python main.py --config=configs/table2.py:cifar10-duet-rot
    python sweep.py --experiment=configs/table2.py --rows='cifar10-*' --seeds=3

The stack is sca fli jit gra blu; the jitter is written as its four parts, which can be
learned one by one. Rows, for <data> in cifar10, cifar100:

    <data>-simclr            the stack as it is
    <data>-simclr-<turn>     with a rotation in it
    <data>-<method>-<code>   a code of the stack is learned (duet) or predicted (essl)
    <data>-<method>-<code>-with-rot   the same, with a rotation that is neither
    <data>-<method>-<turn>   with a rotation, which is learned or predicted

where <turn> is rot (any angle) or ron (quarter turns). ESSL predicts neither blur nor
scale.

Neither this project nor the reference's README has the paper's numbers; none are quoted
here. Lambda is the default of the reference's program, 10, at full scale: its 1000 is
for a crop and a rotation alone. At the smaller scales it is 100, which is our choice.
"""

from configs import _scales

STACK = ("sca", "fli", "bri", "con", "sat", "hue", "gra", "blu")
TURNS = ("rot", "ron")
DATA = ("cifar10", "cifar100")
LEARNED = {"duet": STACK, "essl": ("fli", "bri", "con", "sat", "hue", "gra")}

COMMON = {"dataset.center_crop": True}


def _row(data, method, learned="", turn=""):
    row = {"dataset.name": data, "method": method, "augmentation.stack": STACK}
    if learned:
        row["learned"] = learned
    if turn:
        row["augmentation.stack"] = ("sca", turn, *STACK[1:])
    return row


def _rows(data):
    yield f"{data}-simclr", _row(data, "simclr")
    for turn in TURNS:
        yield f"{data}-simclr-{turn}", _row(data, "simclr", turn, turn)
    for method, codes in LEARNED.items():
        for code in codes:
            yield f"{data}-{method}-{code}", _row(data, method, code)
            with_turn = _row(data, method, code, "rot")
            yield f"{data}-{method}-{code}-with-rot", with_turn
        for turn in TURNS:
            yield f"{data}-{method}-{turn}", _row(data, method, turn, turn)


ROWS = {name: row for data in DATA for name, row in _rows(data)}


def get_config(row):
    return _scales.build(ROWS, COMMON, row)
