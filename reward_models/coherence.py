"""Does a text hang together? By rule, from what each sentence takes up; or by model, from what it makes likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from reward_models.composite import Composable
from reward_models.discourse import lexical_coherence, split_sentences
from reward_models.inputs import check_texts

if TYPE_CHECKING:
    from reward_models.batching import ModelSource
    from reward_models.language_model import LanguageModel


class Coherence(Composable):
    """Whether the sentences of a text follow from each other.

    ``Coherence()`` needs no model. It measures *local continuity in English*, 0 to 1 (``lexical_coherence``): does each
    sentence take up something mentioned before and add something new, do pronouns have antecedents, is nothing
    introduced twice. It does not know whether what is said makes sense.

    ``Coherence(model)`` asks a causal LM how much likelier the text before makes each sentence: the pointwise mutual
    information log p(s_i | s_1 … s_i-1) − log p(s_i) in nats a token, over all sentences after the first. It has no
    bounds; 0 is "as if each sentence stood alone".

    A text of one sentence has no transition that could fail: the rule gives 1, less what its pronouns and repeated word
    pairs cost, the model 0. So a headline is not pushed into a second sentence, and this reward alone says little of
    it. To judge how a completion follows its prompt (the end of a story), count the prompt in.

    Args:
        model: None, or any ``AutoModelForCausalLM``: a hub name, a folder or a model object.
        with_prompt: the prompt's sentences stand before the completion's; only the completion's are judged.
        settings: of the model, see ``reward_models.batching.BatchedModel``: ``tokenizer``, ``device``, ``batch_size``,
            ``max_length``.

    Raises:
        TypeError: settings without a model, or unknown ones.

    >>> Coherence()(completions=["Tom saw a dog. It followed him home.", "It followed him home. Tom saw a dog."])
    [1.0, 0.0]
    """

    kind: Literal["terminal"] = "terminal"
    name = "coherence"

    def __init__(self, model: ModelSource | None = None, *, with_prompt: bool = False, **settings: Any) -> None:
        self._with_prompt = with_prompt
        self._lm: LanguageModel | None = None
        if model is not None:
            from reward_models.language_model import LanguageModel  # torch, which the rule does without

            self._lm = LanguageModel(model, **settings)
        elif settings:
            raise TypeError(f"coherence by rule has no model for {', '.join(sorted(settings))}: pass one, or drop them")
        self.bounds = (0.0, 1.0) if self._lm is None else None

    def __call__(self, completions: Sequence[str], prompts: Sequence[str] | None = None, **_: Any) -> list[float]:
        """Score B completions; B floats. A text without a word is worth 0.

        Raises:
            ValueError: ``with_prompt``, and there are no prompts.
            TypeError: a text is not a string.
        """
        if self._with_prompt and prompts is None:
            raise ValueError("coherence with the prompt needs the prompts: call it with prompts=")
        before = prompts if self._with_prompt and prompts is not None else [""] * len(completions)
        check_texts(self.name, completions=completions, prompts=before)
        contexts = [split_sentences(text) for text in before]
        texts = [split_sentences(text) for text in completions]
        if self._lm is None:
            return [lexical_coherence(text, context) for text, context in zip(texts, contexts, strict=True)]
        return mutual_information(self._lm, texts, contexts)


def mutual_information(
    model: LanguageModel, texts: Sequence[Sequence[str]], contexts: Sequence[Sequence[str]]
) -> list[float]:
    """(log p(s_2 … s_n | s_1) − Σ_i≥2 log p(s_i)) / tokens of s_2 … s_n, in nats, of B texts.

    Both sides score the same tokens. A context stands in the place of s_1, and all sentences are then judged; where
    there is nothing to judge the value is 0.

    Args:
        model: the causal LM.
        texts: B lists of sentences.
        contexts: B lists of the sentences before, empty where there are none.
    """
    values = [0.0] * len(texts)
    places, whole, alone = [], [], []
    for index, (text, context) in enumerate(zip(texts, contexts, strict=True)):
        first = " ".join(context) or next(iter(text), "")
        judged = list(text if context else text[1:])
        if not judged:
            continue
        # The sentence before is context enough to encode each one as it would be written there.
        pieces = model.continuations([first, *judged[:-1]], judged)
        places.append(index)
        whole.append((pieces[0][0], [token for _, ids in pieces for token in ids]))
        alone.append([([model.start_id], ids) for _, ids in pieces])
    together = model.log_likelihoods(whole)
    apart = iter(model.log_likelihoods([piece for pieces in alone for piece in pieces]))
    for index, (_, ids), pieces, total in zip(places, whole, alone, together, strict=True):
        values[index] = (total - sum(next(apart) for _ in pieces)) / len(ids)
    return values
