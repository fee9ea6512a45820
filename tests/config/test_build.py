"""What a configuration describes, built."""

import dataclasses

import ml_collections
import pytest
import tiny

from duet_jax.config import build
from duet_jax.errors import UsageError
from duet_jax.methods import METHODS, Method
from duet_jax.types import DatasetFacts

DATA = DatasetFacts("tiny", 16, 1, ("0", "1", "2"), 0, 0)


@dataclasses.dataclass(frozen=True)
class Weighted(Method):
    weight: float

    def loss(self, networks, views, labels, mask, *, train):
        raise NotImplementedError


def test_a_method_has_the_fields_of_its_section(monkeypatch):
    monkeypatch.setitem(METHODS, "weighted", Weighted)
    config = tiny.smoke.get_config()
    with config.unlocked():
        config.weighted = ml_collections.ConfigDict({"weight": 2.5})
    config.method = "weighted"
    method = build.make_method(config, DATA)
    assert method == Weighted(build.two_views(config, DATA), 2.5)
    assert build.own_fields(Weighted) == {"weight"}


def test_a_method_may_have_what_is_learned(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Learning(Weighted):
        learned: tuple[str, ...]

    monkeypatch.setitem(METHODS, "weighted", Learning)
    config = tiny.smoke.get_config()
    with config.unlocked():
        config.weighted = ml_collections.ConfigDict({"weight": 2.5})
    config.method = "weighted"
    config.learned = "rot,sca"
    assert build.make_method(config, DATA).learned == ("rot", "sca")
    assert build.reads_learned("weighted")
    config.learned = "fli"
    with pytest.raises(UsageError, match=r"learned='fli' is not in .*sca rot"):
        build.make_method(config, DATA)
