"""`python -m benchmarks run | report | throughput | gpu`, each with its own --help."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "run": ("benchmarks.runs", "contenders on tasks, several seeds, a JSON line a run"),
    "report": ("benchmarks.report", "tables and curves of such lines"),
    "throughput": ("benchmarks.throughput", "what the library costs, next to the bare model and to other libraries"),
    "gpu": ("benchmarks.gpu", "whether decoding and updates run at the speed of a GPU"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a command's own ``main``."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name not in _COMMANDS:
        listing = "\n".join(f"  {known:12}{what}" for known, (_, what) in _COMMANDS.items())
        asked = name in ("-h", "--help")
        print(f"usage: python -m benchmarks COMMAND ...\n\n{listing}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    found = importlib.import_module(_COMMANDS[name][0]).main(rest)
    return found if isinstance(found, int) else 0


if __name__ == "__main__":
    sys.exit(main())
