"""The credit of every token as one HTML page, and as lines for a terminal. Neither interprets what a model wrote."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agents.credit import TextCredit, TokenCredit
from agents.document import Heading, Paragraph, Table, Texts, html_of, html_page

Read = Callable[[TokenCredit], float | None]
_BAND = 14
"""Tokens side by side under a text: more would not fit the page."""

# Drawn as bars: row -> (where it is read, what it is, its unit).
_BARS: dict[str, tuple[Read, str, str]] = {
    "advantage": (
        lambda token: token.advantage,
        "A: how much better the text went, from this token on, than the baseline had expected before it. "
        "What an update makes likelier (blue) or less likely (orange)",
        "reward",
    ),
    "value": (lambda token: token.value, "V: what the critic expects, before this token, still to come", "reward"),
    "reward": (lambda token: token.reward, "r: what the environment paid for this token, before any charge", "reward"),
    "KL": (
        lambda token: token.kl,
        "log π − log π_ref of this token: positive where the policy likes it better than the reference does. "
        "The sum is the completion's",
        "nats",
    ),
}
# Written as figures only.
_FIGURES: dict[str, tuple[Read, str, str]] = {
    "probability": (lambda token: token.probability, "π of this token, at the sampling temperature", ""),
    "entropy": (lambda token: token.entropy, "of the distribution that this token was drawn from", "nats"),
}


def write_credit_page(path: Path, texts: Sequence[TextCredit], *, title: str, about: str) -> None:
    """Write `credit_page` to a file.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(credit_page(texts, title=title, about=about), encoding="utf-8")


def credit_page(texts: Sequence[TextCredit], *, title: str, about: str) -> str:
    """One HTML page, light or dark as the reader prefers, that runs no script and asks nobody for anything.

    Args:
        texts: what `credit` found, at least one; colours and bars have one scale for all of them.
        title: the page's heading.
        about: a sentence under it: which agent, which prompts.
    """
    tokens = [token for text in texts for token in text.tokens]
    scales = {name: max(abs(read(token) or 0.0) for token in tokens) for name, (read, *_) in _rows(tokens)}
    body = [html_of(Heading(title, level=1)), html_of(Paragraph(about)), *_scale(texts, scales["advantage"])]
    for number, text in enumerate(texts, start=1):
        body += _text(number, text, scales)
    body += _glossary(list(scales))
    return html_page(title, body, _CREDIT_STYLE)


def credit_lines(text: TextCredit) -> Texts:
    """One text for a terminal: prompt, completion with its figures, and every token with its advantage."""
    tokens = " ".join(f"{visible(token)}({token.advantage:+.2f})" for token in text.tokens)
    return Texts(
        [("Prompt", text.prompt), ("Completion", text.completion), ("Totals", _totals(text)), ("Advantages", tokens)]
    )


def visible(token: TokenCredit) -> str:
    """The token with a mark for everything that would not be seen: ``·`` a space, ``◌`` a part of a character."""
    return visible_text(token.text)


def visible_text(text: str) -> str:
    """A token's text as `visible` shows it."""
    marks = {" ": "·", "\n": "↵", "\t": "⇥"}
    return "".join(marks.get(c, c if c.isprintable() else "\ufffd") for c in text) or "◌"


def _rows(tokens: Sequence[TokenCredit]) -> list[tuple[str, tuple[Read, str, str]]]:
    """The measures that these texts have: without a critic there is no value, without a reference no KL."""
    return [(name, row) for name, row in _BARS.items() if any(row[0](token) is not None for token in tokens)]


def _scale(texts: Sequence[TextCredit], most: float) -> Iterator[str]:
    """What the colours mean, and what the advantages were computed from."""
    yield (
        f'<p class="scale"><span>−{most:.3f}</span><i></i><span>+{most:.3f}</span>'
        "<span>advantage of a token; point at one for all its figures</span></p>"
    )
    charge = texts[0].kl_coef_per_sequence
    yield html_of(
        Paragraph(
            "Advantages are the agent's own, before whitening, of the reward"
            f"{f' less {charge:.3g} for each nat of KL' if charge else ''}."
            f"{'' if any(token.value is not None for token in texts[0].tokens) else ' There is no critic.'}"
        )
    )


def _glossary(names: Sequence[str]) -> Iterator[str]:
    measures = {**{name: _BARS[name] for name in names}, **_FIGURES}
    yield html_of(Heading("What the figures mean"))
    yield html_of(
        Table(
            ["", "meaning", "unit"], [(name, what, unit) for name, (_, what, unit) in measures.items()], numeric=False
        )
    )


def _text(number: int, text: TextCredit, scales: dict[str, float]) -> Iterator[str]:
    yield html_of(Heading(f"Text {number}"))
    items = [("Prompt", text.prompt)]
    if text.reference is not None:
        items.append(("Reference", text.reference))
    yield html_of(Texts(items))
    tokens = "".join(_token(token, scales["advantage"]) for token in text.tokens)
    yield f'<p class="totals">Completion: {html.escape(_totals(text))}</p>\n<p class="completion">{tokens}</p>'
    for start in range(0, len(text.tokens), _BAND):
        yield _strip(text.tokens[start : start + _BAND], scales)


def _totals(text: TextCredit) -> str:
    """The text's totals: score, components where there are several, KL, how it ended."""
    parts = [f"reward {text.score:.3f}"]
    if len(text.components) > 1:
        parts += [f"{name} {value:.3f}" for name, value in text.components.items()]
    if text.others_score is not None:
        parts.append(f"the prompt's other samples {text.others_score:.3f}")
    if text.kl is not None:
        parts.append(f"KL {text.kl:.2f} nats")
    parts.append("cut by the length cap" if text.stop_reason == "length" else "ended by EOS")
    return ", ".join(parts)


def _token(token: TokenCredit, scale: float) -> str:
    """The token in running text, in the colour of its advantage, all figures in its tooltip."""
    plain = bool(token.text) and not token.special
    shown = html.escape(token.text.replace("\n", "↵\n") if plain else visible(token).strip("·"))
    figures = [
        f"{name} {_figure(value, name)}{unit and f' {unit}'}"
        for name, (read, _, unit) in {**_BARS, **_FIGURES}.items()
        if (value := read(token)) is not None
    ]
    tooltip = html.escape("\n".join([f"‘{token.text}’", *figures, f"log-probability {token.log_prob:.3f} nats"]))
    kind = f"{_sign(token.advantage)}{' special' if token.special else ''}"
    return f'<span class="{kind}" style="--x:{_share(token.advantage, scale)}" title="{tooltip}">{shown}</span>'


def _strip(tokens: Sequence[TokenCredit], scales: dict[str, float]) -> str:
    """A column a token: the token, a bar and a figure for each measure."""
    head = "".join(f"<th>{html.escape(visible(token))}</th>" for token in tokens)
    rows = [f"<tr><th></th>{head}</tr>"]
    for name, scale in scales.items():
        values = [_BARS[name][0](token) for token in tokens]
        cells = "".join(
            "<td>–</td>"
            if value is None
            else f'<td><b class="{_sign(value)}" style="--x:{_share(value, scale)}"></b>{_figure(value, name)}</td>'
            for value in values
        )
        rows.append(f'<tr class="bars"><th>{name}</th>{cells}</tr>')
    for name, (read, *_) in _FIGURES.items():
        cells = "".join(f"<td>{_figure(read(token), name)}</td>" for token in tokens)
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    return f'<div class="wide"><table class="strip">{"".join(rows)}</table></div>'


def _sign(value: float) -> str:
    return "up" if value >= 0 else "down"


def _share(value: float, scale: float) -> str:
    return f"{abs(value) / scale if scale else 0:.3f}"


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if name in ("probability", "entropy"):
        return f"{value:.3f}"
    return "0" if value == 0 else f"{value:+.3f}".replace("-", "−")


# Blue and orange differ for every kind of colour vision, and the bars say the sign without any colour.
_CREDIT_STYLE = """
:root { --up: 37 99 184; --down: 212 105 30; }
.up { background: rgb(var(--up) / calc(var(--x) * .6)); } .down { background: rgb(var(--down) / calc(var(--x) * .6)); }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; font-size: .9rem; }
.scale i { width: 10rem; height: 1rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, rgb(var(--down) / .6), transparent 50%, rgb(var(--up) / .6)); }
.totals { font-size: .8rem; color: var(--faint); }
.completion { font-size: 1.15rem; line-height: 1.9; color: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
.completion span { padding: .2em 0; border-radius: 3px; box-shadow: inset 1px 0 rgb(128 128 128 / .3); }
.completion .special { margin-left: .4em; padding: .2em .4em; font: .75em ui-monospace, monospace; }
.strip { margin: .6rem 0 1rem; font-size: .75rem; }
.strip th, .strip td, .strip tr + tr td { padding: .15rem .4rem; border: 0; text-align: center; white-space: pre; }
.strip tr > th:first-child { position: sticky; left: 0; padding-left: 0; text-align: left; background: var(--paper); }
.strip tr:first-child th { border-bottom: 1px solid var(--line); }
.bars td { vertical-align: bottom; } .strip .bars > th:first-child { vertical-align: top; padding-top: .8rem; }
.words td:last-child { white-space: nowrap; }
.bars b { display: block; position: relative; height: 2.4rem; background: linear-gradient(var(--line), var(--line))
  center / 100% 1px no-repeat; }
.bars b::after { content: ""; position: absolute; left: 20%; right: 20%; height: calc(var(--x) * 50%); }
.bars .up::after { bottom: 50%; background: rgb(var(--up)); }
.bars .down::after { top: 50%; background: rgb(var(--down)); }
@media (prefers-color-scheme: dark) { :root { --up: 96 157 240; --down: 240 146 80; } }
"""
