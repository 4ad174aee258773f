"""Adapt docstrings for pages: Keras' sections as headings, examples as code, names of
pages as links."""

import re

import griffe

KERAS_SECTION = re.compile(
    r"^(Call arguments|Input shape|Output shape):\n((?:    .*\n|\n(?=    ))*)", re.M
)
ARGUMENT = re.compile(r"^(\w+): ", re.M)
PAGE = re.compile(r"\bdocs/([\w/]+)\.md\b")
EXAMPLE = re.compile(r"^Example:\n\n((?:.+\n?)+)", re.M)


class KerasDocstrings(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            text = PAGE.sub(r"[docs/\1.md](\1.md)", obj.docstring.value)
            text = KERAS_SECTION.sub(section, text + "\n")
            obj.docstring.value = EXAMPLE.sub(example, text)


def section(match):
    """griffe does not know these sections, and would put them into boxes."""
    title, text = match[1], re.sub(r"^    ", "", match[2], flags=re.M)
    if title == "Call arguments":
        text = ARGUMENT.sub(r"- **`\1`** – ", text)
    return f"**{title}:**\n\n{text}\n"


def example(match):
    """In Markdown `>>>` would start a quotation."""
    lines = match[1].rstrip().splitlines()
    return "Examples:\n" + "\n".join(f"    {line}" for line in lines) + "\n"
