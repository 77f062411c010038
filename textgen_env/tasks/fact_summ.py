"""Built-in task: repeat the marked facts of a document, in their order, and stop.

    Eva visits Rome CLEO SEES LIMA Dan rules Oslo GUS PAINTS DOHA … =   →   CLEO SEES LIMA GUS PAINTS DOHA <eos>

A document has six facts of three words, two of them in capitals; no word occurs twice. The reward is the mean of the
F1s of ROUGE-2 and ROUGE-L. Its optimum is 1: both F1s are 1 for the words of the reference and for no others. (As
ROUGE reads words, without case, capitals, bullets, "=" and padding make no difference to it.)

It is summarising in miniature, and the known ways to a high ROUGE without a summary are all here. Means over the test
split at the default arguments; *factual* is the F1 of `reward_models.Factual` on the marked facts:

======================================  ==========  ======  ======  ======  ======  =======
completion                              R-1 recall  R-1 F1  R-2 F1  R-L F1  reward  factual
======================================  ==========  ======  ======  ======  ======  =======
the marked facts: the reference         1.000       1.000   1.000   1.000   1.000   1.000
all facts: a copy of the document       1.000       0.500   0.391   0.500   0.446   1.000
the reference's words, shuffled         1.000       1.000   0.176   0.532   0.354   0.093
the marked facts, the last one first    1.000       1.000   0.800   0.500   0.650   1.000
the first two facts (lead-2)            0.330       0.330   0.280   0.330   0.305   0.412
the first marked fact alone             0.500       0.667   0.571   0.667   0.619   0.667
======================================  ==========  ======  ======  ======  ======  =======

So ROUGE-1 recall is highest for the copy, ROUGE-1 F1 for the right words in any order, and `Factual`, which reads what
a text says of the facts it is given, is blind to whatever else is said: none of them can judge this task alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

Marks: TypeAlias = Literal["capitals", "bullets"]
Triple: TypeAlias = tuple[str, str, str]
_MARKS = get_args(Marks)

SUBJECTS = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jo")
VERBS = ("visits", "leaves", "paints", "maps", "likes", "sees", "films", "rules", "knows", "loves")
PLACES = ("Rome", "Oslo", "Lima", "Kyiv", "Bern", "Cork", "Doha", "Faro", "Graz", "Hilo")
MARKED, UNMARKED, SEPARATOR = "*", "-", "="
_WORDS_A_FACT = 3


def fact_summ(
    facts: int = 6,
    marked: int = 2,
    names: int = 8,
    marks: Marks = "capitals",
    num_prompts: int = 2048,
    seed: int = 0,
    mask: bool = False,
) -> TextTask:
    """Documents of ``facts`` facts; the answer is the ``marked`` ones among them.

    Args:
        facts: facts of a document.
        marked: how many of them the summary repeats.
        names: how many subjects, verbs and places there are, each; at most 10.
        marks: how the marked facts stand out: their words in capitals, or a bullet "*" before the fact, "-" before
            the others. A capital is seen in the word itself, the bullet of a word must be looked for: much harder.
        num_prompts: distinct documents, drawn with ``seed``; a smaller draw is the beginning of a larger one.
        seed: seeds the draw.
        mask: allow the words of the document and EOS only, neither bullets nor the separator.

    The metadata of a prompt are its ``facts``: the marked ones as triples (subject, relation, object), and
    ``document_facts``: all of them in the order of the document.

    >>> prompt = fact_summ(facts=2, marked=1, num_prompts=8).prompts()[0]
    >>> prompt.text, prompt.references
    ('Gus films Bern HANA VISITS FARO =', ('HANA VISITS FARO',))

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 1 <= names <= len(SUBJECTS):
        raise ValueError(f"names must lie between 1 and {len(SUBJECTS)}, got {names}")
    if not 1 <= facts <= names:
        raise ValueError(f"facts must lie between 1 and names={names}, as no name occurs twice; got {facts}")
    if not 1 <= marked <= facts:
        raise ValueError(f"marked must lie between 1 and facts={facts}, got {marked}")
    if marks not in _MARKS:
        raise ValueError(f"marks must be one of {', '.join(_MARKS)}; got {marks!r}")
    there_are = math.perm(names, facts) ** _WORDS_A_FACT * math.comb(facts, marked)
    if not 1 <= num_prompts <= there_are:
        raise ValueError(
            f"num_prompts must lie between 1 and the {there_are} distinct prompts there are, got {num_prompts}"
        )
    kinds = (SUBJECTS[:names], VERBS[:names], PLACES[:names])
    rng = random.Random(seed)
    prompts: dict[str, Prompt] = {}
    while len(prompts) < num_prompts:
        document = list(zip(*(rng.sample(kind, facts) for kind in kinds), strict=True))
        prompt = _prompt(document, sorted(rng.sample(range(facts), marked)), marks)
        prompts.setdefault(prompt.text, prompt)
    words = [word for kind in kinds for word in kind]
    signs = [word.upper() for word in words] if marks == "capitals" else [MARKED, UNMARKED]
    return TextTask(
        "fact_summ",
        TextTask.from_pairs(prompts.values()).splits,
        vocabulary=(*words, *signs, SEPARATOR),
        max_new_tokens=_WORDS_A_FACT * facts,
        reward="rouge_2_l",
        oracle=reference_oracle,
        allowed_tokens=document_words if mask else None,
    )


def _prompt(document: Sequence[Triple], marked: Sequence[int], marks: Marks) -> Prompt:
    shown: list[str] = []
    summary: list[str] = []
    for place, fact in enumerate(document):
        is_marked = place in marked
        words = [word.upper() for word in fact] if is_marked and marks == "capitals" else fact
        shown += words if marks == "capitals" else (MARKED if is_marked else UNMARKED, *words)
        summary += words if is_marked else ()
    told = tuple(document[place] for place in marked)
    metadata = {"facts": told, "document_facts": tuple(document)}
    return Prompt(" ".join([*shown, SEPARATOR]), (" ".join(summary),), metadata)


def say(facts: Sequence[Triple]) -> str:
    """The words of some facts, one fact after the other."""
    return " ".join(word for fact in facts for word in fact)


def copy_document(prompt: Prompt) -> str:
    """All the facts: the completion of whoever does not choose."""
    return say(prompt.metadata["document_facts"])


def document_words(prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
    """The ids of the words of the document as they stand there, signs left out, and of EOS."""
    words = " ".join(word for word in prompt.text.split() if word not in (MARKED, UNMARKED, SEPARATOR))
    return list(tokenizer.encode_completion(prompt.text, words).tolist())


RUNG = Rung(
    random=0.098,
    supervised=1.0,
    optimum=1.0,
    hack=Hack(
        description="copies all facts of the document: recall does not ask what should have been left out",
        answer=copy_document,
        naive="rouge_1_recall",
        naive_score=1.0,
        robust_score=0.446,
    ),
)
