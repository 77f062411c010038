"""Any sequence classifier as a reward: the probability it gives to a label, of the text or of a pair of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from reward_models.batching import Batch, BatchedModel, ModelSource
from reward_models.composite import Composable
from reward_models.inputs import check_references, check_texts
from textgen_env.lookup import did_you_mean

_OUTPUTS = ("probability", "logit", "log_probability")
_PAIRS = ("prompt", "reference")
_GAP = re.compile(r"\{(prompt|completion)\}")


class Classifier(Composable):
    """A label's score under any ``AutoModelForSequenceClassification``.

    What the number is depends on the model's configuration, as it does in ``transformers``' own pipeline:

    - several labels: the softmax over them; with ``problem_type="multi_label_classification"`` each label's own
      sigmoid (toxicity models are often of this kind);
    - one label (``num_labels=1``, a reward model or a regression): the raw output, no ``label`` or ``output`` to
      choose, no bounds.

    Some of what it is good for::

        Classifier("distilbert-base-uncased-finetuned-sst-2-english", label="POSITIVE")     # sentiment
        -1.0 * Classifier("unitary/toxic-bert", label="toxic")                              # against toxicity
        Classifier("roberta-large-mnli", label="ENTAILMENT", premise="reference")           # entailment
        Classifier("my-reward-model", premise="prompt")                                     # num_labels=1

    Args:
        model: a hub name, a folder or a model object.
        label: a name out of the model's ``id2label`` (in any case), or its number.
        output: ``"probability"``, ``"logit"`` or ``"log_probability"`` (nats).
        premise: pair the completion with its ``"prompt"`` or with a ``"reference"`` (of several, the one that
            gives the highest score), which comes first, as the premise of an entailment does. Default: the completion
            alone.
        template: how the completion is written for the model, e.g. ``"Review: {completion}"``; ``{prompt}`` may stand
            in it too.
        name: the key in ``info["reward"]``. Default: the label in lower case, else ``"classifier"``.
        tokenizer, device, batch_size, max_length: see ``reward_models.batching.BatchedModel``. Longer texts are cut.

    Raises:
        ValueError: an unknown label, output or premise, a label missing where there are several, a template without
            ``{completion}``, or a checkpoint whose classification head was never fitted.
    """

    kind: Literal["terminal"] = "terminal"

    def __init__(
        self,
        model: ModelSource,
        label: str | int | None = None,
        output: str = "probability",
        *,
        premise: str | None = None,
        template: str = "{completion}",
        name: str | None = None,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"unknown output {output!r}; {did_you_mean(str(output), _OUTPUTS)}")
        if premise is not None and premise not in _PAIRS:
            raise ValueError(f"unknown premise {premise!r}; {did_you_mean(str(premise), _PAIRS)}")
        if "{completion}" not in template:
            raise ValueError(f"the template {template!r} has no '{{completion}}': every text would score the same")
        self._batched = BatchedModel(
            AutoModelForSequenceClassification,
            model,
            tokenizer,
            device=device,
            batch_size=batch_size,
            max_length=max_length,
        )
        config = self._batched.model.config
        if config.pad_token_id is None:
            config.pad_token_id = self._batched.pad_id  # without one, causal classifiers take one text at a time
        self._column = _find_label(label, config.id2label)
        self._raw = config.num_labels == 1
        self._multi_label = config.problem_type == "multi_label_classification"
        self._output, self._premise, self._template = output, premise, template
        self.name = name or ("classifier" if self._raw else str(config.id2label[self._column]).lower())
        self.bounds = (0.0, 1.0) if output == "probability" and not self._raw else None

    def __call__(
        self,
        completions: Sequence[str],
        prompts: Sequence[str] | None = None,
        references: Sequence[Sequence[str]] | None = None,
        **_: Any,
    ) -> list[float]:
        """Score B completions, in one pass; B floats.

        Raises:
            ValueError: the template or the premise wants a prompt or a reference, and there is none.
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions, **({"prompts": prompts} if prompts is not None else {}))
        if prompts is None and (self._premise == "prompt" or "{prompt}" in self._template):
            raise ValueError(f"{self.name} needs the prompts: call it with prompts=")
        shown = prompts if prompts is not None else [""] * len(completions)
        texts = [self._write(prompt, text) for prompt, text in zip(shown, completions, strict=True)]
        if self._premise is None:
            return self._scores(texts)
        if self._premise == "prompt":
            return self._scores(texts, list(shown))
        return self._best_of_references(texts, references)

    def _write(self, prompt: str, completion: str) -> str:
        # One pass, and not str.format: braces in the texts, or in a template that is JSON, are just braces.
        return _GAP.sub(lambda gap: prompt if gap[1] == "prompt" else completion, self._template)

    def _best_of_references(self, texts: Sequence[str], references: Sequence[Sequence[str]] | None) -> list[float]:
        targets_B = check_references(self.name, texts, references)
        rows = [(reference, text) for text, targets in zip(texts, targets_B, strict=True) for reference in targets]
        scores = iter(self._scores([text for _, text in rows], [reference for reference, _ in rows]))
        return [max(next(scores) for _ in targets) for targets in targets_B]

    def _scores(self, texts: Sequence[str], premises: Sequence[str] | None = None) -> list[float]:
        rows = self._batched.encode(texts) if premises is None else self._batched.encode(premises, texts)
        return self._batched.run(rows, self._answer)

    def _answer(self, batch: Batch) -> list[float]:
        logits_BC = self._batched.model(**batch.inputs).logits.float()
        scores_B: Tensor = self._read(logits_BC)[:, self._column]
        return scores_B.tolist()

    def _read(self, logits_BC: Tensor) -> Tensor:
        if self._raw or self._output == "logit":
            return logits_BC
        log_probs_BC = (
            torch.nn.functional.logsigmoid(logits_BC) if self._multi_label else torch.log_softmax(logits_BC, dim=-1)
        )
        return log_probs_BC if self._output == "log_probability" else log_probs_BC.exp()


def _find_label(label: str | int | None, names: dict[int, str]) -> int:
    """The column of a label; the only one needs no name."""
    if label is None:
        if len(names) == 1:
            return 0
        raise ValueError(f"which of the model's labels is the score? Pass label=, one of {', '.join(names.values())}")
    if isinstance(label, int):
        if label not in names:
            raise ValueError(f"label {label} is not one of the model's {len(names)} (0 to {len(names) - 1})")
        return label
    columns = {str(name).lower(): column for column, name in names.items()}
    if label.lower() not in columns:
        raise ValueError(f"the model has no label '{label}'; {did_you_mean(label, map(str, names.values()))}")
    return columns[label.lower()]
