"""Adapters (LoRA and its kin): a few weights trained inside a model whose own stay as they are. Needs ``peft``."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from peft import PeftModel


def has_adapter(model: nn.Module) -> bool:
    """Whether ``model`` is one of peft's."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def is_adapter_folder(source: str | Path) -> bool:
    """Whether ``source`` is what ``PeftModel.save_pretrained`` leaves: an adapter without its base model."""
    return (Path(source) / "adapter_config.json").is_file()


def add_lora(model: PreTrainedModel, rank: int, seed: int | None = None) -> PeftModel:
    """Low-rank adapters on every linear layer but the head: ``W x + 2 B A x``, where B starts at 0 (Hu et al. 2022).

    Args:
        model: the base model; adapted in place, and frozen.
        rank: rows of A, columns of B.
        seed: draws A.

    Raises:
        ImportError: peft is not installed.
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA adapter must be at least 1, got {rank}")
    with _peft(seed):
        from peft import LoraConfig, get_peft_model

        transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's way to write a linear
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)


def base_of(folder: str | Path) -> str:
    """Name or folder of the model that an adapter's folder belongs to.

    Raises:
        ValueError: it names none.
    """
    base = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter in '{folder}' does not say which model it belongs to: load that model yourself, and hand in "
            f"PeftModel.from_pretrained(model, '{folder}', is_trainable=True)"
        )
    return str(base)


def load_adapter(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The adapter of a folder on its base model, to be trained on.

    Raises:
        ImportError: peft is not installed.
    """
    with _peft(seed=0):  # weights are drawn before they are read
        from peft import PeftModel

        return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


def check_trainable(model: nn.Module) -> None:
    """Refuse adapters that a policy cannot work with.

    Raises:
        ValueError: with what is wrong, and the mend.
    """
    configs: Any = getattr(model, "peft_config", None)
    if configs is None:
        return
    if any(config.is_prompt_learning for config in configs.values()):
        raise ValueError(
            "this adapter puts virtual tokens before the prompt, which the environment knows nothing of: "
            "use one that changes weights, such as LoRA"
        )
    if not has_adapter(model):  # transformers' own integration, or the base model of a wrapper
        raise ValueError(
            "the model has adapters inside, but is not peft's wrapper around them: hand in what get_peft_model or "
            "PeftModel.from_pretrained returns"
        )
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "no weight of the adapted model is to be trained: load the adapter with "
            "PeftModel.from_pretrained(..., is_trainable=True)"
        )


def adapters_plan(model: Any) -> dict[str, Any]:
    """What `with_adapters` needs to build the same adapters again, as plain data."""
    configs = {name: config.to_dict() for name, config in model.peft_config.items()}
    return {
        "configs": json.loads(json.dumps(configs, default=sorted)),  # names of modules are sets
        "active": list(model.base_model.active_adapters),
    }


def with_adapters(model: PreTrainedModel, plan: dict[str, Any]) -> PeftModel:
    """The model with adapters of the same shapes; their weights are for the caller to fill in.

    Raises:
        ImportError: peft is not installed.
    """
    with _peft(seed=0):
        from peft import PeftConfig, get_peft_model

        warnings.simplefilter("ignore")  # peft's advice was given when the adapters were made
        (first, config), *others = [
            (name, PeftConfig.from_peft_type(**fields)) for name, fields in plan["configs"].items()
        ]
        adapted: Any = get_peft_model(model, config, adapter_name=first)
        for name, config in others:
            adapted.add_adapter(name, config)
        adapted.set_adapter(plan["active"][0])
        adapted.base_model.set_adapter(plan["active"])
        return adapted


def merged(model: Any) -> PreTrainedModel:
    """A copy of the model with its adapter added to the weights: a plain model with the same logits."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    copied = copy.deepcopy(model)
    base = copied.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if any(isinstance(end, (BaseTunerLayer, ModulesToSaveWrapper)) for end in ends):
        # Where the two ends share a weight, what is added to one would also be added to the other.
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False
        for end in ends:
            if isinstance(end, BaseTunerLayer):
                inner: Any = end.get_base_layer()
                inner.weight = nn.Parameter(inner.weight.detach().clone())
    plain: PreTrainedModel = copied.merge_and_unload()
    return plain


@contextlib.contextmanager
def _peft(seed: int | None) -> Iterator[None]:
    """Where peft is imported and draws weights: from torch's global generator, which is put back."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install 'textgen-env[lora]'") from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by the old name of a property.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.random.manual_seed(0 if seed is None else seed)
        yield
