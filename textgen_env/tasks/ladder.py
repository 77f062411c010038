"""The built-in tasks whose optimum is known, each with the scores it declares."""

from __future__ import annotations

from collections.abc import Mapping

from textgen_env.tasks.fact_summ import RUNG as FACT_SUMM
from textgen_env.tasks.rung import Rung
from textgen_env.tasks.steer_kl import RUNG as STEER_KL

LADDER: Mapping[str, Rung] = {
    "FactSumm": FACT_SUMM,
    "SteerKL": STEER_KL,
}
"""Id without package and version ("Reverse") -> what is known of the task at its default arguments."""

RECOGNISABLE: Mapping[str, Rung] = {}
"""The same of the tasks that people know from elsewhere, built in at small scale."""
