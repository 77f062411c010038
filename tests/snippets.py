"""The examples in our pages: found, and run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page (a path from the root) in a language, "" for those that name none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for its_language, block in found if its_language == language]


def commands(page: str) -> list[str]:
    """The lines of the blocks that name no language."""
    return [line for block in blocks(page, "") for line in block.splitlines()]


def run(page: str, number: int) -> None:
    """Run one Python example as a program of its own."""
    code = compile(blocks(page, "python")[number], f"{page}, example {number + 1}", "exec")
    exec(code, {"__name__": "__main__"})
