"""From what a user calls a model to a model, and back from a saved agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from agents.adapters import (
    adapters_plan,
    base_of,
    check_trainable,
    has_adapter,
    is_adapter_folder,
    load_adapter,
    with_adapters,
)
from textgen_env import TextTokenizer

ModelSource: TypeAlias = str | Path | PreTrainedConfig | PreTrainedModel


def load_model(source: ModelSource, seed: int | None = None) -> PreTrainedModel:
    """A causal LM from a hub name, a local folder, a config (fresh weights, drawn with ``seed``) or an object.

    A model object is used as it is, not copied: training trains it. It may be one of peft's, and a folder may hold an
    adapter alone: then its base model is loaded too.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: it has an adapter that cannot be trained here.
        ImportError: it is the folder of an adapter, and peft is not installed.
    """
    model = _load(source, seed)
    check_trainable(model)
    return model


def _load(source: ModelSource, seed: int | None) -> PreTrainedModel:
    if isinstance(source, PreTrainedModel):
        return source
    if isinstance(source, PreTrainedConfig):
        with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator
            torch.random.manual_seed(0 if seed is None else seed)
            return _with_fastest_attention(AutoModelForCausalLM.from_config, source)
    if isinstance(source, (str, Path)):
        if is_adapter_folder(source):
            adapted: Any = load_adapter(_load(base_of(source), seed), source)
            return adapted
        return _with_fastest_attention(AutoModelForCausalLM.from_pretrained, str(source), dtype=torch.float32)
    # A wrapped model (peft's, say) is a module that still knows its config and its output embeddings.
    if isinstance(source, nn.Module) and hasattr(source, "config") and hasattr(source, "get_output_embeddings"):
        return source
    raise TypeError(
        f"model must be a hub name, a folder, a transformers config or a causal LM object, not {type(source).__name__}"
    )


def _with_fastest_attention(make: Any, source: Any, **kwargs: Any) -> PreTrainedModel:
    try:
        return make(source, attn_implementation="sdpa", **kwargs)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make(source, attn_implementation="eager", **kwargs)  # some architectures have nothing else


def blueprint(model: PreTrainedModel) -> dict[str, Any]:
    """What `from_blueprint` needs to build the same architecture again, as plain data."""
    plan = {**model.config.to_dict(), "model_type": model.config.model_type}
    plan["_adapters"] = adapters_plan(model) if has_adapter(model) else None
    plan["_frozen"] = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    return plan


def from_blueprint(plan: dict[str, Any]) -> PreTrainedModel:
    """A model of the same architecture, frozen where that was; its weights are for the caller to fill in."""
    kwargs = dict(plan)
    adapters, frozen = kwargs.pop("_adapters", None), set(kwargs.pop("_frozen", ()))
    model: Any = load_model(AutoConfig.for_model(kwargs.pop("model_type"), **kwargs))
    if adapters is not None:
        model = with_adapters(model, adapters)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    return model


def tokenizer_beside(source: Any) -> str | Path | None:
    """The model's name or folder, if a tokenizer comes with it."""
    if isinstance(source, (str, Path)) and Path(source).is_dir() and not (Path(source) / "tokenizer.json").exists():
        return None if not (Path(source) / "tokenizer_config.json").exists() else source
    return source if isinstance(source, (str, Path)) else None


def check_tokenizer(source: Any, tokenizer: TextTokenizer) -> None:
    """A named model comes with a tokenizer: the environment must speak it.

    Raises:
        ValueError: it speaks another one.
    """
    beside = tokenizer_beside(source)
    if beside is None:
        return
    own = AutoTokenizer.from_pretrained(str(beside)).get_vocab()
    if own != tokenizer.hf.get_vocab():
        raise ValueError(
            f"model '{source}' has a tokenizer of {len(own)} tokens, the environment speaks another one of "
            f"{tokenizer.vocab_size}: make the environment with tokenizer='{source}'"
        )
