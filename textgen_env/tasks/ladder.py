"""The built-in tasks whose optimum is known, each with the scores it declares."""

from __future__ import annotations

from collections.abc import Mapping

from textgen_env.tasks import steer_kl
from textgen_env.tasks.rung import Rung

LADDER: Mapping[str, Rung] = {
    "SteerKL": steer_kl.RUNG,
}
"""Id without package and version ("Reverse") -> what is known of the task at its default arguments."""

RECOGNISABLE: Mapping[str, Rung] = {}
"""The same of the tasks that people know from elsewhere, built in at small scale."""
