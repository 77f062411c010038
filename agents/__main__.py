"""``python -m agents`` is ``textgen``."""

import sys

from agents.cli import main

sys.exit(main())
