"""The README and the pages: what they link to, name, command and leave out."""

import ast
import importlib.util
import re
import shlex
import subprocess
import unicodedata

import pytest
import yaml
from readme import PAGES, README, ROOT, blocks
from sources import TREES

import duet_jax
from configs import cifar10_duet_rot
from duet_jax import cli
from duet_jax.config import checks, loading
from duet_jax.runs import external, weights_file, workdir
from duet_jax.sweeps import cli as sweeps

# Blocks of Python that are not among the examples of tests/test_readme.py -> what runs
# them, or why nothing does.
OTHER_PYTHON = {
    "docs/tutorial.md": ("tests/end_to_end/test_tutorial.py",),
    "docs/encoders.md": (
        "an encoder of PyTorch, which is not installed; "
        "tests/evaluation/test_external.py gives tensors that behave like its own",
        "tests/evaluation/test_external.py",
    ),
    "docs/export.md": ("tests/end_to_end/test_example.py",) * 2,
}
EXAMPLES = ("README.md", "docs/add.md", "docs/api.md")

# What stands in commands for something of the reader's -> something of that kind.
STAND_INS = {
    "<method>": "duet",
    "<mode>": "report",
    "<seed>": "0",
    "<run>": "runs/one",
}
_COMMAND = re.compile(r"(?:python|\.\./python) (main|sweep|benchmarks/\w+)\.py(.*)")


def fenced(page):
    """Blocks that are not Python: commands, what is printed, drawings."""
    return [
        text for language in ("", "bash", "text") for text in blocks(page, language)
    ]


def inline(page):
    """What stands between backticks outside of blocks."""
    outside = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", outside)]


def commands(page):
    """All command lines of a page, in the words of a shell; those with ... are none."""
    lines = [
        line for text in fenced(page) for line in text.replace("\\\n", " ").splitlines()
    ]
    for line in (*lines, *inline(page)):
        if "..." in line.partition("#")[0] and not line.startswith("make"):
            continue
        match = _COMMAND.search(line)
        if match or re.match(r"make \w", line):
            text = match[0].removeprefix("python ") if match else line
            for name, value in STAND_INS.items():
                text = text.replace(name, value)
            yield shlex.split(text, comments=True)


COMMANDS = [
    pytest.param(words, id=f"{page}: {' '.join(words)}"[:90])
    for page in PAGES
    for words in commands(page)
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the configurations, in which every run is one of DUET."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    run = cifar10_duet_rot.get_config()
    monkeypatch.setattr(workdir, "load_config", lambda directory: run)
    monkeypatch.setattr(external, "check", lambda name: None)
    about = weights_file.about  # a file of the reader's says nothing
    monkeypatch.setattr(
        weights_file, "about", lambda path: about(path) if path.exists() else None
    )
    return tmp_path


def make_runs(arguments, place):
    """The runs that are compared have to be there."""
    for argument in arguments:
        flag, _, names = argument.partition("=")
        for name in names.split(",") if flag == "--workdirs" else ():
            (place / name).mkdir(parents=True)
            (place / name / "config.json").touch()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_of_the_program(words, place):
    program, *arguments = words
    if program == "main.py":
        make_runs(arguments, place)
        if not {"--list", "--help", "--version"} & {*arguments}:
            cli.parse(words)
    elif program == "sweep.py" and arguments:
        options, overrides = sweeps._parser().parse_known_args(arguments)
        assert sweeps.plan(options, overrides)
    elif program == "make":
        check_make(arguments)
    elif program != "sweep.py":
        text = (ROOT / program).read_text()
        for argument in arguments:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config"):
                assert f'"{flag}"' in text, argument


def check_make(arguments):
    """What `make` would run is there: a target, the files of tests, a configuration."""
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (*_, last) = done.stdout.replace("\\\n", " ").strip().splitlines()
    words = shlex.split(last)
    if "main.py" in words:
        cli.parse(words[words.index("main.py") :])
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word


def test_there_are_commands():
    assert len(COMMANDS) > 60
    programs = {param.values[0][0] for param in COMMANDS}
    assert {"main.py", "sweep.py", "make"} < programs


def test_every_block_of_python_is_run():
    for page in PAGES:
        if found := blocks(page):
            assert page in EXAMPLES or len(OTHER_PYTHON[page]) == len(found), page


def test_the_changelog_begins_with_this_version():
    """Which is written down in one place."""
    headings = re.findall(r"^## (.*)$", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert headings[0].partition(",")[0] == duet_jax.__version__


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


# --- links ----------------------------------------------------------------------------


def anchor(heading):
    """As MkDocs makes it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"[^\w\s-]", "", text).strip().lower()
    return re.sub(r"[-\s]+", "-", text)


def anchors(page):
    """Of the headings of a page, and of the file that it includes whole."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    found = {anchor(each) for each in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for name in re.findall(r"<!-- include: (\w+\.md) -->", text):
        found |= anchors(name)
    return found


def links(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", re.sub(r"`[^`]*`", "", text)):
        if not target.startswith(("https:", "http:")):
            yield target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(page):
        file, _, name = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if name:
            other = path.resolve().relative_to(ROOT).as_posix()
            assert name in anchors(other), target


def test_pages_that_the_program_names_are_there():
    texts = [path.read_text() for path in (ROOT / "duet_jax").rglob("*.py")]
    texts += [path.read_text() for path in (ROOT / "configs").glob("*.py")]
    for name in re.findall(r"docs/\w+\.md", "\n".join(texts)):
        assert name in PAGES


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"\b(\w+\.md)$", text.partition("\nnav:")[2], re.MULTILINE)
    pages = [each.removeprefix("docs/") for each in PAGES if each.startswith("docs/")]
    assert sorted(listed) == sorted(pages)
    yaml.safe_load(text)


def test_the_site_reads_nothing_from_elsewhere():
    """No fonts, scripts or styles of other hosts."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert "offline" in config["plugins"]
    for name in ("extra_css", "extra_javascript"):
        assert not [each for each in config.get(name, ()) if "//" in each]
    # Else the plugin takes one from elsewhere.
    (script,) = config["extra"]["polyfills"]
    assert "iframe-worker" in script
    assert (ROOT / "docs" / script).exists()


# --- what is made from the program ----------------------------------------------------


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_field_is_listed(generate):
    schema = dict(checks.fields(loading.schema()))
    listed = generate.fields()
    assert sorted(each.name for each in listed) == sorted(schema)
    text = generate.fields_text()
    for field in listed:
        assert text.count(f"\n### `{field.name}`\n") == 1
        rule = checks.RULES.get(field.name)
        part = text.partition(f"\n### `{field.name}`\n")[2].partition("\n##")[0]
        default = generate._shown(schema[field.name])
        assert f"`{default}`" in part or (default == "" and "default: empty" in part)
        if rule:
            assert rule.says.removeprefix("must be ").removeprefix("must ") in part
        assert field.comment or field.name == "dataset", field.name
    assert len(re.findall("^### ", text, re.MULTILINE)) == len(schema)


def test_what_is_said_of_a_field(generate):
    of = {each.name: generate._facts(each) for each in generate.fields()}
    assert of["augself.weight"] == (
        "default `1`; a number; 0 or more; read by method augself."
    )
    assert "read by method duet with the target von_mises" in of["duet.concentration"]
    assert "from 8 to 4096" in of["dataset.image_size"]
    assert "in [0, 1]" in of["augmentation.crop_area"] or (
        "above 0, up to 1" in of["augmentation.crop_area"]
    )
    assert "lie in (0, 180]" in of["augmentation.rotation_degrees"]
    assert "augmentation rot" in of["augmentation.rotation_degrees"]
    assert "may change when a run continues" in of["dataset.path"]
    assert "ml-duet: `--lr`" in of["optimizer.learning_rate"]
    assert "[--lr]" not in generate.fields_text()


def test_every_flag_and_mode_is_listed(generate):
    text = generate.flags_text()
    for name, flag in cli.FLAGS.items():
        assert f"| `--{name}{'' if flag.switch else '='}` |" in text
    modes = generate.modes_text()
    for mode in cli.MODES:
        assert f"| `{mode}` |" in modes


def test_parts_are_there(generate):
    asked = {
        part
        for text in PAGES.values()
        for part in re.findall(r"<!-- include: (\S+) -->", text)
    }
    assert asked == {*generate.PARTS}
    assert "--experiment" in generate.sweep_text()
    for name in asked:
        assert "](docs/" not in generate.PARTS[name]()
    assert "## Install" not in generate.home_text()


# --- messages -------------------------------------------------------------------------


def texts():
    """Every text in the program; what is put into it has become "\\0"."""
    for tree in TREES.values():
        own = constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            if isinstance(node, ast.JoinedStr):
                yield "".join(filled(each, own) for each in node.values)


def constants(tree):
    """Names of a module that stand for a text -> that text."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def filled(part, own):
    if isinstance(part, ast.Constant):
        return part.value
    return own.get(getattr(part.value, "id", ""), "\0")


MESSAGES = [
    " ".join(message.split())
    for text in blocks("docs/errors.md", "output")
    for message in text.strip().split("\n\n")
]


@pytest.fixture(scope="module")
def known():
    return [" ".join(text.split()) for text in texts()]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_a_quoted_message_is_the_programs(message, known):
    """Its constant parts follow each other in one text of the program."""
    parts = re.split(r"<[^>]*>", re.sub(r"^(error|warning): ", "", message))
    parts = [part.strip() for part in parts if len(part.strip()) > 3]
    assert sum(map(len, parts)) > 15
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(map(pattern.search, known)), parts


def test_there_are_messages():
    assert len(MESSAGES) >= 20
