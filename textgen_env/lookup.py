"""Finding things by name, with errors that name the mend."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint that ends an error message: the nearest option, else all of them.

    >>> did_you_mean("rouge_k", ["rouge_l", "bleu"])
    "did you mean 'rouge_l'? Known: bleu, rouge_l"
    """
    known = sorted(options)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listing = f"Known: {', '.join(known)}" if known else "None are known"
    return f"did you mean '{near[0]}'? {listing}" if near else listing


def load_entry_point(spec: str) -> Any:
    """Import ``"package.module:attribute"`` and return the attribute.

    Raises:
        ValueError: the string has no colon, or an empty side.
        ImportError: the module cannot be imported (the cause is chained).
        AttributeError: the module has no such attribute.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"'{spec}' is not of the form 'package.module:attribute'")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(
            f"cannot import module '{module_name}' of '{spec}': {error}. "
            "Is it installed, or does its folder stand on PYTHONPATH?"
        ) from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [other for other in vars(value) if not other.startswith("_")]
            raise AttributeError(f"module '{module_name}' has no '{attribute}'; {did_you_mean(name, public)}")
        value = getattr(value, name)
    return value
