"""The programs and notebooks in `examples/` run, shortened."""

import pathlib
import warnings

import nbclient
import nbformat
import numpy as np
import pytest
from program import PATIENCE

from examples import duet_digits

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Notebook -> what is replaced in it, and what it prints and shows.
NOTEBOOKS = {
    "train_and_look": ({"epochs = 10": "epochs = 1"}, ("'pixels'", "DUET ", "R²"), 1),
    "the_knob": ({}, ("'not shifted'", "array("), 2),
}


def test_duet_digits(capsys):
    error = duet_digits.main(steps=2)
    assert np.isfinite(error)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step    0  loss ")
    assert last.startswith(f"the angle is read with {error:.1f} degrees of error")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks(name, tmp_path, monkeypatch):
    replaced, said, pictures = NOTEBOOKS[name]
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    sources = "\n".join(cell.source for cell in notebook.cells)
    for old, new in replaced.items():
        assert sources.count(old) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    place = {"metadata": {"path": str(EXAMPLES)}}
    client = nbclient.NotebookClient(notebook, timeout=PATIENCE, resources=place)
    with warnings.catch_warnings(action="ignore"):  # of Jupyter itself
        client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    found = [out["data"] for out in outputs if "data" in out]
    texts = [out["text"] for out in outputs if "text" in out]
    texts += [data["text/plain"] for data in found]
    assert sum("image/png" in data for data in found) == pictures
    for each in said:
        assert any(each in text for text in texts), each
