"""The built-in tasks whose optimum is known, each with the scores it declares."""

from __future__ import annotations

from collections.abc import Mapping

from textgen_env.tasks.add import RUNG as ADD
from textgen_env.tasks.classification import RUNG as CLASSIFICATION
from textgen_env.tasks.constraints import RUNG as CONSTRAINTS
from textgen_env.tasks.delayed_bit import RUNG as DELAYED_BIT
from textgen_env.tasks.dialogue import RUNG as DIALOGUE
from textgen_env.tasks.fact_summ import RUNG as FACT_SUMM
from textgen_env.tasks.keyword_sent import RUNG as KEYWORD_SENT
from textgen_env.tasks.match_corpus import RUNG as MATCH_CORPUS
from textgen_env.tasks.news_summary import RUNG as NEWS_SUMMARY
from textgen_env.tasks.question_answering import RUNG as QUESTION_ANSWERING
from textgen_env.tasks.reverse import RUNG as REVERSE
from textgen_env.tasks.rung import Rung
from textgen_env.tasks.sentiment import RUNG as SENTIMENT
from textgen_env.tasks.shortest_path import RUNG as SHORTEST_PATH
from textgen_env.tasks.steer_kl import RUNG as STEER_KL
from textgen_env.tasks.story_ending import RUNG as STORY_ENDING
from textgen_env.tasks.toy_mt import RUNG as TOY_MT
from textgen_env.tasks.translation import RUNG as TRANSLATION

LADDER: Mapping[str, Rung] = {
    "Reverse": REVERSE,
    "ReverseDense": REVERSE,
    "DelayedBit": DELAYED_BIT,
    "Add": ADD,
    "ShortestPath": SHORTEST_PATH,
    "FactSumm": FACT_SUMM,
    "ToyMT": TOY_MT,
    "KeywordSent": KEYWORD_SENT,
    "Constraints": CONSTRAINTS,
    "SteerKL": STEER_KL,
    "MatchCorpus": MATCH_CORPUS,
}
"""Id without package and version ("Reverse") -> what is known of the task at its default arguments."""

RECOGNISABLE: Mapping[str, Rung] = {
    "NewsSummary": NEWS_SUMMARY,
    "StoryEnding": STORY_ENDING,
    "Sentiment": SENTIMENT,
    "Translation": TRANSLATION,
    "QuestionAnswering": QUESTION_ANSWERING,
    "Dialogue": DIALOGUE,
    "Classification": CLASSIFICATION,
}
"""The same of the tasks that people know from elsewhere, built in at small scale."""
