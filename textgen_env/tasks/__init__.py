"""Tasks: prompts with references, from your data or built in."""

from textgen_env.tasks.add import add
from textgen_env.tasks.classification import classification
from textgen_env.tasks.constraints import constraints
from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.delayed_bit import delayed_bit
from textgen_env.tasks.dialogue import dialogue
from textgen_env.tasks.fact_summ import fact_summ
from textgen_env.tasks.keyword_sent import keyword_sent
from textgen_env.tasks.loading import resolve_task
from textgen_env.tasks.match_corpus import match_corpus
from textgen_env.tasks.news_summary import news_summary
from textgen_env.tasks.question_answering import question_answering
from textgen_env.tasks.reverse import reverse
from textgen_env.tasks.sentiment import sentiment
from textgen_env.tasks.shortest_path import shortest_path
from textgen_env.tasks.steer_kl import steer_kl
from textgen_env.tasks.story_ending import story_ending
from textgen_env.tasks.toy_mt import toy_mt
from textgen_env.tasks.translation import translation

__all__ = [
    "TextTask",
    "add",
    "classification",
    "constraints",
    "delayed_bit",
    "dialogue",
    "fact_summ",
    "keyword_sent",
    "match_corpus",
    "news_summary",
    "question_answering",
    "resolve_task",
    "reverse",
    "sentiment",
    "shortest_path",
    "steer_kl",
    "story_ending",
    "toy_mt",
    "translation",
]
