"""Tasks: prompts with references, from your data or built in."""

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.loading import resolve_task
from textgen_env.tasks.news_summary import news_summary

__all__ = ["TextTask", "news_summary", "resolve_task"]
