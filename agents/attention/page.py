"""The attention of a text as one HTML page: readable as it stands, and with a small script, token by token."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agents.attention.weights import Array, Head, TextAttention, heads
from agents.credit_page import visible_text
from agents.document import Group, Heading, Paragraph, Table, html_of, html_page

_TOP = 4

CAVEATS = (
    "A weight says where a head reads, not why the model says what it says: quite other weights often give the same "
    "answer (Jain and Wallace, 2019, “Attention is not explanation”). Take a pattern for a question, and change "
    "the text to answer it.",
    "The rollout multiplies the layers' mean weights, one half of each token passing every layer unread (Abnar and "
    "Zuidema, 2020). What is read, and what the layers make of it, is not in it.",
    "Much weight on the first token mostly means that a head had nothing to do (Xiao et al., 2024).",
)


def write_attention_page(path: Path, found: TextAttention, *, title: str, about: str) -> None:
    """Write `attention_page` to a file.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(attention_page(found, title=title, about=about), encoding="utf-8")


def attention_page(found: TextAttention, *, title: str, about: str) -> str:
    """One HTML page, light or dark as the reader prefers, that asks nobody for anything.

    Without a script it shows the rollout: the text in the colours of what its last token looks at, and a table of what
    each token looks at most. The script (ours: the page's policy refuses any other) chooses token, layer and head.

    Args:
        found: the weights.
        title: the page's heading.
        about: a sentence under it: which model.
    """
    rollout_SS = found.rollout_SS
    body = [
        html_of(Heading(title, level=1)),
        html_of(Paragraph(about)),
        *(html_of(Paragraph(caveat)) for caveat in CAVEATS[:1]),
        _controls(found),
        _text(found, rollout_SS),
        html_of(Heading("What each token looks at")),
        html_of(
            Paragraph(
                "By rollout over all layers, the tokens with the largest shares; and the one head that looks hardest "
                "at a token other than itself and the first."
            )
        ),
        html_of(_looks(found, rollout_SS)),
        html_of(Heading("What each head does")),
        html_of(Group([_heads(heads(found))], summary=f"{len(heads(found))} heads, means over the tokens")),
        html_of(Heading("How to read this")),
        *(html_of(Paragraph(caveat)) for caveat in CAVEATS[1:]),
    ]
    return html_page(title, body, _STYLE, _SCRIPT)


def _controls(found: TextAttention) -> str:
    """Shown by the script, which alone can use them. The weights are bytes in base 64: nothing that anybody wrote."""
    layers, count = found.weights_LHSS.shape[:2]
    options = ['<option value="0">all layers: rollout</option>']
    for layer in range(layers):
        inner = "".join(
            f'<option value="{1 + layer * count + head}">layer {layer + 1}, head {head + 1}</option>'
            for head in range(count)
        )
        options.append(f'<optgroup label="layer {layer + 1}">{inner}</optgroup>')
    return (
        f'<p id="controls" hidden data-tokens="{len(found.tokens)}" data-weights="{_packed(found)}">'
        f'<label>Weights of <select id="view">{"".join(options)}</select></label> '
        "<span>Point at a token, or go to it with the tab key, to see what it looks at; click to hold it.</span></p>"
    )


def _packed(found: TextAttention) -> str:
    """Rollout, then every head: the lower triangle row by row, a byte a weight."""
    size = len(found.tokens)
    maps_MSS = np.concatenate([found.rollout_SS[None], found.weights_LHSS.reshape(-1, size, size)])
    rows, columns = np.tril_indices(size)
    lower = maps_MSS[:, rows, columns]
    return base64.b64encode(np.rint(np.clip(lower, 0, 1) * 255).astype(np.uint8).tobytes()).decode()


def _text(found: TextAttention, rollout_SS: Array) -> str:
    """The text in the colours of its last token's rollout."""
    shares = rollout_SS[-1]
    most = float(shares.max())
    first_written = len(found.tokens) - found.written
    spans = "".join(
        f'<span tabindex="0" class="{_kind(index, first_written, len(shares))}" style="--x:{share / most:.3f}" '
        f'title="{html.escape(f"{visible_text(token)}  {share:.3f}")}">{_shown(token)}</span>'
        for index, (token, share) in enumerate(zip(found.tokens, shares.tolist(), strict=True))
    )
    looks = html.escape(_largest(found, shares))
    return (
        f'<p class="attended" id="text">{spans}</p>\n<p id="told" aria-live="polite">'
        f"{html.escape(visible_text(found.tokens[-1]))} looks at {looks}</p>"
    )


def _kind(index: int, first_written: int, size: int) -> str:
    return " ".join(
        ["token", *(["written"] if index >= first_written else []), *(["from"] if index == size - 1 else [])]
    )


def _shown(token: str) -> str:
    return html.escape(token.replace("\n", "↵\n")) if token.strip(" ") else html.escape(visible_text(token))


def _looks(found: TextAttention, rollout_SS: Array) -> Table:
    rows = []
    for index, token in enumerate(found.tokens):
        rows.append((visible_text(token), _largest(found, rollout_SS[index, : index + 1]), _hardest(found, index)))
    return Table(["token", "looks at (rollout)", "hardest head"], rows, numeric=False)


def _largest(found: TextAttention, shares_S: Array) -> str:
    order = np.argsort(-shares_S, kind="stable")[:_TOP]
    return ", ".join(f"{visible_text(found.tokens[at])} {shares_S[at]:.2f}" for at in order)


def _hardest(found: TextAttention, index: int) -> str:
    """The largest weight on a token between the first and this one."""
    if index < 2:
        return "–"
    between_LHK = found.weights_LHSS[:, :, index, 1:index]
    layer, head, at = np.unravel_index(int(between_LHK.argmax()), between_LHK.shape)
    weight = between_LHK[layer, head, at]
    return f"layer {layer + 1}, head {head + 1}: {visible_text(found.tokens[int(at) + 1])} {weight:.2f}"


def _heads(of_all: list[Head]) -> Table:
    rows = [
        (
            f"layer {one.layer}, head {one.head}",
            f"{one.first:.2f}",
            f"{one.itself:.2f}",
            f"{one.before:.2f}",
            f"{one.spread:.1f}",
        )
        for one in of_all
    ]
    return Table(["", "on the first token", "on itself", "on the one before", "spread over so many"], rows)


def attention_lines(found: TextAttention) -> Iterator[str]:
    """A line a token for a terminal: what it looks at, by rollout."""
    width = max(len(visible_text(token)) for token in found.tokens)
    rollout_SS = found.rollout_SS
    for index, token in enumerate(found.tokens):
        yield f"{visible_text(token):<{width}}  {_largest(found, rollout_SS[index, : index + 1])}"


_STYLE = """
:root { --look: 37 99 184; --hold: 212 105 30; }
.attended { font-size: 1.15rem; line-height: 2; color: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
.token { padding: .2em 0; border-radius: 3px; cursor: default; background: rgb(var(--look) / calc(var(--x) * .65));
  box-shadow: inset 1px 0 rgb(128 128 128 / .3); }
.written { text-decoration: underline dotted; text-underline-offset: .3em; }
.from, .token:focus { outline: 2px solid rgb(var(--hold)); outline-offset: 1px; }
.later { opacity: .45; }
#controls { font-size: .9rem; } #told { font-size: .9rem; min-height: 1.5em; }
select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line); border-radius: 4px; }
.words td { white-space: pre-wrap; }
@media (prefers-color-scheme: dark) { :root { --look: 96 157 240; --hold: 240 146 80; } }
"""

# Texts are read from the page and written as text, never as HTML.
_SCRIPT = """
(() => {
  const controls = document.getElementById("controls"), view = document.getElementById("view");
  const told = document.getElementById("told"), tokens = [...document.querySelectorAll("#text .token")];
  const size = Number(controls.dataset.tokens), triangle = size * (size + 1) / 2;
  const weights = Uint8Array.from(atob(controls.dataset.weights), c => c.charCodeAt(0));
  const names = tokens.map(token => token.title.slice(0, token.title.lastIndexOf("  ")));
  let shown = size - 1, held = false;
  function show(from) {
    shown = from;
    const start = Number(view.value) * triangle + from * (from + 1) / 2;
    const row = weights.subarray(start, start + from + 1), most = Math.max(1, ...row);
    tokens.forEach((token, to) => {
      const weight = to <= from ? row[to] : 0;
      token.style.setProperty("--x", weight / most);
      token.title = names[to] + "  " + (to <= from ? (weight / 255).toFixed(2) : "");
      token.classList.toggle("from", to === from);
      token.classList.toggle("later", to > from);
    });
    const order = [...row.keys()].sort((a, b) => row[b] - row[a] || a - b).slice(0, 4);
    told.textContent = names[from] + " looks at " +
      order.map(to => names[to] + " " + (row[to] / 255).toFixed(2)).join(", ");
  }
  tokens.forEach((token, index) => {
    token.addEventListener("mouseenter", () => { if (!held) show(index); });
    token.addEventListener("focus", () => { if (!held) show(index); });
    token.addEventListener("click", () => { held = !(held && shown === index); show(index); });
    token.addEventListener("keydown", event => { if (event.key === "Enter") token.click(); });
  });
  view.addEventListener("change", () => show(shown));
  controls.hidden = false;
})();
"""
