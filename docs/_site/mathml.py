"""Turn LaTeX between dollar signs into MathML, which needs no script."""

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
TAG = re.compile(r"\\tag\{(\w+)\}")


def on_page_content(content, **kwargs):
    content = INLINE.sub(lambda match: mathml(match[1], "inline"), content)
    return DISPLAY.sub(lambda match: numbered(match[1]), content)


def numbered(latex):
    """The parts of an equation, between which lines may break, and its number."""
    tag = TAG.search(latex)
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    parts = [mathml(part, "block") for part in TAG.sub("", latex).split(r"\qquad")]
    return f'<div class="equation"><div>{"".join(parts)}</div>{number}</div>'


def mathml(latex, display):
    return convert(html.unescape(latex).strip(), display=display)
