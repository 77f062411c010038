"""Built-in task: short generated news articles, each with the headline that its facts determine.

An article has 4 to 6 sentences. What happened, how many and where stand in three of them; the others, on
the same topic or on none, name other people, places and numbers. The headline says the main event in other
words, so nothing short of reading the article finds it: the first sentence, any one sentence, or a
headline that merely sounds right all score low. It holds no fact that the article lacks.

ROUGE-L F1 (``rouge_score``, no stemming) over the validation split at the default arguments:

=====================================  =====
other headlines of the same topic      0.261
the whole article                      0.129
the first sentence                     0.121
the best sentence (chosen knowingly)   0.265
the headline, read off the facts       1.000
=====================================  =====
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.news_templates import ASIDES, ENDINGS, NAMES, TOPICS
from textgen_env.types import Prompt

_SUFFIX = "\nTL;DR:"
_MIN_WORDS, _MAX_WORDS = 45, 75
_ASIDES_AT_MOST = 3


def news_summary(num_articles: int = 4000, seed: int = 0) -> TextTask:
    """Generated news articles of 45 to 75 words, each with its headline of 6 to 11 words as reference.

    The metadata of a prompt are its ``topic`` and its ``facts``, triples (subject, relation, object): what
    happened, and where, e.g. ``("Storm", "cuts power to", "12,000 homes"), ("Storm", "place", "Arlow")``.

    The prompts are distinct, the same on every machine for the same seed, and a smaller task is the
    beginning of a larger one with the same seed. They go to the splits by a hash of their text.

    >>> task = news_summary(num_articles=50, seed=1)
    >>> task.prompts()[0].text.endswith("TL;DR:")
    True

    Raises:
        ValueError: ``num_articles`` is below 1 (or so small that no article falls into the train split).
    """
    if num_articles < 1:
        raise ValueError(f"num_articles must be at least 1, got {num_articles}")
    rng = random.Random(seed)
    prompts: dict[str, Prompt] = {}
    while len(prompts) < num_articles:
        prompt = _article(rng)
        prompts.setdefault(prompt.text, prompt)
    return TextTask.from_pairs(prompts.values(), name="news_summary")


def _article(rng: random.Random) -> Prompt:
    topic_name = rng.choice(tuple(TOPICS))
    topic = TOPICS[topic_name]
    event = rng.choice(topic.events)
    main, *others = _casts(rng)
    main["thing"] = rng.choice(event.things)

    lead = rng.choice(event.leads)
    details = [rng.choice(event.amounts), rng.choice(topic.places)]
    rng.shuffle(details)
    told = [_sentence(lead, main)]
    told += [_sentence(_ended(detail, _repeatable(lead + detail + "{city}"), rng), main) for detail in details]

    templates = rng.sample(topic.asides, _ASIDES_AT_MOST - 1) + rng.sample(ASIDES, 1)
    rng.shuffle(templates)
    words = sum(len(sentence.split()) for sentence in told)
    asides: list[str] = []
    for template, cast in zip(templates, others, strict=True):
        aside = _sentence(_ended(template, _repeatable(template), rng), cast)
        length = len(aside.split())
        is_enough = words + length > _MAX_WORDS or (words >= _MIN_WORDS and rng.random() < 0.4)
        if asides and is_enough:
            break
        asides.append(aside)
        words += length

    # The main event is told in order; the asides fall anywhere, so the first sentence is often one of them.
    is_told = [True] * len(told) + [False] * len(asides)
    rng.shuffle(is_told)
    in_order, between = iter(told), iter(asides)
    text = " ".join(next(in_order) if main_event else next(between) for main_event in is_told)

    parts = [part.strip().format(**main) for part in event.headline.split("|")]
    subject, relation, target, _ = parts
    subject = _capitalised(subject)
    facts = ((subject, relation, target), (subject, "place", main["city"]))
    headline = _capitalised(" ".join(parts))
    return Prompt(text + _SUFFIX, (headline,), {"topic": topic_name, "facts": facts})


def _casts(rng: random.Random) -> list[dict[str, str]]:
    """Names and numbers for the main event and for each aside; no two casts share any."""
    count = 1 + _ASIDES_AT_MOST
    drawn = {kind: rng.sample(names, count) for kind, names in NAMES.items()}
    rivals = rng.sample([team for team in NAMES["team"] if team not in drawn["team"]], count)
    casts = []
    for index, rival in enumerate(rivals):
        cast = {kind: names[index] for kind, names in drawn.items()}
        casts.append(cast | {"person": f"{cast['first']} {cast['surname']}", "rival": rival})
    return casts


def _repeatable(template: str) -> list[str]:
    """The kinds of names and numbers in a template that an ending can repeat."""
    return [kind for kind in ENDINGS if f"{{{kind}}}" in template]


def _ended(template: str, kinds: list[str], rng: random.Random) -> str:
    """The template with an ending that repeats a name or number of one of the kinds.

    Names must recur inside an article: a small model learns to copy from what recurs, and articles where no
    name came twice would teach it the opposite.
    """
    return template.removesuffix(".") + rng.choice(ENDINGS[rng.choice(kinds)]) + "."


def _sentence(template: str, cast: Mapping[str, str]) -> str:
    return _capitalised(template.format(**cast))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
