"""Make notebooks from the guide and the pages, and a page from a notebook.

    python docs/_site/notebooks.py    # run the guide, write examples/guide.ipynb

The cells are the texts and code blocks of the page, in order. If the page says to paste
the first lines of recipes/index.md first, its notebook starts with them.
tests/test_docs.py runs the same cells.
"""

import base64
import re
from pathlib import Path

import nbformat
from nbformat import v4

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = ROOT / "examples/guide.py"
BLOCK = re.compile(r"^```python\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
INSTALL = '# Install in a checkout of keras_mixavg: pip install ".[tensorflow,plot]"'
PASTE_FIRST = "index.md#paste-this-first) before the code of this page."
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def pages():
    """The pages with code, as paths within docs/."""
    found = sorted(path for path in DOCS.rglob("*.md") if code_of(path))
    return [path.relative_to(DOCS).as_posix() for path in found]


def code_of(path):
    """The code blocks of a Markdown file."""
    return [code.rstrip() for code in BLOCK.findall(path.read_text())]


def goes_on(page):
    """Whether the first lines of recipes/index.md come before the code of the page."""
    return PASTE_FIRST in (DOCS / page).read_text()


def notebook(page):
    """The notebook of a page, such as "recipes/k_fold.md"."""
    cells = [v4.new_code_cell(INSTALL)]
    if goes_on(page):
        cells.append(v4.new_code_cell(code_of(DOCS / "recipes/index.md")[0]))
    return numbered(cells + cells_of((DOCS / page).read_text()))


def cells_of(text):
    """Markdown and code cells in turn."""
    cells = []
    for number, part in enumerate(BLOCK.split(text)):
        if part.strip():
            make = v4.new_code_cell if number % 2 else v4.new_markdown_cell
            cells.append(make(part.strip()))
    return cells


def guide():
    import jupytext

    return numbered(jupytext.read(GUIDE).cells)


def numbered(cells):
    """A notebook whose cells always have the same names."""
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def all_of_them():
    """Every notebook as text, by its page of the site."""
    made = {page: nbformat.writes(notebook(page)) for page in pages()}
    return {"start.md": GUIDE.with_suffix(".ipynb").read_text(), **made}


def to_markdown(text):
    """A page from a notebook with output: its text, and its pictures by name."""
    parts, pictures = [], {}
    for cell in nbformat.reads(text, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"pictures/guide-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the code above]({name})")
            elif output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
    return "\n\n".join(parts), pictures


def main():
    from nbclient import NotebookClient

    made = guide()
    NotebookClient(made, resources={"metadata": {"path": ROOT / "examples"}}).execute()
    for cell in made.cells:  # drop times and the log of TensorFlow
        cell.metadata.clear()
        outputs = cell.get("outputs", [])
        outputs[:] = [o for o in outputs if o.get("name") != "stderr"]
    made.metadata = {"kernelspec": KERNEL}
    nbformat.write(made, GUIDE.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
