"""Meaning rather than words: a completion against its references in the space of a text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, PreTrainedTokenizerBase

from reward_models.batching import Batch, BatchedModel, ModelSource
from reward_models.composite import Composable
from reward_models.inputs import check_references, check_texts
from textgen_env.lookup import did_you_mean

_POOLINGS = ("mean", "first")
_AGGREGATES = ("max", "mean")
_MEASURES = ("f1", "precision", "recall")


class _EncoderReward(Composable):
    """What the rewards below share: references, the best or mean of them, each distinct text encoded once."""

    kind: Literal["terminal"] = "terminal"
    name: str

    def __init__(
        self,
        model: ModelSource,
        *,
        aggregate: str = "max",
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if aggregate not in _AGGREGATES:
            raise ValueError(f"unknown aggregate {aggregate!r}; {did_you_mean(str(aggregate), _AGGREGATES)}")
        self._aggregate = aggregate
        # Neither reward looks at the pooler, which many encoders' checkpoints lack.
        self._batched = BatchedModel(
            AutoModel,
            model,
            tokenizer,
            device=device,
            batch_size=batch_size,
            max_length=max_length,
            optional=("pooler.",),
        )
        whole = self._batched.model
        self._encoder: Any = whole.get_encoder() if whole.config.is_encoder_decoder else whole

    def __call__(self, completions: Sequence[str], references: Sequence[Sequence[str]], **_: Any) -> list[float]:
        """Score B completions against their references; B floats, a blank text 0.

        Raises:
            ValueError: a completion has no reference.
            TypeError: a text is not a string, or references are one string instead of a list.
        """
        check_texts(self.name, completions=completions)
        references = check_references(self.name, completions, references)
        everything = [*completions, *(target for targets in references for target in targets)]
        texts = [text for text in dict.fromkeys(everything) if text.strip()]
        encoded = dict(zip(texts, self._batched.run(self._batched.encode(texts), self._encode), strict=True))
        scores = []
        for completion, targets in zip(completions, references, strict=True):
            values = [
                self._compare(encoded[completion], encoded[target])
                if completion in encoded and target in encoded
                else 0.0
                for target in targets
            ]
            scores.append(max(values) if self._aggregate == "max" else sum(values) / len(values))
        return scores

    def _encode(self, batch: Batch) -> Iterable[Tensor]:
        raise NotImplementedError

    def _compare(self, completion: Tensor, reference: Tensor) -> float:
        raise NotImplementedError


class SemanticSimilarity(_EncoderReward):
    """Cosine of two sentence embeddings, as in Sentence-BERT (Reimers & Gurevych, 2019): -1 to 1.

    It wants an encoder that was trained for it; an ordinary masked language model finds all texts alike.

    Args:
        model: a hub name, a folder or a model object, any ``AutoModel``.
        pooling: ``"mean"`` over a text's tokens, or the ``"first"`` token's state; what the encoder was trained with.
        aggregate: over several references, ``"max"`` or ``"mean"``.
        tokenizer, device, batch_size, max_length: see ``reward_models.batching.BatchedModel``. Longer texts are cut.

    Raises:
        ValueError: an unknown pooling or aggregate.

    Example::

        SemanticSimilarity("sentence-transformers/all-MiniLM-L6-v2", max_length=256)
    """

    name = "semantic_similarity"
    bounds = (-1.0, 1.0)

    def __init__(self, model: ModelSource, pooling: str = "mean", **settings: Any) -> None:
        if pooling not in _POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; {did_you_mean(str(pooling), _POOLINGS)}")
        super().__init__(model, **settings)
        self._pooling = pooling

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of B texts, [B, width], on the CPU.

        Raises:
            ValueError: there are no texts, or a text is blank.
            TypeError: a text is not a string.
        """
        check_texts(self.name, texts=texts)
        if not texts or not all(map(str.strip, texts)):
            raise ValueError("a blank text has no embedding")
        return torch.stack(self._batched.run(self._batched.encode(texts), self._encode)).cpu()

    def _encode(self, batch: Batch) -> Iterable[Tensor]:
        states_BSW = self._encoder(**batch.inputs).last_hidden_state.float()
        mask_BS1 = batch.inputs["attention_mask"][..., None]
        pooled_BW = (states_BSW * mask_BS1).sum(1) / mask_BS1.sum(1) if self._pooling == "mean" else states_BSW[:, 0]
        return normalize(pooled_BW, dim=-1)

    def _compare(self, completion: Tensor, reference: Tensor) -> float:
        return min(1.0, max(-1.0, float(completion @ reference)))  # rounding may step over the edge


class BertScore(_EncoderReward):
    """BERTScore (Zhang et al., 2020): each token greedily matched with the nearest token of the other text.

    With unit vectors x_i of the reference's tokens and y_j of the completion's (equations of their section 3)::

        recall = 1/|x| Σ_i max_j x_i·y_j     precision = 1/|y| Σ_j max_i x_i·y_j     f1 = 2 P R / (P + R)

    As in the authors' program the start and end tokens may be matched but are not counted. Without idf weights and
    without baseline rescaling, so figures lie close together (.8 to .95): mind the scale when mixing.

    Args:
        model: a hub name, a folder or a model object, any ``AutoModel``.
        layer: whose states are compared, 0 being the embeddings and -1 the last; the authors chose 17 for
            roberta-large, 9 for bert-base-uncased.
        measure: ``"f1"``, ``"precision"`` or ``"recall"``.
        aggregate: over several references, ``"max"`` or ``"mean"``.
        tokenizer, device, batch_size, max_length: see ``reward_models.batching.BatchedModel``. Longer texts are cut.

    Raises:
        ValueError: an unknown measure or aggregate, or a layer that the model has not.

    Example::

        BertScore("roberta-large", layer=17)
    """

    bounds = (-1.0, 1.0)

    def __init__(self, model: ModelSource, layer: int = -1, measure: str = "f1", **settings: Any) -> None:
        if measure not in _MEASURES:
            raise ValueError(f"unknown measure {measure!r}; {did_you_mean(str(measure), _MEASURES)}")
        super().__init__(model, **settings)
        layers = self._batched.model.config.num_hidden_layers
        if not -layers - 1 <= layer <= layers:
            raise ValueError(f"the model has layers 0 (the embeddings) to {layers}, got layer={layer}")
        self.name = "bert_score" if measure == "f1" else f"bert_score_{measure}"
        self._layer, self._measure = layer, measure
        hf = self._batched.tokenizer
        ends = {hf.cls_token_id, hf.sep_token_id, hf.bos_token_id, hf.eos_token_id} - {None}
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)

    def _encode(self, batch: Batch) -> Iterable[Tensor]:
        """Each row's unit vectors, with a last column that is 1 where the token counts."""
        states_BSW = self._encoder(**batch.inputs, output_hidden_states=True).hidden_states[self._layer].float()
        counts_BS1 = ~torch.isin(batch.inputs["input_ids"], self._ends.to(states_BSW.device))[..., None]
        rows_BSX = torch.cat([normalize(states_BSW, dim=-1), counts_BS1.float()], dim=-1)
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        return [row_SX[:length] for row_SX, length in zip(rows_BSX, lengths, strict=True)]

    def _compare(self, completion: Tensor, reference: Tensor) -> float:
        similarity_YX = completion[:, :-1] @ reference[:, :-1].T
        precision = _mean_where(similarity_YX.amax(dim=1), completion[:, -1])
        recall = _mean_where(similarity_YX.amax(dim=0), reference[:, -1])
        if self._measure != "f1":
            return precision if self._measure == "precision" else recall
        # With one of them below 0 their harmonic mean means nothing, and has no bounds.
        return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0 else 0.0


def _mean_where(values_T: Tensor, counts_T: Tensor) -> float:
    """The mean over the tokens that count, of cosines (rounding may step over the edge); 0 if none does."""
    mean = float((values_T * counts_T).sum() / counts_T.sum().clamp(min=1.0))
    return min(1.0, max(-1.0, mean))
