"""One self-contained HTML page."""

import base64
import html
import io
import re

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
dl { margin: 1rem 0; } dt { font-weight: 600; } dd { margin: 0 0 0.75rem; }
pre { background: var(--soft); padding: 0.75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: 1rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; vertical-align: bottom; }
thead th { white-space: normal; min-width: 5rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: Canvas; white-space: normal; min-width: 7.5rem; }
@media (min-width: 50rem) { th:first-child { min-width: 15rem; } }
@media (max-width: 40rem) {
  th:first-child { min-width: 6rem; } th, td { padding: 0.3rem 0.45rem; } }
figure { margin: 1.5rem 0; } figcaption { color: GrayText; font-size: 0.9rem; }
figure img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
footer { color: GrayText; font-size: 0.9rem; margin-top: 2rem; }
"""


def page(title, parts):
    """The page: a title, and parts made by the functions below."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def heading(text):
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text):
    return f"<p>{html.escape(text)}</p>"


def definitions(entries):
    """A list of terms with a text for each."""
    items = "".join(
        f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>"
        for term, text in entries.items()
    )
    return f"<dl>{items}</dl>"


def command(text):
    return f"<pre>{html.escape(text)}</pre>"


def table(rows):
    """A table of Markdown strings. The first row is the heading."""
    head, *body = [
        "".join(map(_cell, row, _tags(i, row))) for i, row in enumerate(rows)
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _tags(number, row):
    return ["th"] * len(row) if number == 0 else ["th", *["td"] * (len(row) - 1)]


def _cell(text, tag):
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return f"<{tag}>{text}</{tag}>"


def figure(image, caption):
    """`image` is a matplotlib figure, or the bytes of a PNG."""
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=120)
        image = buffer.getvalue()
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    caption = html.escape(caption)
    return (
        f'<figure><img src="{source}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
