"""What a scorer is handed, checked before it is used: errors name the scorer and the text."""

from __future__ import annotations

from collections.abc import Sequence


def check_texts(name: str, **columns: Sequence[str] | None) -> None:
    """Refuse what no tokenizer can read. Columns that are None were not given, and are not looked at.

    Raises:
        TypeError: a text is not a string, or a column is one string instead of a list.
        ValueError: a text has half of a surrogate pair in it, which is no character; or the columns differ in length.
    """
    given = {column: texts for column, texts in columns.items() if texts is not None}
    for column, texts in given.items():
        if isinstance(texts, str):
            raise TypeError(f"{name} wants a list of {column}, got the string {texts!r:.80}")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name} scores strings; {column}[{index}] is {type(text).__name__} {text!r:.80}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{name} cannot read {column}[{index}]: {error.reason} at character {error.start}. Clean it with "
                    "text.encode('utf-8', 'replace').decode('utf-8')"
                ) from error
    if len({len(texts) for texts in given.values()}) > 1:
        lengths = " and ".join(f"{len(texts)} {column}" for column, texts in given.items())
        raise ValueError(f"{name} wants as many of each, got {lengths}")


def check_references(
    name: str, completions: Sequence[str], references: Sequence[Sequence[str]] | None
) -> Sequence[Sequence[str]]:
    """The references, at least one a completion.

    Raises:
        TypeError: a prompt's references are one string instead of a list, or hold something else than strings.
        ValueError: there are none at all, none for a completion, or too few lists.
    """
    if references is None:
        raise ValueError(f"{name} needs references to compare with: call it with references=")
    if len(references) != len(completions):
        raise ValueError(
            f"{name} wants as many of each, got {len(completions)} completions, {len(references)} references"
        )
    for index, targets in enumerate(references):
        if isinstance(targets, str):
            raise TypeError(f"{name} wants a list of references a prompt, got the string {targets!r:.80}")
        if not targets:
            raise ValueError(f"{name} needs a reference to compare with, and completion number {index} has none")
        check_texts(name, **{f"references[{index}]": targets})
    return references
