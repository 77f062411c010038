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
from functools import partial

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.news_templates import ASIDES, ENDINGS, NAMES, TOPICS
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import capitalised, distinct_prompts, sentence
from textgen_env.types import Prompt

TEMPLATE = "{prompt}\nTL;DR:"
_MIN_WORDS, _MAX_WORDS = 45, 75
_ASIDES_AT_MOST = 3


@or_own_data(
    partial(read_data, reward="rouge_l", prompt_field="article", reference_field="headline", template=TEMPLATE)
)
def news_summary(num_articles: int = 4000, seed: int = 0) -> TextTask:
    """Generated news articles of 45 to 75 words, each with its headline of 6 to 11 words as reference.

    The metadata of a prompt are its ``topic`` and its ``facts``, triples (subject, relation, object): what
    happened, and where, e.g. ``("Storm", "cuts power to", "12,000 homes"), ("Storm", "place", "Arlow")``.

    The prompts are distinct, the same on every machine for the same seed, and a smaller task is the
    beginning of a larger one with the same seed. They go to the splits by a hash of their text.

    Your own data (``data=``, see `read_data`): columns ``article`` and ``headline``.

    >>> task = news_summary(num_articles=50, seed=1)
    >>> task.prompts()[0].text.endswith("TL;DR:")
    True

    Raises:
        ValueError: ``num_articles`` is below 1 (or so small that no article falls into the train split).
    """
    prompts = distinct_prompts(_article, num_articles, seed, "num_articles")
    return TextTask(
        "news_summary",
        TextTask.from_pairs(prompts).splits,
        max_new_tokens=24,
        reward="rouge_l",
        oracle=reference_oracle,
    )


def _article(rng: random.Random) -> Prompt:
    topic_name = rng.choice(tuple(TOPICS))
    topic = TOPICS[topic_name]
    event = rng.choice(topic.events)
    main, *others = casts(rng, 1 + _ASIDES_AT_MOST)
    main["thing"] = rng.choice(event.things)

    lead = rng.choice(event.leads)
    details = [rng.choice(event.amounts), rng.choice(topic.places)]
    rng.shuffle(details)
    told = [sentence(lead, main)]
    told += [sentence(_ended(detail, _repeatable(lead + detail + "{city}"), rng), main) for detail in details]

    templates = rng.sample(topic.asides, _ASIDES_AT_MOST - 1) + rng.sample(ASIDES, 1)
    rng.shuffle(templates)
    words = sum(len(line.split()) for line in told)
    asides: list[str] = []
    for template, cast in zip(templates, others, strict=True):
        aside = sentence(_ended(template, _repeatable(template), rng), cast)
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
    subject = capitalised(subject)
    facts = ((subject, relation, target), (subject, "place", main["city"]))
    headline = capitalised(" ".join(parts))
    return Prompt(TEMPLATE.format(prompt=text), (headline,), {"topic": topic_name, "facts": facts})


def casts(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Names and numbers for ``count`` events; no two casts share any."""
    drawn = {kind: rng.sample(names, count) for kind, names in NAMES.items()}
    rivals = rng.sample([team for team in NAMES["team"] if team not in drawn["team"]], count)
    found = []
    for index, rival in enumerate(rivals):
        cast = {kind: names[index] for kind, names in drawn.items()}
        found.append(cast | {"person": f"{cast['first']} {cast['surname']}", "rival": rival})
    return found


def _repeatable(template: str) -> list[str]:
    """The kinds of names and numbers in a template that an ending can repeat."""
    return [kind for kind in ENDINGS if f"{{{kind}}}" in template]


def _ended(template: str, kinds: list[str], rng: random.Random) -> str:
    """The template with an ending that repeats a name or number of one of the kinds.

    Names must recur inside an article: a small model learns to copy from what recurs, and articles where no
    name came twice would teach it the opposite.
    """
    return template.removesuffix(".") + rng.choice(ENDINGS[rng.choice(kinds)]) + "."


def in_alphabetical_order(prompt: Prompt) -> str:
    """The words of the headline, sorted."""
    return " ".join(sorted(prompt.references[0].split()))


RUNG = Rung(
    random=0.0096,
    supervised=0.4797,
    optimum=1.0,
    hack=Hack(
        "The right words of the headline, but in alphabetical order.",
        in_alphabetical_order,
        naive="rouge_1",
        naive_score=1.0,
        robust_score=0.4442,
    ),
)
