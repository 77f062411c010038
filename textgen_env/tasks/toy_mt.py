"""Built-in task: translate into a made-up language from references of which 30 % are wrong.

    the red cow sees a big dog =   →   la vaka ruba uno kano grano vidat <eos>

English has determiner–adjective–noun and subject–verb–object. The target language puts the adjective behind its noun
and the verb last, and determiner and adjective agree with the noun in gender (nouns and what agrees with them end in
-o or -a). There is one right translation; the reward is sentence BLEU against it, smoothed, 1 at the optimum.

The train split's references are not all right: those of three verbs in ten were made word by word, in the order of the
source and all masculine ("lo rubo vaka vidat uno grano kano" for the sentence above). So who imitates them learns to
fail on these verbs; the reward, in training too, compares with the right translation, which is in the metadata.
References of validation and test are right. Noise that does not depend on the source, ``noise="sentences"``, does no
such harm: the most likely translation stays the right one.

Means over the test split:

===========================================  =====  ==================
answers                                      BLEU   ROUGE-1 precision
===========================================  =====  ==================
uniformly random tokens                      .033
the first word alone                         .002   1.000: fooled
word by word, always                         .097   .697
perfect imitation of the references          .738   .917
a supervised model (see `benchmarks`)        .738
the optimum                                  1.000  1.000
===========================================  =====  ==================
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

from textgen_env.reward_registry import resolve_reward
from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.types import Prompt

Noise: TypeAlias = Literal["verbs", "sentences"]
_NOISES = get_args(Noise)

DETERMINERS = {"the": ("lo", "la"), "a": ("uno", "una")}
ADJECTIVES = {"red": ("rubo", "ruba"), "big": ("grano", "grana"), "old": ("veto", "veta"), "new": ("novo", "nova")}
"""English -> masculine and feminine."""
NOUNS = {
    **{"dog": "kano", "cow": "vaka", "boy": "puero", "girl": "mina"},
    **{"horse": "ekvo", "moon": "luna", "bird": "avo", "house": "kasa"},
}
VERBS = {
    **{"sees": "vidat", "hears": "audat", "likes": "amat", "finds": "trovat", "takes": "prenat"},
    **{"paints": "pintat", "follows": "segat", "helps": "yudat", "leaves": "lasat", "calls": "klamat"},
}
SEPARATOR = "="
_CAP = 10


class Phrase(NamedTuple):
    """Determiner, adjective and noun, English."""

    determiner: str
    adjective: str
    noun: str


class Sentence(NamedTuple):
    """Who does what to whom, English."""

    subject: Phrase
    verb: str
    object: Phrase


def toy_mt(
    nouns: int = 8,
    adjectives: int = 4,
    verbs: int = 10,
    corrupted: float = 0.3,
    noise: Noise = "verbs",
    num_prompts: int = 2048,
    seed: int = 0,
) -> TextTask:
    """English sentences of seven words; the answer is their translation.

    Args:
        nouns: how many there are, of either gender in turn; 2 to 8.
        adjectives: how many there are, at most 4.
        verbs: how many there are, at most 10.
        corrupted: share of the train split whose reference is a translation word by word.
        noise: which ones: those of some verbs (``corrupted`` times ``verbs``, rounded, are drawn), so that the
            error is systematic; or sentences drawn one by one, so that it is averaged out.
        num_prompts: distinct sentences, drawn with ``seed``; a smaller draw is the beginning of a larger one.
        seed: seeds the sentences and what is corrupted.

    The metadata of a prompt are its ``translation``, the right one.

    >>> toy_mt(num_prompts=8).splits["train"][0].metadata
    {'translation': 'uno avo rubo una kasa nova segat'}

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    for name, value, least, most in (
        ("nouns", nouns, 2, len(NOUNS)),
        ("adjectives", adjectives, 1, len(ADJECTIVES)),
        ("verbs", verbs, 1, len(VERBS)),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name} must lie between {least} and {most}, got {value}")
    if not 0 <= corrupted <= 1:
        raise ValueError(f"corrupted must lie in [0, 1], got {corrupted}")
    if noise not in _NOISES:
        raise ValueError(f"noise must be one of {', '.join(_NOISES)}; got {noise!r}")
    known = list(NOUNS)[:nouns], list(ADJECTIVES)[:adjectives], list(VERBS)[:verbs]
    there_are = math.perm(nouns, 2) * (len(DETERMINERS) * adjectives) ** 2 * verbs
    if not 1 <= num_prompts <= there_are:
        raise ValueError(
            f"num_prompts must lie between 1 and the {there_are} distinct prompts there are, got {num_prompts}"
        )
    rng = random.Random(seed)
    drawn: dict[Sentence, None] = {}
    while len(drawn) < num_prompts:
        drawn[_sentence(*known, rng)] = None
    careless = _careless(known[2], corrupted, noise, seed)
    sentences = {f"{english(sentence)} {SEPARATOR}": sentence for sentence in drawn}
    splits = TextTask.from_pairs([_prompt(text, sentence) for text, sentence in sentences.items()]).splits
    train = [
        replace(prompt, references=(word_by_word(sentences[prompt.text]),))
        if careless(sentences[prompt.text])
        else prompt
        for prompt in splits["train"]
    ]
    return TextTask(
        "toy_mt",
        {**splits, "train": tuple(train)},
        vocabulary=_vocabulary(*known),
        max_new_tokens=_CAP,
        reward=TranslationBleu(),
        oracle=right_translation,
    )


def _sentence(nouns: Sequence[str], adjectives: Sequence[str], verbs: Sequence[str], rng: random.Random) -> Sentence:
    doer, target = (
        Phrase(rng.choice(tuple(DETERMINERS)), rng.choice(adjectives), noun) for noun in rng.sample(nouns, 2)
    )
    return Sentence(doer, rng.choice(verbs), target)


def _prompt(text: str, sentence: Sentence) -> Prompt:
    translation = translate(sentence)
    return Prompt(text, (translation,), {"translation": translation})


def _careless(verbs: Sequence[str], share: float, noise: Noise, seed: int) -> Callable[[Sentence], bool]:
    """Whose references are made word by word."""
    if noise == "verbs":
        drawn = set(random.Random(f"verbs {seed}").sample(verbs, round(share * len(verbs))))
        return lambda sentence: sentence.verb in drawn
    return lambda sentence: random.Random(f"{english(sentence)} {seed}").random() < share


def english(sentence: Sentence) -> str:
    """The words of the source."""
    return " ".join((*sentence.subject, sentence.verb, *sentence.object))


def translate(sentence: Sentence) -> str:
    """Noun before adjective, verb last, everything of the noun's gender."""
    words: list[str] = []
    for phrase in (sentence.subject, sentence.object):
        noun = NOUNS[phrase.noun]
        gender = noun.endswith("a")
        words += [DETERMINERS[phrase.determiner][gender], noun, ADJECTIVES[phrase.adjective][gender]]
    return " ".join([*words, VERBS[sentence.verb]])


def word_by_word(sentence: Sentence) -> str:
    """What a careless translator makes of it: the order of the source, all masculine."""
    doer, target = (
        [DETERMINERS[phrase.determiner][0], ADJECTIVES[phrase.adjective][0], NOUNS[phrase.noun]]
        for phrase in (sentence.subject, sentence.object)
    )
    return " ".join([*doer, VERBS[sentence.verb], *target])


def right_translation(prompt: Prompt) -> str:
    """The oracle: on the train split the reference may be wrong."""
    return str(prompt.metadata["translation"])


def first_word(prompt: Prompt) -> str:
    """The least that can be said without being wrong."""
    return right_translation(prompt).split()[0]


def _vocabulary(nouns: Sequence[str], adjectives: Sequence[str], verbs: Sequence[str]) -> tuple[str, ...]:
    target = [
        *itertools.chain(*DETERMINERS.values(), *(ADJECTIVES[word] for word in adjectives)),
        *(NOUNS[word] for word in nouns),
        *(VERBS[word] for word in verbs),
    ]
    return (*DETERMINERS, *adjectives, *nouns, *verbs, *target, SEPARATOR)


@functools.cache
def _bleu() -> Any:
    return resolve_reward("bleu").function


@dataclass(frozen=True)
class TranslationBleu:
    """Sentence BLEU against the right translation, whatever the references are."""

    name: ClassVar[str] = "bleu"
    kind: ClassVar[str] = "terminal"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, completions: list[str], translation: list[str]) -> list[float]:
        """One number a completion."""
        scores: list[float] = _bleu()(completions=completions, references=[[text] for text in translation])
        return scores


RUNG = Rung(
    random=0.0327,
    supervised=0.7376,
    optimum=1.0,
    hack=Hack(
        description="says the one word it is sure of and stops: precision does not ask for the rest",
        answer=first_word,
        naive="rouge_1_precision",
        naive_score=1.0,
        robust_score=0.0025,
    ),
)
