"""What comes from outside stays data: not run, not shown as markup, not passed on."""

import ast
import base64
import html.parser
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from knobs import IMAGES, make_knob, make_two
from pictures import encoded, fill, noise
from program import ROOT, TINY, run, snapshot

from duet_jax.data import load_dataset
from duet_jax.errors import UsageError
from duet_jax.evaluation import page
from duet_jax.evaluation.result import Table
from duet_jax.loggers.wandb_run import read_credentials

# --- the code -------------------------------------------------------------------------

FILES = [
    ROOT / "main.py",
    ROOT / "sweep.py",
    *(
        p
        for d in ("duet_jax", "configs", "benchmarks")
        for p in (ROOT / d).rglob("*.py")
    ),
]
# They run code that is in what they read.
PICKLES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
PICKLES |= {"joblib"}
# So do these; and those that unpack write wherever an archive says.
CALLS = {"eval", "exec", "os.system", "os.popen", "shutil.unpack_archive"}
CALLS |= {"np.lib.format.read_array", "pd.read_pickle"}
UNPACKING = {"extract", "extractall"}
# Configuration files are programs of the user's, and run by design.
RUN_BY_DESIGN = {ROOT / "duet_jax" / "config" / "loading.py"}
# An unpickler that refuses every name but those of tensors: test_torch_file.py gives it
# pickles that would run something.
OF_TENSORS = ROOT / "duet_jax" / "runs" / "torch_file.py"


def _dotted(node: ast.AST) -> str:
    """a.b.c for an expression of names; "" for others."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _option(call: ast.Call, name: str) -> object:
    values = [each.value for each in call.keywords if each.arg == name]
    return getattr(values[0], "value", None) if values else None


def _unsafe_call(call: ast.Call, path: pathlib.Path) -> bool:
    name = _dotted(call.func)
    module, _, function = name.rpartition(".")
    return (
        name in CALLS
        or function in UNPACKING
        or (
            name in ("np.load", "numpy.load")
            and _option(call, "allow_pickle") is not False
        )
        or (name == "torch.load" and _option(call, "weights_only") is not True)
        or (module == "yaml" and "load" in function and function != "safe_load")
        or _option(call, "shell") is True
        or _option(call, "allow_pickle") is True
        or (module == "runpy" and path not in RUN_BY_DESIGN)
    )


def unsafe(text: str, path: pathlib.Path = ROOT / "duet_jax" / "x.py") -> list[str]:
    """What in the text of a module may run data, or write where they say."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        if names & PICKLES or (isinstance(node, ast.Call) and _unsafe_call(node, path)):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path):
    expected = ["import pickle"] if path == OF_TENSORS else []
    assert unsafe(path.read_text(), path) == expected


def test_the_unpickler_of_tensors_looks_names_up_itself():
    """And nothing else of the module is used, such as `pickle.load`."""
    tree = ast.parse(OF_TENSORS.read_text())
    names = [_dotted(node) for node in ast.walk(tree)]
    assert [name for name in names if name.startswith("pickle.")] == [
        "pickle.Unpickler"
    ]
    (unpickler,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Unpickler" in node.name
    )
    assert "find_class" in [getattr(node, "name", "") for node in unpickler.body]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "import joblib.numpy_pickle",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.full_load(f)",
        "exec(f.read())",
        "os.system(name)",
        "subprocess.run(name, shell=True)",
        "archive.extractall(place)",
        "runpy.run_path(f)",
    ],
)
def test_what_would_be_found(text):
    assert unsafe(text) == [text]


# --- what is read ---------------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_cache_stays_shut(tmp_path):
    fill(tmp_path / "images")
    options = {
        "path": str(tmp_path / "images"),
        "image_size": 8,
        "cache_dir": str(tmp_path / "cache"),
    }
    expected = load_dataset("folder", **options)
    (entry,) = (tmp_path / "cache").glob("folder-*")
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    for name in ("train_images", "test_labels"):
        np.save(entry / f"{name}.npy", trap, allow_pickle=True)
        found = load_dataset("folder", **options)
        np.testing.assert_array_equal(found.train.images, expected.train.images)
    assert not (tmp_path / "sprung").exists()


def test_credentials_are_no_program(tmp_path):
    trap = f"WANDB_API_KEY: !!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']"
    (tmp_path / ".wandb.yaml").write_text(trap)
    with pytest.raises(UsageError, match="cannot be read as credentials"):
        read_credentials(tmp_path)
    assert not (tmp_path / "sprung").exists()


# --- pages ----------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Notes the elements and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.attributes, self.sources = set(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value for name, value in attrs if name in ("src", "href")]


ELEMENTS = {"html", "head", "meta", "link", "title", "style", "body", "header", "h1"}
ELEMENTS |= {"p", "ul", "li", "b", "span", "nav", "a", "main", "section", "h2", "div"}
ELEMENTS |= {"table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "img"}
ELEMENTS |= {"footer", "details", "summary", "h3", "dl", "dt", "dd", "svg", "rect"}
ELEMENTS |= {"figcaption", "script"}
KNOB = {"fieldset", "legend", "label", "input", "select", "option", "canvas", "output"}
KNOB |= {"g", "circle", "line", "path", "text"}
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "rel",
    "href",
    "class",
}
ATTRIBUTES |= {"aria-label", "id", "tabindex", "scope", "alt", "src", "open"}
ATTRIBUTES |= {"title", "width", "height", "viewbox", "preserveaspectratio"}
ATTRIBUTES |= {"aria-hidden"}
OF_KNOB = {"role", "hidden", "type", "value", "checked", "for", "min", "max", "step"}
OF_KNOB |= {"aria-live", "aria-valuemin", "aria-valuemax", "aria-valuenow"}
OF_KNOB |= {"x", "y", "y1", "y2", "cy", "r", "transform"}
EVIL = (
    """</title></style></td>'"><script>alert(1)</script><img src=x onerror=alert(1)>&"""
)


def check_page(text: str, knobs: int = 0) -> None:
    found = Reader(text)
    assert found.elements <= (ELEMENTS | KNOB if knobs else ELEMENTS)
    # The only script is our own, which the page's policy knows by its hash. Knobs have
    # data beside.
    assert text.count("<script") == 1 + knobs
    assert text.count('<script type="application/json">') == knobs
    assert found.attributes <= (ATTRIBUTES | OF_KNOB if knobs else ATTRIBUTES)
    assert all(
        each.startswith(("data:image/png;", "data:,", "#")) for each in found.sources
    )


def test_a_page_of_evil_names(tmp_path):
    picture = tmp_path / "evil'\"><script>alert(1)<.png"
    picture.write_bytes(encoded(noise(8, 8)))
    table = Table(EVIL, (EVIL, EVIL), ((EVIL, EVIL),), EVIL)
    pictures = page.read_picture(picture, EVIL)
    assert len(pictures) == 1
    section = page.Section(EVIL, (table,), pictures, EVIL)
    box = page.Headline(EVIL, EVIL, EVIL, [page.Bar(EVIL, EVIL, 1.0)])
    text = page.build(
        [section],
        title=EVIL,
        subtitle=EVIL,
        headlines=[box, page.Headline("1", "2", "3")],
        foot=[(EVIL, EVIL)],
    )
    check_page(text)


def test_a_knob_of_evil_names():
    names = [EVIL, "b"]
    knob = make_knob(
        names, code=EVIL, summary=EVIL, unit=EVIL, captions=[EVIL] * IMAGES
    )
    two = make_two(names, captions=[EVIL] * IMAGES)
    dials = [
        dial._replace(code=f"{number}{EVIL}", summary=EVIL, unit=EVIL)
        for number, dial in enumerate(two.dials)
    ]
    section = page.Section("s", knobs=[knob, two._replace(dials=dials)])
    check_page(page.build([section], title="t", subtitle=""), knobs=2)


# --- a run under evil names, and with secrets -----------------------------------------

CLASSES = (
    "<script>alert(1)<script>",
    "' onload='alert(1)' x=\"",
    "..%2f..%2fescaped",
    "-rf",
    "a\nb\x1b[2J\u202e",
    "$x^$ 漢字",
)
WORKDIR = "<script>alert(1)<script>\"'&"
SECRETS = {
    "WANDB_API_KEY": "5ecretfromtheenvironment5ecretfromtheenv",
    "WANDB_BASE_URL": "http://user:5ecretaddress@127.0.0.1:9",
}
IN_THE_FILE = "5ecretfromthefile5ecretfromthefile5ecret"


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A directory with such a run and its report, and all that was said."""
    place = tmp_path_factory.mktemp("evil") / "place"
    fill(place / "images", CLASSES)
    text = f"WANDB_API_KEY: {IN_THE_FILE}\nWANDB_BASE_URL: http://127.0.0.1:9\n"
    (place / ".wandb.yaml").write_text(text)
    train = (
        *TINY,
        "--config.dataset.name=folder",
        "--config.dataset.path=images",
        "--config.wandb.project=p",
        "--config.tensorboard=true",
        "--config.figures_every=1",
    )
    said = [
        run(*train, f"--workdir={WORKDIR}", cwd=place, environment=SECRETS),
        run("--mode=report", f"--workdir={WORKDIR}", cwd=place, environment=SECRETS),
        # The secret of the file is asked for only where the environment has none.
        run(*train, "--workdir=other", cwd=place, environment=dict.fromkeys(SECRETS)),
    ]
    assert [done.status for done in said] == [0, 0, 0], said
    return place, said


def test_names_do_not_lead_elsewhere(evil):
    place, _ = evil
    assert {path.name for path in place.iterdir()} == {
        ".wandb.yaml",
        "images",
        "other",
        WORKDIR,
    }
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    assert not any("escaped" in str(p) for p in (place / WORKDIR).rglob("*"))


def test_names_do_not_move_the_cursor(evil):
    _, said = evil
    for done in said:
        assert done.errors == []
        text = done.out + "".join(done.lines)
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "Warning" not in text


def test_names_are_no_markup(evil):
    place, _ = evil
    check_page((place / WORKDIR / "report.html").read_text())


def test_secrets_are_kept(evil):
    place, said = evil
    secrets = [*SECRETS.values(), IN_THE_FILE, "5ecretaddress", "5ecret"]
    forms = [secret.encode() for secret in secrets]
    forms += [base64.b64encode(f"api:{secret}".encode()) for secret in secrets[:3]]
    for done in said:
        text = (done.out + "\n".join(done.lines)).encode()
        assert not any(form in text for form in forms)
    for name in (WORKDIR, "other"):
        files = [path for path in (place / name).rglob("*") if path.is_file()]
        assert any("wandb" in str(path) for path in files)
        for path in files:
            content = path.read_bytes()
            assert not any(form in content for form in forms), path


def test_a_stored_result_does_not_open_other_files(evil, tmp_path):
    """The page is given away: what a result calls its pictures is not all put in."""
    place, _ = evil
    shutil.copytree(place, tmp_path / "place", symlinks=True)
    directory = tmp_path / "place" / WORKDIR
    secret = encoded(np.full((8, 8), 77, np.uint8))
    (tmp_path / "place" / "secret.png").write_bytes(secret)
    (directory / "eval" / "link.png").symlink_to("../../secret.png")
    (directory / "eval" / "text.png").write_text("5ecret of another kind")
    path = directory / "eval" / "knn.json"
    stored = json.loads(path.read_text())
    stored["pictures"] = ["../../secret.png", "link.png", "text.png"]
    stored["pictures"].append(str(tmp_path / "place" / "secret.png"))
    stored["tables"][0]["title"] = EVIL
    path.write_text(json.dumps(stored))
    done = run("--mode=report", f"--workdir={WORKDIR}", cwd=tmp_path / "place")
    assert done.status == 0, done.lines
    text = (directory / "report.html").read_text()
    check_page(text)
    assert "alert(1)&lt;/script&gt;" in text
    for content in (secret, b"5ecret of another kind"):
        assert base64.b64encode(content).decode()[:40] not in text


def test_names_in_a_record_do_not_lead_elsewhere(evil, tmp_path):
    place, _ = evil
    shutil.copytree(place, tmp_path / "place", symlinks=True)
    path = tmp_path / "place" / WORKDIR / "dataset.json"
    facts = json.loads(path.read_text())
    names = ["../../escaped", "/tmp/escaped", "a", "b", "c", "d"]
    path.write_text(json.dumps(facts | {"class_names": names}))
    before = snapshot(tmp_path)
    done = run("--mode=linear_probe", f"--workdir={WORKDIR}", cwd=tmp_path / "place")
    assert done.status == 2
    assert "was trained with ../../escaped" in done.lines[-1]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [".wandb.yaml", "runs/x/config.json", "wandb/x"])
def test_what_git_leaves_out(name):
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no repository")
    command = ["git", "-C", ROOT, "check-ignore", "--quiet", name]
    assert subprocess.run(command, check=False).returncode == 0
