"""``textgen feedback``: a store of items and judgements from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.config import option
from agents.options import OptionParser, add_options
from reward_models.feedback import (
    Agreement,
    FeedbackStore,
    Settings,
    export_judgements,
    import_judgements,
    measure_agreement,
    read_items,
)
from reward_models.feedback.agreement import RESAMPLES
from reward_models.feedback.items import SCALE

_FEEDBACK = """Human feedback in one file, the STORE: texts to rate, to compare, to rank, prompts to write for, and what
annotators say about them."""

_ADD = """Add items from a JSON-lines file, and say how they are handed out. The store is made where there is none.
  to rate         {"prompt": "...", "completions": ["..."]}, perhaps "scale": [1, 7]
  to compare      {"prompt": "...", "completions": ["...", "..."]}
  to rank         {"prompt": "...", "completions": ["...", "...", "..."]}
  to demonstrate  {"prompt": "..."}
Each may have "sources" (which policy wrote which text; never shown), "id", and "gold", the known answer of an item that
tests annotators: {"preferred": 0}, {"tie": true}, {"rating": 5} or {"ranking": [2, 0, 1]}."""

_ADD_EPILOG = """examples:
  textgen feedback add feedback.db --items items.jsonl --overlap 3 --guidelines guidelines.txt
  textgen feedback add feedback.db --gold-share 0.1 --repeat-share 0.05
"""

_SERVE = """Open the page on which annotators judge, and print its links. Whoever has the annotators' link can come in
and say a name; with --annotator, each has a link of their own. The overview shows how far all have come and how far
they agree: it is for you, since who sees that while judging is no longer independent. Ctrl-C ends the page; its links
end with it."""

_SERVE_EPILOG = """examples:
  textgen feedback serve feedback.db
  textgen feedback serve feedback.db --annotator ada --annotator bob
  to phones in a network that you trust, if this is the machine's address in it:
    textgen feedback serve feedback.db --host 192.168.1.5
  behind a proxy that brings TLS:
    textgen feedback serve feedback.db --url https://feedback.example.org
"""

_EXPORT = """Write the judgements, a file a kind: ratings, comparisons, rankings (which 'textgen reward train' reads)
and demonstrations (which 'textgen train --data' reads). Annotators go by pseudonyms."""

_IMPORT = """Read judgements from JSON lines, exported ones or {"prompt", "chosen", "rejected"}, {"prompt", "ranking"},
{"prompt", "completion", "rating"}, {"prompt", "reference"}. The store is made where there is none."""

_AGREEMENT = """How far annotators agree: with each other (raw and beyond chance, 95 % intervals, bootstrap over
items), with known answers, and with themselves when items were shown again."""

_FORGET = """Delete a person: name, pseudonym, every answer and trace. There is no way back. Items that lose an answer
wait for another one."""


@dataclass
class HandOutOptions:
    """How items are handed out: the `Settings`; those that are not given stay as they are."""

    overlap: int = option(Settings.overlap, "annotators who judge an item")
    gold_share: float = option(Settings.gold_share, "share of an annotator's tasks that have a known answer")
    repeat_share: float = option(Settings.repeat_share, "share that are the annotator's own items once more")
    repeat_gap: int = option(Settings.repeat_gap, "at least so many tasks later")
    lease_minutes: float = option(Settings.lease_minutes, "how long an open task is kept for who has it")
    seed: int = option(Settings.seed, "draws the order of items and texts, and where gold items and repeats stand")


def add_feedback_commands(commands: Any) -> None:
    """Add ``feedback`` to the sub-commands: add, serve, export, import, agreement, progress, forget."""
    feedback = commands.add_parser("feedback", help="collect and use human judgements", description=_FEEDBACK)
    inner = feedback.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=OptionParser)

    add = _command(inner, "add", "add items, and say how they are handed out", _ADD, epilog=_ADD_EPILOG)
    add.add_argument("--items", metavar="FILE", help="the items, a .jsonl file")
    add.add_argument(
        "--kind", choices=("rating", "comparison", "ranking", "demonstration"), help="of items that do not say theirs"
    )
    add.add_argument("--guidelines", metavar="FILE", help="what annotators shall go by, a text file; a new version")
    add_options(add, "handing out (what is not given stays as it is)", HandOutOptions)
    add.set_defaults(command=_add, parser=add)

    serve = _command(inner, "serve", "open the page on which annotators judge", _SERVE, epilog=_SERVE_EPILOG)
    serve.add_argument(
        "--annotator",
        action="append",
        default=[],
        metavar="NAME",
        dest="annotators",
        help="who gets a link of their own; may be given again",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any but this machine's own opens the page to others (default: 127.0.0.1)",
    )
    serve.add_argument("--port", type=int, default=8765, metavar="N", help="0 takes a free one (default: 8765)")
    serve.add_argument("--url", help="how annotators reach the page, where a proxy or tunnel stands in between")
    serve.set_defaults(command=_serve, parser=serve)

    export = _command(inner, "export", "write the judgements as files to learn from", _EXPORT)
    export.add_argument("--output", required=True, metavar="FOLDER", help="where to write")
    export.add_argument("--format", default="jsonl", choices=("jsonl", "csv"), help="default: jsonl")
    export.add_argument(
        "--validation-share",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the prompts to hold out, in files of their own; a prompt's hash decides (default: 0)",
    )
    export.set_defaults(command=_export, parser=export)

    read = _command(inner, "import", "read judgements", _IMPORT)
    read.add_argument("--data", required=True, metavar="FILE", help="the judgements, a .jsonl file")
    read.add_argument(
        "--annotator", default="imported", metavar="NAME", help="of records without one (default: imported)"
    )
    low, high = SCALE
    read.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=SCALE,
        metavar=("LOW", "HIGH"),
        help=f"of ratings without one (default: {low:g} {high:g})",
    )
    read.set_defaults(command=_import, parser=read)

    agree = _command(inner, "agreement", "how far annotators agree", _AGREEMENT)
    agree.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="ratings so near are the same (default: 0)"
    )
    agree.add_argument(
        "--resamples", type=int, default=RESAMPLES, metavar="N", help=f"of the bootstrap (default: {RESAMPLES})"
    )
    agree.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    agree.set_defaults(command=_agreement, parser=agree)

    progress = _command(inner, "progress", "how far annotation has come", "How far annotation has come, by annotator.")
    progress.set_defaults(command=_progress, parser=progress)

    forget = _command(inner, "forget", "delete a person", _FORGET)
    forget.add_argument("annotator", metavar="NAME", help="the annotator's name, or pseudonym")
    forget.set_defaults(command=_forget, parser=forget)


def _command(inner: Any, name: str, help: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = inner.add_parser(name, help=help, description=description, epilog=epilog)
    parser.add_argument("store", metavar="STORE", help="the store's file")
    return parser


def _add(arguments: argparse.Namespace) -> int:
    names = [field.name for field in dataclasses.fields(HandOutOptions)]
    changes = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if arguments.items is None and arguments.guidelines is None and not changes:
        raise ValueError("nothing to do: say --items, --guidelines or how items are handed out")
    # All is read before a store is made of it.
    items = [] if arguments.items is None else read_items(arguments.items, arguments.kind)
    guidelines = None if arguments.guidelines is None else Path(arguments.guidelines).read_text(encoding="utf-8")
    with FeedbackStore(arguments.store, create=True) as store, store.transaction():
        store.configure(**changes)  # first: the seed draws the order of what is added
        new = store.add_items(items)
        version = store.guidelines().version if guidelines is None else store.set_guidelines(guidelines)
        settings = store.settings
    print(f"items        {new} new, {len(items) - new} were there")
    print(f"guidelines   {f'version {version}' if version else 'none'}")
    print("handing out  " + ", ".join(f"{name} {getattr(settings, name)}" for name in names))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from reward_models.feedback.security import Access, Site
        from reward_models.feedback.server import create_app, listening, run
    except ImportError as error:
        raise ImportError(f"the page needs packages ({error}): pip install textgen-env[feedback]") from error
    site = Site(arguments.host, arguments.url)
    access = Access(arguments.annotators)
    with FeedbackStore(arguments.store) as store, listening(arguments.host, arguments.port) as listener:
        address = site.address(listener.getsockname()[1])
        if not site.local and not site.encrypted:
            print(
                f"warning: other machines can reach {address}, and what is sent is not encrypted: "
                "use a network that you trust, or a proxy with TLS and --url",
                file=sys.stderr,
            )
        if not store.items():
            print(f"warning: '{arguments.store}' has no items yet: textgen feedback add", file=sys.stderr)
        for name, link in access.links(address).items():
            print(f"{name:<12} {link}")
        print("Ctrl-C ends it.", flush=True)
        run(create_app(store, access, site), listener)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    format: Literal["jsonl", "csv"] = arguments.format
    with FeedbackStore(arguments.store) as store:
        written = export_judgements(
            store.judgements(), arguments.output, format=format, validation=arguments.validation_share
        )
    for path, count in written.items():
        print(f"{path}: {count}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    low, high = arguments.scale
    if not Path(arguments.data).is_file():  # before a store is made for nothing
        raise FileNotFoundError(f"there is no file '{arguments.data}'")
    with FeedbackStore(arguments.store, create=True) as store:
        new, known = import_judgements(store, arguments.data, annotator=arguments.annotator, scale=(low, high))
    print(f"judgements   {new} new, {known} were there")
    return 0


def _agreement(arguments: argparse.Namespace) -> int:
    with FeedbackStore(arguments.store) as store:
        found = measure_agreement(
            store.judgements(), tolerance=arguments.tolerance, resamples=arguments.resamples, seed=arguments.seed
        )
    lines = agreement_lines(found)
    print("\n".join(lines or ["no item has two answers, and no known answer was asked for yet"]))
    return 0


def agreement_lines(found: Agreement) -> list[str]:
    """Every figure on a line, under what it is about."""
    lines = []
    for kind, one in found.kinds.items():
        lines.append(
            f"{kind}s: {one.items} items with two answers or more, {one.answers} answers, {one.annotators} annotators"
        )
        lines += [f"  {name:<14}{figure}" for name, figure in one.figures.items()]
    for title, tallies in (("known answers given", found.gold), ("same answer again", found.repeats)):
        if tallies:
            lines.append(title)
            lines += [f"  {name}  {tally.hits} of {tally.total}: {tally.share}" for name, tally in tallies.items()]
    if found.first_shown.total:
        tally = found.first_shown
        lines.append(f"the text shown first preferred: {tally.hits} of {tally.total}: {tally.share}")
    return lines


def _progress(arguments: argparse.Namespace) -> int:
    with FeedbackStore(arguments.store) as store:
        found = store.progress()
    print(f"items        {found.complete} of {found.items} complete")
    print(f"answers      {found.answers} of {found.wanted} wanted")
    for name, share in found.annotators.items():
        pace = "" if share.median_seconds is None else f", {share.median_seconds:.1f} s an answer (median)"
        print(
            f"{name} ({share.pseudonym}): {share.answered} answered, {share.skipped} skipped, {share.left} left{pace}"
        )
    return 0


def _forget(arguments: argparse.Namespace) -> int:
    with FeedbackStore(arguments.store) as store:
        print(f"forgotten, with {store.forget(arguments.annotator)} answers")
    return 0
