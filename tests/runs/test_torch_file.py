"""Files of `torch.save`: read as they are, and never run."""

import collections
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch_files

from duet_jax.errors import UsageError
from duet_jax.runs import torch_file

RNG = np.random.default_rng(0)


def test_tensors_of_every_kind(tmp_path):
    wide = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    content = collections.OrderedDict(
        plain=wide,
        turned=wide.transpose(2, 0, 1),
        half=wide.astype(np.float16),
        double=wide.astype(np.float64),
        count=np.array(7),
        empty=np.zeros((0, 3), np.float32),
        flags=np.array([True, False]),
    )
    torch_files.save(tmp_path / "a.pt", {"state_dict": content, "epoch": 3})
    found = torch_file.read(tmp_path / "a.pt")
    assert found["epoch"] == 3
    assert found["state_dict"].keys() == content.keys()
    for name, array in content.items():
        np.testing.assert_array_equal(found["state_dict"][name], array)
        assert found["state_dict"][name].dtype == array.dtype


def test_bfloat16_is_widened(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x3E00], np.uint16)
    torch_files.save(
        tmp_path / "a.pt", {"x": torch_files.Stored(bits, "BFloat16Storage")}
    )
    found = torch_file.read(tmp_path / "a.pt")["x"]
    np.testing.assert_array_equal(found, np.float32([1.0, -2.0, 0.125]))


def test_a_part_of_a_storage(tmp_path):
    """As views of one tensor are saved."""
    values = np.arange(12, dtype=np.float32)
    part = torch_files.Stored(values, form=(2, (2, 3), (5, 1)))
    torch_files.save(tmp_path / "a.pt", {"x": part})
    found = torch_file.read(tmp_path / "a.pt")["x"]
    np.testing.assert_array_equal(found, [[2, 3, 4], [7, 8, 9]])


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_not_run(tmp_path):
    made = tmp_path / "made"
    torch_files.save(tmp_path / "a.pt", {"x": Harmful(made)})
    with pytest.raises(UsageError, match=r"a\.pt names posix\.mkdir, and only tensors"):
        torch_file.read(tmp_path / "a.pt")
    assert not made.exists()
    pickle.loads(pickle.dumps(Harmful(made)))  # it would have been
    assert made.exists()


def drop(name):
    return lambda files: files.pop(name)


def put(name, content):
    return lambda files: files.update({name: content})


X = np.arange(6, dtype=np.float32)
FAULTS = {
    "class": ({"x": pathlib.PurePosixPath("a")}, None, r"names pathlib.*PurePosixPath"),
    "builtin": ({"x": slice(1)}, None, r"names \w+\.slice"),
    "kind": (
        {"x": torch_files.Stored(X, "ComplexFloatStorage")},
        None,
        r"names torch\.ComplexFloatStorage",
    ),
    "beyond": ({"x": torch_files.Stored(X, form=(1, (6,), (1,)))}, None, "reaches bey"),
    "before": ({"x": torch_files.Stored(X, form=(-1, (2,), (1,)))}, None, "reaches be"),
    "back": ({"x": torch_files.Stored(X, form=(5, (2,), (-1,)))}, None, "reaches beyo"),
    "large": ({"x": torch_files.Stored(X, form=(0, (9**9,), (0,)))}, None, "reaches b"),
    "short": ({"x": X}, put("data/0", b"1234"), "data/0 is too short"),
    "missing": ({"x": X}, drop("data/0"), "is damaged .*data/0"),
    "no pickle": ({"x": X}, drop("data.pkl"), "has no data.pkl"),
    "torn pickle": ({"x": X}, put("data.pkl", b"\x80\x02}"), r"is damaged \(EOFError"),
    "order": ({"x": X}, put("byteorder", b"big"), "another order of bytes"),
    "no dict": ([1, 2], None, "holds a list; save a state dict"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refusals(tmp_path, fault):
    content, edit, message = FAULTS[fault]
    path = tmp_path / "weights.pth"
    torch_files.save(path, content, **({"edit": edit} if edit else {}))
    with pytest.raises(UsageError, match=message) as refused:
        torch_file.read(path)
    assert str(refused.value).startswith(f"{path} ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"x": 1}, 2)])
def test_what_is_no_archive(tmp_path, content):
    """Such as what PyTorch wrote before 1.6."""
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.pt is no file of torch\.save, or of PyT"):
        torch_file.read(path)


def test_a_torn_archive(tmp_path):
    path = tmp_path / "a.pt"
    torch_files.save(path, {"x": RNG.standard_normal(1000).astype(np.float32)})
    whole = path.read_bytes()
    for changed in (whole[: len(whole) // 2], whole.replace(b"PK", b"PQ", 1)):
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=r"is no file of torch|is damaged"):
            torch_file.read(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # in the values, which have a checksum
    path.write_bytes(flipped)
    with pytest.raises(UsageError, match=r"is damaged \(BadZipFile: Bad CRC|Bad CRC"):
        torch_file.read(path)


def test_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(2, 3)
    content = {"a": tensor.T, "b": torch.nn.Parameter(tensor), "n": torch.tensor(3)}
    torch.save(content, tmp_path / "a.pt")
    found = torch_file.read(tmp_path / "a.pt")
    for name, each in content.items():
        np.testing.assert_array_equal(found[name], each.detach().numpy())
