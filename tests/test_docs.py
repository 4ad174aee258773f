"""The code of the READMEs, the site and the docstrings runs."""

import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mixavg

for package in ("jupytext", "latex2mathml", "nbformat", "sklearn", "matplotlib"):
    pytest.importorskip(package)

ROOT = Path(__file__).parent.parent
import mathml  # noqa: E402
import notebooks  # noqa: E402
import pages  # noqa: E402
from training import compare  # noqa: E402

pytestmark = pytest.mark.once

KERAS_HUB = "recipes/keras_hub.md"  # test_keras_hub.py runs it on every backend
READMES = ["README.md", "keras_mixavg/README.md"]  # not pages of docs/
# Of what a page may need and `make test` does not install.
OPTIONAL = re.compile(r"^\s*(?:import|from) (torch|grain|keras_cv|jax)\b", re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]*))?\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def blocks():
    for name in READMES:
        text = (ROOT / name).read_text()
        for match in notebooks.BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            yield pytest.param(match[1], id=f"{name}:{line}")


def users_own():
    """What a reader has already: datasets of (image, class number), and a model."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(40, 8, 8, 3), dtype="uint8")
    labels = rng.integers(0, 10, size=40)
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    return {
        "train": data,
        "test": data,
        "model": keras.Sequential(layers),
        "images": images,
        "labels": labels,
    }


SHORT_OF_STEPS = pytest.mark.filterwarnings(
    "ignore:`shuffle=True` was passed|Limiting|Even though|Your input|Training ended"
)


@pytest.mark.usefixtures("few_steps")
@SHORT_OF_STEPS
@pytest.mark.parametrize("code", list(blocks()))
def test_code_of_the_readmes_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), users_own())


@pytest.mark.parametrize("page", notebooks.pages())
def test_a_page_says_before_its_code_what_to_paste_first(page):
    before, _, _ = (notebooks.DOCS / page).read_text().partition("```python")
    if notebooks.goes_on(page):
        assert notebooks.PASTE_FIRST in before.split("\n\n")[1]  # below the title
    else:
        assert "whole program" in before or page == "recipes/index.md"


def test_the_notebook_of_each_page_has_a_name_of_its_own():
    every = [*pages.SOURCES, *notebooks.pages()]
    names = [pages.notebook_name(page) for page in every]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("few_steps")
@SHORT_OF_STEPS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of KerasCV and grain
@pytest.mark.parametrize("page", [p for p in notebooks.pages() if p != KERAS_HUB])
def test_code_of_a_page_runs_pasted_into_an_empty_file(page, tmp_path, monkeypatch):
    """After the first lines of the recipes, if the page says so."""
    monkeypatch.chdir(tmp_path)
    cells = [c.source for c in notebooks.notebook(page).cells if c.cell_type == "code"]
    for package in OPTIONAL.findall("\n".join(cells)):
        pytest.importorskip(package)
    names = {"__name__": "__main__"}
    for number, code in enumerate(cells):
        exec(compile(code, f"{page}, cell {number}", "exec"), names)


def test_the_notebook_of_the_guide_is_that_of_its_program():
    """`make figures` updates it."""
    written = notebooks.nbformat.read(notebooks.GUIDE.with_suffix(".ipynb"), 4)
    assert [c.source for c in written.cells] == [
        c.source for c in notebooks.guide().cells
    ]
    assert any(c.cell_type == "code" and c.outputs for c in written.cells)


MODULES = [
    f"keras_mixavg.{module.name}"
    for module in pkgutil.iter_modules(keras_mixavg.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_show_what_they_say(name):
    if name.endswith("plotting"):
        pytest.importorskip("matplotlib")
    module = importlib.import_module(name)
    names = {"np": np, "keras": keras}
    results = doctest.testmod(module, extraglobs=names, report=True)
    assert results.failed == 0
    public = set(keras_mixavg.__all__) & set(vars(module))
    defined = [n for n in public if getattr(module, n).__module__ == name]
    assert results.attempted > 0 or not defined


def test_an_equation_becomes_mathml_with_its_number_beside_it():
    page = '<div class="arithmatex">\\[g_i = l_i S \\tag{4}\\]</div>'
    shown = mathml.on_page_content(page)
    assert shown.count("<math") == 1 and "<msub>" in shown
    assert '<span class="number">(4)</span>' in shown
    assert "tag" not in shown and "arithmatex" not in shown


def test_the_line_of_an_equation_may_break_between_its_parts():
    page = '<div class="arithmatex">\\[a = b, \\qquad c = d \\tag{1}\\]</div>'
    assert mathml.on_page_content(page).count("<math") == 2


ADDRESS = re.compile(r"https?://([\w.-]+)")
KNOWN_HOSTS = {
    "arxiv.org",
    "cs231n.stanford.edu",
    "download.pytorch.org",
    "keepachangelog.com",
    "openreview.net",
    "semver.org",
    "www.apache.org",
}


def is_ours(file):
    """Not what programs, editors and notebooks leave in a checkout."""
    folders = file.relative_to(ROOT).parts[:-1]
    return not any(name == "runs" or name.startswith(".") for name in folders)


def test_no_address_is_named_that_is_not_known_to_exist():
    """Once the project has addresses, add them to pyproject.toml and here."""
    folders = ("keras_mixavg", "docs", "examples", "benchmarks")
    kinds = ("*.md", "*.py", "*.toml", "*.ipynb", "*.yml", "*.cff", "*.tsv")
    found = [file for kind in kinds for file in ROOT.glob(kind)]
    found += [
        f for folder in folders for kind in kinds for f in (ROOT / folder).rglob(kind)
    ]
    found = [file for file in found if is_ours(file)]
    assert len(found) > 50
    for file in found:
        for host in ADDRESS.findall(file.read_text()):
            assert host in KNOWN_HOSTS, f"{file.relative_to(ROOT)}: {host}"


def texts():
    """Every Markdown file, by its path."""
    found = [
        f
        for name in ("", "keras_mixavg", "examples")
        for f in (ROOT / name).glob("*.md")
    ]
    for name in ("docs", "benchmarks"):
        found += (ROOT / name).rglob("*.md")
    return sorted(file for file in found if is_ours(file))


def anchors(file):
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", file.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()) for title in titles)
    return {re.sub(r"\s", "-", title.strip()) for title in plain}


@pytest.mark.parametrize("file", texts(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(file):
    for path, anchor in LINK.findall(FENCED.sub("", file.read_text())):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_the_method_card_has_its_headings_and_equations():
    card = (ROOT / "keras_mixavg/README.md").read_text()
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert headings == [
        "Idea",
        "Equations",
        "How to use",
        "Parameters that matter",
        "Costs and traps",
        "Differences from the paper",
        "References",
    ]
    for number in range(1, 9):
        assert rf"\tag{{{number}}}" in card


def test_the_table_of_the_demo_is_the_recorded_run():
    record = ROOT / "benchmarks/accuracy/results/quickstart/result.json"
    page = (ROOT / "docs/results/demo.md").read_text()
    for row in json.loads(record.read_text())["table"]:
        assert f"| {' | '.join(row)} |" in page


def test_every_test_that_is_named_exists():
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py"))
    known = (ROOT / "docs/what_is_tested.md").read_text()
    named = re.findall(r"`(test_\w+)`", known)
    assert named
    for name in named:
        assert f"def {name}(" in tests, name


def test_the_figures_on_checkpoints_are_the_recorded_run():
    record = json.loads((ROOT / "benchmarks/speed/results/checkpoint.json").read_text())
    row = record["rows"][-1]
    assert row["num_classes"] == 1000
    grown = (row["bytes_with"] - row["bytes_without"]) / 1e6
    save, load = (
        row[f"{a}_ms_with"] - row[f"{a}_ms_without"] for a in ("save", "load")
    )
    page = " ".join((ROOT / "docs/what_is_tested.md").read_text().split())
    assert f"grows by {grown:.0f} MB and takes {save:.0f} ms longer" in page
    assert f"to write and {load:.0f} ms to read" in page


def test_the_figures_of_the_examples_are_the_recorded_runs():
    tables = pytest.importorskip("tables")
    text = (ROOT / "examples/README.md").read_text()
    (methods,) = tables.runs_of("memorise")[2].values()
    for name in (tables.PLAIN, tables.OURS):
        runs = methods[name]
        shown = [
            compare.mean_and_spread(list(tables.values(runs, score).values()), digits)
            for score, digits in (("accuracy", 1), ("nll", 3), ("ece", 1))
        ]
        expected = "accuracy {} %, NLL {}, ECE {} %".format(*shown)
        assert f"{expected}, n = {len(runs)}" in text
