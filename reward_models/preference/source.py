"""From what a user calls a model to a sequence classifier with one output, its head fresh where there was none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from textgen_env import TextTokenizer

ScorerSource: TypeAlias = str | Path | PreTrainedConfig | PreTrainedModel


def load_scorer(source: ScorerSource, seed: int = 0) -> PreTrainedModel:
    """A sequence classifier with one output, in float32.

    Any architecture that transformers has as ``AutoModelForSequenceClassification`` will do. A head that is not among
    the weights, or has another number of outputs, is drawn with standard deviation ``1/√(d + 1)``, d its inputs
    (lm-human-preferences, ``lm_human_preferences/rewards.py``).

    Args:
        source: a hub name or a folder (of a classifier, a causal LM or a bare encoder), a configuration (fresh
            weights), or a model object. A classifier with one output is used as it is, without a copy; of any other
            object the trunk's weights are copied.
        seed: draws what is fresh. The global generator is left as it was.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: transformers has no sequence classifier of that architecture, or the trunks do not fit.
        OSError: the folder holds no model, or the hub name is not known.
    """
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator
        torch.random.manual_seed(seed)
        if isinstance(source, PreTrainedModel):
            return _from_object(source)
        if isinstance(source, PreTrainedConfig):
            return _with_fresh_head(_from_config(source))
        if isinstance(source, (str, Path)):
            model, absent = _from_pretrained(source)
            head = next(name for name, module in model.named_modules() if module is head_of(model))
            return _with_fresh_head(model) if f"{head}.weight" in absent else model
    raise TypeError(
        "a reward model is made from a hub name, a folder, a transformers config or a model object, "
        f"not {type(source).__name__}"
    )


def load_trained_scorer(folder: str | Path) -> PreTrainedModel:
    """The classifier in a folder, its head included.

    Raises:
        ValueError: the folder's model has no head with one output: it was never fitted.
        OSError: the folder holds no model.
    """
    with torch.random.fork_rng(devices=[]):
        model, absent = _from_pretrained(folder)
    if absent:
        raise ValueError(
            f"'{folder}' is no reward model yet: its weights have no {', '.join(absent)} for one output. "
            f"Fit it first, with 'textgen reward train --model {folder} --data ...'"
        )
    return model


def small_llama(
    tokenizer: TextTokenizer, *, max_length: int = 512, layers: int = 2, width: int = 64, heads: int = 4
) -> LlamaConfig:
    """The configuration of a small decoder, for a reward model from scratch.

    Args:
        tokenizer: gives the vocabulary and the EOS and padding ids.
        max_length: the longest prompt plus completion, in tokens.
        layers: transformer blocks.
        width: hidden width.
        heads: attention heads.

    Raises:
        ValueError: the width cannot be divided among the heads, or a size is below 1.
    """
    for name, size in (("max_length", max_length), ("layers", layers), ("width", width), ("heads", heads)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if width % (2 * heads):
        raise ValueError(f"width={width} must be an even multiple of heads={heads}: rotary embeddings work in pairs")
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=max_length,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=tokenizer.eos_ids[0],
        pad_token_id=tokenizer.pad_id,
    )


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The layer that gives the score: the last linear one with a single output.

    Raises:
        ValueError: there is none.
    """
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer with one output to read a score from")
    return heads[-1]


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    config.num_labels = 1
    made: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return made


def _from_pretrained(source: str | Path) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the weights that were not among those read, or of another shape."""
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        str(source), num_labels=1, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model, report = loaded
    absent = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
    return model, sorted(absent)


def _from_object(source: PreTrainedModel) -> PreTrainedModel:
    classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(source.config), ())
    if isinstance(source, classifier) and source.config.num_labels == 1:
        return source
    model = _with_fresh_head(_from_config(type(source.config).from_dict(source.config.to_dict())))
    trunk: Any = source.base_model
    fit = model.base_model.load_state_dict(trunk.state_dict(), strict=False)
    strangers = [*fit.unexpected_keys, *(key for key in fit.missing_keys if "pooler" not in key)]
    if strangers:
        raise ValueError(
            f"the trunk of {type(source).__name__} is not that of {type(model).__name__}: {strangers[0]} has no match"
        )
    return model


def _with_fresh_head(model: PreTrainedModel) -> PreTrainedModel:
    head = head_of(model)
    with torch.no_grad():
        head.weight.normal_(0.0, 1 / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            head.bias.zero_()
    return model
