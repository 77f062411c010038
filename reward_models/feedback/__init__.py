"""Human feedback: what annotators are asked, what they say, how far they agree, and files to learn from.

::

    with FeedbackStore("feedback.db", create=True) as store:
        store.add_items([Item.of("2 + 2 =", ["4", "5"], sources=["ppo", "sft"])])
        task = store.assign("ada")
        store.submit("ada", task.id, "a UUID of the client's", Prefer(0))
        export_judgements(store.judgements(), "preferences")
"""

from reward_models.feedback.agreement import Agreement, measure_agreement
from reward_models.feedback.annotators import SimulatedAnnotator, answer_all, gold_reward
from reward_models.feedback.answers import (
    Answer,
    FeedbackError,
    Prefer,
    Rank,
    Rate,
    Skip,
    TooLong,
    Write,
    read_answer,
)
from reward_models.feedback.assignment import Settings
from reward_models.feedback.export import export_judgements, import_judgements
from reward_models.feedback.items import Item, read_items, write_items
from reward_models.feedback.store import FeedbackStore
from reward_models.feedback.types import Conflict, Event, Guidelines, Judgement, Progress, Share, Task, UnknownTask

__all__ = [
    "Agreement",
    "Answer",
    "Conflict",
    "Event",
    "FeedbackError",
    "FeedbackStore",
    "Guidelines",
    "Item",
    "Judgement",
    "Prefer",
    "Progress",
    "Rank",
    "Rate",
    "Settings",
    "Share",
    "SimulatedAnnotator",
    "Skip",
    "Task",
    "TooLong",
    "UnknownTask",
    "Write",
    "answer_all",
    "export_judgements",
    "gold_reward",
    "import_judgements",
    "measure_agreement",
    "read_answer",
    "read_items",
    "write_items",
]
