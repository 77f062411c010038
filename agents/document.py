"""A document as a list of blocks, written as Markdown or as one HTML file that asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Drawing:
    """A picture in finished HTML, all text in it escaped already: a block, or a cell of a table."""

    html: str
    words: str = ""
    """What Markdown says instead, as plain text; nothing if empty."""


@dataclass(frozen=True)
class Table:
    """Rows under a header. The first column names the row, the others hold figures unless ``numeric`` is off."""

    header: Sequence[str | Drawing]
    rows: Sequence[Sequence[str | Drawing]]
    numeric: bool = True


@dataclass(frozen=True)
class Texts:
    """Labelled texts that somebody (or some model) wrote: shown exactly, interpreted never."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the document."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Group:
    """Blocks that belong together. Markdown shows them as they are."""

    blocks: Sequence[Block]
    style: str = ""
    """A class of the page's CSS."""
    anchor: str = ""
    """What a link inside the page leads to."""
    summary: str = ""
    """If given, the page shows this line alone until it is opened."""


Block: TypeAlias = Heading | Paragraph | Table | Texts | Picture | Drawing | Group


def aligned(table: Table) -> str:
    """The table as lines of text, for a terminal: the first column from the left, figures from the right."""
    rows = [[_words(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in rows)


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub-flavoured Markdown; a picture is a link to its file."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain_markdown(block.text)}"
    if isinstance(block, Paragraph):
        return _plain_markdown(block.text)
    if isinstance(block, Picture):
        return f"![{_plain_markdown(block.caption)}]({block.path.name})"
    if isinstance(block, Table):
        align = ":---" if not block.numeric else "---:"
        head, *rows = [[_plain_markdown(_words(cell)) for cell in row] for row in (block.header, *block.rows)]
        lines = [head, [":---", *[align] * (len(head) - 1)], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(block, Drawing):
        return _plain_markdown(block.words)
    if isinstance(block, Group):
        return to_markdown(block.blocks).rstrip("\n")
    return "\n\n".join(f"**{_plain_markdown(label)}**\n\n{_fenced(text)}" for label, text in block.items)


def _words(cell: str | Drawing) -> str:
    return cell.words if isinstance(cell, Drawing) else cell


def _plain_markdown(text: str) -> str:
    text = re.sub(r"[\\`*\[\]<>|#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)  # an underscore in a word is one
    return text.replace("\n", " ")


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def to_html(blocks: Sequence[Block]) -> str:
    """The blocks as one HTML page: the style and the pictures are inside it, all text is escaped."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return html_page(title, [html_of(block) for block in blocks])


def html_page(title: str, body: Sequence[str], style: str = "", script: str = "") -> str:
    """A page of finished HTML parts, light or dark as the reader prefers.

    Without a script, the page's policy forbids every script; with one, every other.

    Args:
        title: the page's title, in plain text.
        body: parts of HTML, escaped already.
        style: CSS rules beside the page's own; ``--line``, ``--faint``, ``--soft`` and ``--paper`` are its colours.
        script: JavaScript of our own, without anything that a user or a model wrote.
    """
    allowed = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"; script-src 'sha256-{digest}'"
        body = [*body, f"<script>{script}</script>"]
    return _PAGE.format(title=html.escape(title), style=_STYLE + style, body="\n".join(body), allowed=allowed)


def html_of(block: Block) -> str:
    """One block as HTML, its text escaped."""
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = html.escape(block.caption)
        return f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    if isinstance(block, Table):
        head = "".join(f"<th>{_cell(cell)}</th>" for cell in block.header)
        rows = "\n".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
        kind = "figures" if block.numeric else "words"
        return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n{rows}\n</table></div>'
    if isinstance(block, Drawing):
        return block.html
    if isinstance(block, Group):
        return _group(block)
    items = "\n".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(text) or '<i>(empty)</i>'}</dd>" for label, text in block.items
    )
    return f"<dl>{items}</dl>"


def _cell(cell: str | Drawing) -> str:
    return cell.html if isinstance(cell, Drawing) else html.escape(cell)


def _group(group: Group) -> str:
    named = {"class": group.style, "id": group.anchor}
    attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in named.items() if value)
    body = "\n".join(html_of(block) for block in group.blocks)
    if group.summary:
        return f"<details{attributes}><summary>{html.escape(group.summary)}</summary>\n{body}\n</details>"
    return f"<section{attributes}>\n{body}\n</section>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #4a5163; --faint: #6b7285; --line: #c9cedb;
        --hair: #e6e9f0; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ef; --soft: #b4bacb; --faint: #98a0b5; --line: #3b4254; --hair: #2a3040; --paper: #14171f; }
  img { background: #fff; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
       margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; color: var(--soft); }
img { width: 100%; height: auto; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
.figures { width: 100%; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: .35rem .9rem .35rem 0; vertical-align: top; } tr + tr td { border-top: 1px solid var(--hair); }
.figures th + th, .figures td + td { text-align: right; white-space: nowrap; padding-right: 0; padding-left: .9rem; }
.words td + td { overflow-wrap: anywhere; color: var(--soft); }
summary { cursor: pointer; color: var(--soft); }
dl { margin: 0 0 1rem; border-left: 3px solid var(--line); padding-left: 1rem; }
dt { font-size: .8rem; color: var(--faint); margin-top: .6rem; } dd { margin: 0; white-space: pre-wrap;
     overflow-wrap: anywhere; }
"""

# The policy forbids what escaping already prevents: no script but our own, no request.
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}">
<title>{title}</title>
<style>{style}</style>
{body}
</html>
"""
