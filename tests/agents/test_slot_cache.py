"""Decoding through the slot cache gives what a plain forward over the same prefix gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MistralConfig

from agents.decoder import Decoder
from agents.policy import TextPolicy
from tests.agents.conftest import FAMILIES, VOCAB, make_policy

CAPACITY = 20


class Play:
    """Rows that start, run, restart and stop, each remembering which prefix every output belongs to."""

    def __init__(self, policy, slots=4, break_decoder=lambda decoder: None):
        self.policy = policy
        self.decoder = Decoder(policy, slots, CAPACITY)
        self.break_decoder = break_decoder
        self.rows = []
        self.seen = []  # (row's tokens, how many of them were known, logits, value)
        self.generator = torch.Generator().manual_seed(1)

    def tokens(self, count):
        return torch.randint(0, VOCAB, (count,), generator=self.generator)

    def start(self, rows, prompts):
        self.decoder.start(rows, prompts)
        self.break_decoder(self.decoder)
        self.rows += [None] * (max(rows) + 1 - len(self.rows))
        for row, prompt in zip(rows, prompts, strict=True):
            self.rows[row] = prompt.tolist()

    def run(self, steps):
        for _ in range(steps):
            logits, values = self.decoder.step()
            assert len(logits) == len(self.rows)
            for row, logit, value in zip(self.rows, logits, values, strict=True):
                self.seen.append((row, len(row), logit, value))
            chosen = self.tokens(len(self.rows))
            for row, token in zip(self.rows, chosen.tolist(), strict=True):
                row.append(token)
            self.decoder.append(chosen)

    def drop(self, row):
        moved = self.decoder.drop(row)
        if moved is not None:
            self.rows[row] = self.rows[moved]
        self.rows.pop()

    @torch.no_grad()
    def largest_error(self):
        """Against Hugging Face's own forward, one row at a time, without a cache."""
        forwards = {}
        gaps = []
        for row, length, logits, value in self.seen:
            if id(row) not in forwards:
                output = self.policy.model(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True)
                forwards[id(row)] = output.logits[0], self.policy.value_head(output.hidden_states[-1][0])[:, 0]
            all_logits, all_values = forwards[id(row)]
            gaps.append((logits.log_softmax(-1) - all_logits[length - 1].log_softmax(-1)).abs().max())
            gaps.append((value - all_values[length - 1]).abs())
        return float(torch.stack(gaps).max())


def play_everything(policy, **kwargs):
    """Ragged prompts, equal prompts, restarts in mid-flight, dropped rows."""
    play = Play(policy, **kwargs)
    shared = play.tokens(5)
    play.start([0, 1, 2, 3], [shared, play.tokens(1), shared.clone(), play.tokens(8)])
    play.run(3)
    play.start([3, 1], [play.tokens(2), play.tokens(6)])  # shorter than before: stale keys lie behind it
    play.run(2)
    play.drop(0)  # the last row moves up
    play.run(2)
    play.start([1], [shared.clone()])
    play.drop(2)  # the last row itself
    play.run(2)
    play.start([2, 3], [shared.clone(), shared.clone()])  # rows come back
    play.run(3)
    assert len(play.seen) == 4 * 3 + 4 * 2 + 3 * 2 + 2 * 2 + 4 * 3
    return play


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_cached_equals_uncached(family, dtype, tolerance):
    assert play_everything(make_policy(family, dtype)).largest_error() < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_with_eager_attention(family):
    policy = make_policy(family, attention="eager")
    assert policy.model.config._attn_implementation == "eager"
    assert play_everything(policy).largest_error() < 1e-5  # its softmax is in float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_length_need_no_mask(family, attention, monkeypatch):
    """They are alike from the start, then a longer one comes and goes, whose keys must not be seen."""
    play = Play(make_policy(family, attention=attention))
    masks = []
    forward = TextPolicy.forward
    watched = lambda *args, **kwargs: masks.append(kwargs.get("attention_mask")) or forward(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(TextPolicy, "forward", watched)
    play.start([0, 1, 2], [play.tokens(3) for _ in range(3)])
    play.run(2)
    assert all(mask is None for mask in masks)
    play.start([3], [play.tokens(11)])
    play.run(2)
    assert masks[-1] is not None
    play.drop(3)
    play.run(2)
    assert masks[-1] is None
    play.drop(0)
    play.run(2)
    assert play.largest_error() < (1e-10 if attention == "sdpa" else 1e-5)


def test_one_token_prompts_need_no_prefill():
    play = Play(make_policy(), slots=3)
    play.start([0, 1, 2], [torch.tensor([7]), torch.tensor([7]), torch.tensor([3])])
    play.run(3)
    assert play.largest_error() < 1e-10


def test_rows_may_fill_the_capacity():
    play = Play(make_policy(), slots=2)
    play.start([0, 1], [torch.arange(2, 8), torch.tensor([3])])
    play.run(CAPACITY - 6 + 1)
    assert play.largest_error() < 1e-10


def late(decoder):
    decoder._positions += 1


def leaky(decoder):
    """The mask shows one key too many: the stale one behind a row's end."""
    decoder._columns = torch.arange(len(decoder._columns)) - 1


def half_copied(decoder):
    decoder.cache.copy_slots = lambda sources, targets, length: None


@pytest.mark.parametrize("fault", [late, leaky, half_copied])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_faulty_decoder_is_seen(family, fault):
    """Must fail: positions off by one, a mask one key too wide, shared prompts that are not copied."""
    assert play_everything(make_policy(family), break_decoder=fault).largest_error() > 1e-2


def refused(config, attention="sdpa"):
    policy = TextPolicy(AutoModelForCausalLM.from_config(config, attn_implementation=attention), VOCAB)
    return Decoder(policy, 2, CAPACITY)


SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}


def test_alibi_is_refused():
    with pytest.raises(ValueError, match="bloom adds position biases"):
        refused(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4), "eager")
    falcon = FAMILIES["falcon"]()
    falcon.alibi = True
    with pytest.raises(ValueError, match="falcon adds position biases"):
        refused(falcon)


def test_a_window_shorter_than_the_episode_is_refused():
    shape = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
    with pytest.raises(ValueError, match=r"last 19 tokens only.* lower max_prompt_tokens \+ max_new_tokens to 19"):
        refused(MistralConfig(**shape, sliding_window=CAPACITY - 1))
    refused(MistralConfig(**shape, sliding_window=CAPACITY))


def test_too_few_positions_are_refused():
    with pytest.raises(ValueError, match="the model has 19 positions"):
        refused(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=CAPACITY - 1))
    refused(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=CAPACITY))


def test_attention_without_explicit_masks_is_refused():
    policy = make_policy()
    policy.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        Decoder(policy, 2, CAPACITY)
