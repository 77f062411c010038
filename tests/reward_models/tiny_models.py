"""Scorer models of two layers with fresh weights, and the tokenizers they speak."""

import functools
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from textgen_env.tokenizer import train_tokenizer

TEXTS = [
    "the cat sat on the mat",
    "rain",
    "the old dog ran to the house while rain fell all night long and the cat sat on a mat",
    "a dog and a cat ran",
    "night fell",
    "the cat sat on the mat and the dog ran",
    "all night long the rain fell on the old house",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})
POSITIONS = 32


@functools.cache
def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] text [SEP], one token a word, as BERT's; pairs have token types."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def lm_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, no start token, as GPT-2's."""
    return train_tokenizer(TEXTS * 4, 300)


def seeded(make: Any, config: Any) -> Any:
    """A model whose weights are large enough for texts to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(config).eval()


def _bert(**settings: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(encoder_tokenizer()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
        pad_token_id=0,
        **settings,
    )


def _gpt2(**settings: Any) -> GPT2Config:
    end = lm_tokenizer().eos_token_id
    shape: dict[str, Any] = {"vocab_size": len(lm_tokenizer()), "n_positions": POSITIONS, "n_embd": 16, "n_layer": 2}
    return GPT2Config(**shape, n_head=2, initializer_range=0.3, bos_token_id=end, eos_token_id=end, **settings)


def bert_classifier(**settings: Any) -> Any:
    return seeded(BertForSequenceClassification, _bert(**settings))


def bert() -> Any:
    return seeded(BertModel, _bert())


def roberta() -> Any:
    """Its positions are counted from the padding id on."""
    return seeded(RobertaModel, RobertaConfig(**{**_bert().to_dict(), "model_type": "roberta", "pad_token_id": 0}))


def gpt2() -> Any:
    return seeded(GPT2LMHeadModel, _gpt2())


def gpt2_classifier() -> Any:
    return seeded(GPT2ForSequenceClassification, _gpt2(num_labels=2))


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=len(lm_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
    )
    return seeded(LlamaForCausalLM, config)
