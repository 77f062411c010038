"""Command-line options from dataclass fields: one default and one help text, in one place."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal, NoReturn

from textgen_env.lookup import did_you_mean


class OptionParser(argparse.ArgumentParser):
    """An argparse parser that says which option a misspelled one was meant to be."""

    def __init__(self, **kwargs: Any) -> None:
        # An abbreviation that works today would mean something else the day a new option shares its letters.
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; an option that nobody knows is an error with the nearest known one."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            parser = getattr(parsed, "parser", self)
            word = extra[0].partition("=")[0]
            if not word.startswith("-"):
                parser.error(f"unexpected argument '{extra[0]}'")
            near = did_you_mean(word, [name for action in parser._actions for name in action.option_strings])
            parser.error(f"unknown option {word}; {near.partition('? Known')[0] + '?' if '? ' in near else near}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"unknown '{value}'; {did_you_mean(str(value), action.choices)}")

    def error(self, message: str) -> NoReturn:
        """Print the message, without the page of usage in which it would be lost, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n('{self.prog} --help' lists the options)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and room for the options beside their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(110, shutil.get_terminal_size().columns))


def add_options(
    parser: argparse.ArgumentParser, title: str, kind: type[Any], skip: Collection[str] = (), prefix: str = ""
) -> None:
    """Add one option a field of a dataclass, as an argument group.

    Options that are not given are absent from the parsed namespace: the dataclass's defaults hold.

    Args:
        parser: gets the group.
        title: the group's heading.
        kind: a dataclass; a field's ``metadata["help"]`` is its help text.
        skip: fields that are no options, or belong to another group.
        prefix: stands before the fields' names, such as ``"fit-"``, where two dataclasses share some.

    Raises:
        TypeError: a field has a type that a command line cannot give.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        group.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"),
            dest=f"{prefix}{field.name}".replace("-", "_"),
            default=argparse.SUPPRESS,
            help=_help(field),
            **_parsing(field.name, hints[field.name]),
        )


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata.get("help", "")
    if field.default is not None and field.default is not dataclasses.MISSING:
        shown = field.default
        if isinstance(shown, bool):
            shown = "yes" if shown else "no"
        elif isinstance(shown, tuple):
            shown = " ".join(map(str, shown))
        text += f" (default: {shown})"
    return text.replace("%", "%%")


def _parsing(name: str, hint: Any) -> dict[str, Any]:
    """argparse's arguments for a type: bool, int, float, str, Literal, a tuple of these, each perhaps or None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        parsing = _parsing(name, inner)
        if "type" not in parsing or "nargs" in parsing:
            raise TypeError(f"option {name}: cannot read {hint} from a command line")
        return {**parsing, "type": _or_none(parsing["type"])}
    if origin is tuple and arguments and len(set(arguments)) == 1:
        return {**_parsing(name, arguments[0]), "nargs": len(arguments)}
    if origin is Literal:
        return {"type": _one_of(arguments), "metavar": "{" + ",".join(map(str, arguments)) + "}"}
    if hint in (int, float):
        return {"type": _integer if hint is int else _number, "metavar": "N" if hint is int else "X"}
    if hint in (str, Any):  # Any: a string here, where Python code may give an object
        return {"type": str, "metavar": name.rsplit("_", 1)[-1].upper()}
    raise TypeError(f"option {name}: cannot read {hint} from a command line")


def _integer(text: str) -> int:
    try:
        return int(text)  # which also reads 200_000
    except ValueError:
        if _number(text).is_integer():  # 2e5
            return int(float(text))
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else read(text)


def _one_of(choices: tuple[Any, ...]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        for choice in choices:
            if text == str(choice):
                return choice
        raise argparse.ArgumentTypeError(f"'{text}': {did_you_mean(text, map(str, choices))}")

    return read
