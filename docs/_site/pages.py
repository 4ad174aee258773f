"""Pages of the site that are files of the repository, and links between the two.

README.md, the method card and the READMEs of the benchmarks are pages too. On every
page a relative link to a file of the repository leads to the page made from it, or to a
copy of the file. If pyproject.toml names the site of the repository, it leads there
instead of to a copy.
"""

import html
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
import notebooks  # noqa: E402

# Page, and its file.
SOURCES = {
    "index.md": "README.md",
    "start.md": "examples/guide.ipynb",
    "method.md": "keras_mixavg/README.md",
    "results/index.md": "benchmarks/README.md",
    "results/accuracy.md": "benchmarks/accuracy/README.md",
    "results/speed.md": "benchmarks/speed/README.md",
    "results/examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# Pages whose tables get the width of the table of contents too; those with figures.
WITH_FIGURES = ("index.md", "results/accuracy.md", "results/speed.md")
WIDE = (*WITH_FIGURES, "what_is_tested.md")
PAGE_OF = {source: page for page, source in SOURCES.items()}
PAGE_OF["examples/guide.py"] = "start.md"
PICTURES = (".png", ".jpg", ".svg")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|/)([^)\s#]*)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def on_config(config):
    urls = addresses()
    config.site_url = urls.get("Documentation", "")
    config.extra["repository"] = urls.get("Repository", "")
    return config


def addresses():
    """[project.urls] of pyproject.toml. Python 3.10 cannot read TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    _, _, urls = text.partition("\n[project.urls]\n")
    return dict(re.findall(r'^(\w+) = "(.+)"$', urls.partition("\n[")[0], re.MULTILINE))


def on_files(files, config):
    for page, source in SOURCES.items():
        text = (ROOT / source).read_text()
        if source.endswith(".ipynb"):
            text, pictures = notebooks.to_markdown(text)
            for name, data in pictures.items():
                files.append(File.generated(config, name, content=data))
        if page in WITH_FIGURES:
            text = f'<div class="figures" markdown>\n\n{text}\n\n</div>\n'
        files.append(File.generated(config, page, content=text))
    for page, notebook in notebooks.all_of_them().items():
        name = f"notebooks/{notebook_name(page)}"
        files.append(File.generated(config, name, content=notebook))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    if here in WIDE:
        page.meta["hide"] = ["toc"]
    source = SOURCES.get(here, f"docs/{here}")
    folder = posixpath.dirname(source)

    def link(match):
        if source.endswith(".ipynb") and files.get_file_from_path(match[1]):
            return match[0]  # a picture that the notebook drew
        path = posixpath.join(folder, match[1]) if match[1] else source
        target = posixpath.normpath(path)
        return to(target, match[2] or "", here, config, files)

    def outside_code(text):
        return LINK.sub(link, re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))

    codes = CODE.findall(markdown)
    texts = [outside_code(text) for text in CODE.split(markdown)]
    markdown = texts[0] + "".join(
        code + text for code, text in zip(codes, texts[1:], strict=True)
    )
    name = f"notebooks/{notebook_name(here)}"
    if files.get_file_from_path(name):
        markdown += f"\n\n[This page as a notebook]({relative(name, here)}){{download}}"
    return markdown


def to(target, anchor, here, config, files):
    """The link from a page to a file of the repository."""
    page = PAGE_OF.get(target)
    if target.startswith("docs/") and target.endswith(".md"):
        page = target.removeprefix("docs/")
    if page:
        return relative(page, here) + anchor
    if not (ROOT / target).exists():
        raise ValueError(f"{here} links to {target}, which does not exist.")
    repository = config.extra["repository"]
    if repository and not target.endswith(PICTURES):
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{repository}/{kind}/main/{target}{anchor}"
    copied = copy_of_folder if (ROOT / target).is_dir() else copy_of_file
    return relative(copied(target, config, files), here)


def copy_of_file(path, config, files):
    copy = f"files/{path}"
    if not files.get_file_from_path(copy):
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    return copy


def copy_of_folder(path, config, files):
    """Its files, and a list of them."""
    listed = f"files/{path}/index.html"
    if not files.get_file_from_path(listed):
        found = sorted(
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / path).rglob("*")
            if file.is_file() and file.suffix not in (".md", ".pyc")  # no pages
        )
        copies = [copy_of_file(file, config, files) for file in found]
        names = [posixpath.relpath(copy, f"files/{path}") for copy in copies]
        links = "".join(
            f'<li><a href="{html.escape(name)}">{html.escape(name)}</a></li>'
            for name in names
        )
        head = f'<!doctype html><meta charset="utf-8"><title>{path}</title>'
        page = f"{head}<h1>{path}</h1><ul>{links}</ul>\n"
        files.append(File.generated(config, listed, content=page))
    return listed


def relative(target, here):
    return posixpath.relpath(target, posixpath.dirname(here) or ".")


def notebook_name(page):
    return f"{page.removesuffix('.md').replace('/', '-')}.ipynb"
