"""LaTeX between dollar signs as MathML, which browsers draw without a script."""

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
    tag = TAG.search(latex)
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    return f'<div class="equation">{mathml(TAG.sub("", latex), "block")}{number}</div>'


def mathml(latex, display):
    return convert(html.unescape(latex).strip(), display=display)
