"""``textgen attention``: what every token of a text looks at."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from agents.attention.page import attention_lines, write_attention_page
from agents.attention.weights import attention
from agents.policy import TextPolicy
from agents.saved import load_saved, open_saved

_ATTENTION = """Show what every token of a text looks at: the attention weights of every layer and head, and their
rollout over the layers. Prints the largest shares a token, and writes a page on which tokens, layers and heads can be
chosen. Weights say where a model reads, not why it says what it says."""

_EPILOG = """examples:
  textgen attention ./my-model --text "The cat sat on the"
  textgen attention runs/NewsSummary-ppo-20260101-120000 --text "Rain fell all night." --new-tokens 20
"""


def add_attention_command(commands: Any) -> None:
    """Add ``attention`` to the parser's sub-commands."""
    parser = commands.add_parser(
        "attention", help="show what every token of a text looks at", description=_ATTENTION, epilog=_EPILOG
    )
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run's folder, a model's folder or a hub name")
    parser.add_argument("--text", required=True, help="the text")
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="let the model go on, the most likely token each time, for at most so many (default: 0)",
    )
    parser.add_argument("--output", default="attention.html", metavar="FILE", help="default: attention.html")
    parser.set_defaults(command=_attention, parser=parser)


def _attention(arguments: argparse.Namespace) -> int:
    if arguments.new_tokens < 0:
        raise ValueError(f"--new-tokens must be at least 0, got {arguments.new_tokens}")
    agent = load_saved(open_saved(arguments.source))
    tokenizer = agent.tokenizer
    if tokenizer is None:
        raise ValueError(f"'{arguments.source}' knows no tokenizer: name its model's folder")
    ids = tokenizer.encode_prompt(arguments.text).tolist()
    written = _greedy(agent.policy, ids, tokenizer.eos_ids, arguments.new_tokens)
    found = attention(agent.policy.model, tokenizer, [*ids, *written], written=len(written))
    layers, heads = found.weights_LHSS.shape[:2]
    about = f"{arguments.source}, {layers} layers of {heads} heads, {len(found.tokens)} tokens" + (
        f", the last {len(written)} (dotted) its own" if written else ""
    )
    output = Path(arguments.output)
    write_attention_page(output, found, title="What each token looks at", about=f"{about}.")
    print(about, "\n".join(attention_lines(found)), f"page: {output}", sep="\n\n")
    return 0


@torch.no_grad()
def _greedy(policy: TextPolicy, ids: list[int], eos_ids: Collection[int], count: int) -> list[int]:
    """The tokens that the model goes on with, EOS left out: ids, since a text read again may have others."""
    written: list[int] = []
    while len(written) < count:
        prefix = torch.tensor([[*ids, *written]], device=policy.device)
        places = torch.arange(prefix.shape[1], device=policy.device)
        logits_1V, _ = policy(prefix, places[None], places[-1:])
        token = int(logits_1V.argmax())
        if token in eos_ids:
            break
        written.append(token)
    return written
