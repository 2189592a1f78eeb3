"""Parts of a self-contained HTML page, which loads nothing: escaped text, tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.canvas import png
from prunegym.pruning.errors import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --quiet: #5c5c5c; --line: #dcdcdc; --paper: #fff;
  --raised: #f5f5f4; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; break-after: avoid; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.verdict { font-weight: 600; padding: .6rem .9rem; background: var(--raised);
  border-left: 4px solid #0072b2; }
pre { background: var(--raised); padding: .6rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr { break-inside: avoid; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { margin-top: .35rem; }
img { display: block; max-width: 100%; height: auto; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --quiet: #a3a3a3; --line: #3a3a3a; --paper: #191919; --raised: #242424; }
  img { filter: invert(.902) hue-rotate(180deg); }
  img.fixed { filter: brightness(.88); }
}
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } .table { overflow: visible; }
  table { font-size: 8.5pt; } th, td { padding-right: .5rem; }
  img { max-height: 23cm; object-fit: contain; object-position: left top; } }
"""


def page(title: str, pieces: Iterable[str]) -> str:
    """Return an HTML page with a plain-text title and the given pieces of HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">\n'
    body = "\n".join(pieces)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}<title>{_plain(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def element(tag: str, text: str, *, style: str = "") -> str:
    """Return an element with plain text; `style` is a class of the page's style sheet."""
    mark = f' class="{style}"' if style else ""
    return f"<{tag}{mark}>{_plain(text)}</{tag}>"


def bullets(lines: Iterable[str]) -> str:
    """Return a bullet list of plain-text lines."""
    return "<ul>" + "".join(element("li", line) for line in lines) + "</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text with names in the first column and numbers in the others."""
    body = [f"<tr>{''.join(element('td', cell) for cell in row)}</tr>" for row in rows]
    heading = f"<tr>{''.join(element('th', cell) for cell in head)}</tr>"
    return f'<div class="table"><table><thead>{heading}</thead><tbody>{"".join(body)}</tbody></table></div>'


def picture(pixels: NDArray[np.uint8], name: str, caption: str, *, scale: float, invertible: bool) -> str:
    """Return a picture on white, with its caption.

    Args:
        pixels: [height, width, 3].
        name: alternative text.
        caption: plain text below the picture.
        scale: displayed width divided by the width in pixels.
        invertible: invert black and white on a dark page; else the picture stays on white.
    """
    data = base64.b64encode(png(pixels)).decode("ascii")
    width = round(pixels.shape[1] * scale)
    mark = "" if invertible else ' class="fixed"'
    image = f'<img{mark} alt="{_plain(name)}" width="{width}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}{element('figcaption', caption)}</figure>"


def _plain(text: str) -> str:
    return escape(printable(text))
