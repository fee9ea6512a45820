"""The race: what is made of the rows of a run, and the picture."""

import json

import matplotlib.image
import numpy as np
import pytest

from benchmarks import race
from duet_jax.figures import style


def trained_row(step, rate):
    return {
        "step": step,
        "epoch": step / 10,
        "split": "train",
        "images_per_second": rate,
    }


def scored_row(step, **scores):
    return {"step": step, "epoch": step / 10, "split": "test", **scores}


ROWS = [
    trained_row(10, 32.0),  # ten updates of 64 images: 20 s
    scored_row(10),  # without kNN
    trained_row(20, 64.0),  # 10 s
    scored_row(20, knn_top1=0.5),
    trained_row(30, 64.0),
    trained_row(40, 64.0),
    scored_row(40, knn_top1=0.925),
]
SEEN = {10: 45.0, 20: 66.0, 40: 120.0}


def made(curve):
    return {
        "goal": race.GOAL,
        "knn": {"k": 10},
        "curve": curve,
        "default_knn": {"device": "a device"},
    }


def test_minutes_are_those_of_the_updates_and_of_all():
    first, second = race.curve(ROWS, 64, SEEN)
    assert (first["epoch"], first["knn_top1"], first["minutes"]) == (2, 0.5, 1.1)
    assert first["training_minutes"] == pytest.approx(30 / 60)
    assert (second["epoch"], second["minutes"]) == (4, 2.0)
    assert second["training_minutes"] == pytest.approx(50 / 60)


def test_the_picture_has_both_curves_the_marks_and_the_goal(tmp_path):
    figure = race.draw(made(race.curve(ROWS, 64, SEEN)))
    (axes,) = figure.axes
    drawn = [np.transpose(line.get_data()).tolist() for line in axes.lines]
    assert drawn[0] == [[1.1, 50.0], [2.0, 92.5]]
    np.testing.assert_allclose(drawn[1], [[0.5, 50.0], [50 / 60, 92.5]])
    np.testing.assert_allclose(
        [line[0] for line in drawn[2:5]], [[20, 83.2], [99, 90.3], [198, 91.4]]
    )
    assert {y for _, y in drawn[5]} == {90.0}
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(names) == 4
    assert any("quoted" in name for name in names)
    style.save(tmp_path / "race.png", figure, "small print")
    assert matplotlib.image.imread(tmp_path / "race.png").std() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds a race"),
        (["--config=smoke"], "config.knn.every=0 gives no curve"),
        (["--config=smoke", "--config.knn.evry=1"], "config.knn.evry is not a field"),
    ],
)
def test_refused(arguments, message, tmp_path, capsys):
    if not arguments:
        (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit):
        race.main([f"--out={tmp_path}", *arguments])
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ([] if arguments else ["run"])


def test_the_whole_of_it(tmp_path, monkeypatch):
    """What main writes of a run; the program itself is not started."""
    directory = tmp_path / "run"

    def trained(place, arguments):
        assert place == directory
        assert arguments == ["--config=smoke", "--config.knn.every=1"]
        place.mkdir()
        config = {
            "method": "simclr",
            "seed": 0,
            "batch_size": 64,
            "knn": {"k": 10},
            "dataset": {"name": "digits"},
            "encoder": {"name": "resnet18"},
        }
        (place / "config.json").write_text(json.dumps(config))
        (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        return SEEN

    monkeypatch.setattr(race, "train", trained)
    monkeypatch.setattr(
        race, "default_knn", lambda place: {"top1": 0.9, "device": "a device"}
    )
    race.main([f"--out={tmp_path}", "--config=smoke", "--config.knn.every=1"])
    found = json.loads((tmp_path / "race.json").read_text())
    assert found["reached"] == found["curve"][1]
    assert found["command"].endswith("race.py --config=smoke --config.knn.every=1")
    assert (tmp_path / "race.png").exists()
