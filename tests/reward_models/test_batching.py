"""Batches of many lengths give each text the score it has alone; and what cannot be scored is named."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, GPT2LMHeadModel

from reward_models.batching import BatchedModel
from reward_models.inputs import check_references, check_texts
from tests.reward_models import tiny_models as tiny


def first_states(batched, rows):
    return batched.run(rows, lambda batch: batched.model(**batch.inputs).last_hidden_state[:, 0])


@pytest.fixture(params=["bert", "roberta"])
def encoder(request):
    return getattr(tiny, request.param)()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_texts_score_does_not_depend_on_its_neighbours(encoder, batch_size, side, monkeypatch):
    tokenizer = tiny.encoder_tokenizer()
    monkeypatch.setattr(tokenizer, "padding_side", side)
    batched = BatchedModel(AutoModel, encoder, tokenizer, batch_size=batch_size)
    together = first_states(batched, batched.encode(tiny.TEXTS))
    for text, state in zip(tiny.TEXTS, together, strict=True):
        alone = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
        torch.testing.assert_close(state, alone, atol=1e-5, rtol=0)
    assert len({float(state[0]) for state in together}) == len(tiny.TEXTS)


def test_padding_on_the_left_without_positions_would_be_seen():
    """The twin with the classic bug: attention is masked, positions are not moved."""
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    ids = tokenizer(tiny.TEXTS[0], return_tensors="pt").input_ids
    pad = torch.zeros(1, 5, dtype=torch.int64)
    mask = torch.cat([pad, torch.ones_like(ids)], dim=1)
    alone = model(input_ids=ids).logits[0, -1]
    padded = model(input_ids=torch.cat([pad, ids], dim=1), attention_mask=mask).logits[0, -1]
    assert (alone - padded).abs().max() > 0.1


def test_the_padding_token_in_a_text_is_a_token():
    batched = BatchedModel(AutoModel, tiny.bert(), tiny.encoder_tokenizer())
    row = {"input_ids": [1, 5, 0, 0, 2], "token_type_ids": [0] * 5}
    longer = {"input_ids": [1] + [6] * 9, "token_type_ids": [0] * 10}
    alone, among = first_states(batched, [row])[0], first_states(batched, [longer, row])[1]
    torch.testing.assert_close(among, alone, atol=1e-5, rtol=0)
    without = first_states(batched, [{"input_ids": [1, 5, 2], "token_type_ids": [0] * 3}])[0]
    assert (without - alone).abs().max() > 1e-3


def test_the_longest_go_first_and_answers_come_in_order():
    batched = BatchedModel(AutoModel, tiny.bert(), tiny.encoder_tokenizer(), batch_size=3)
    widths = []

    def count(batch):
        widths.append(batch.inputs["input_ids"].shape[1])
        return batch.inputs["attention_mask"].sum(1).tolist()

    rows = batched.encode(tiny.TEXTS)
    assert batched.run(rows, count) == [len(row["input_ids"]) for row in rows]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 3
    assert batched.run([], count) == []
    assert batched.encode([]) == []


def test_a_model_in_training_is_scored_without_dropout_and_goes_on_training():
    model = tiny.bert().train()
    batched = BatchedModel(AutoModel, model, tiny.encoder_tokenizer())
    rows = batched.encode(tiny.TEXTS)
    once, twice = first_states(batched, rows), first_states(batched, rows)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert model.training
    with pytest.raises(ZeroDivisionError):
        batched.run(rows, lambda batch: [1 / 0])
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_long_texts_are_cut_where_the_positions_end():
    long = " ".join(["cat"] * 1000)
    encoder = BatchedModel(AutoModel, tiny.bert(), tiny.encoder_tokenizer())
    assert len(encoder.encode([long])[0]["input_ids"]) == tiny.POSITIONS
    assert BatchedModel(AutoModel, tiny.roberta(), tiny.encoder_tokenizer()).max_length == tiny.POSITIONS - 1
    short = BatchedModel(AutoModel, tiny.bert(), tiny.encoder_tokenizer(), max_length=5)
    assert len(short.encode([long])[0]["input_ids"]) == 5
    assert [len(row["input_ids"]) for row in encoder.encode(["cat"], [long])] == [tiny.POSITIONS]


def test_loading_from_a_folder_gives_the_same_and_leaves_the_global_generator_alone(tmp_path):
    model = tiny.bert()
    model.save_pretrained(tmp_path)
    tiny.encoder_tokenizer().save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    loaded = BatchedModel(AutoModel, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    given = BatchedModel(AutoModel, model, tiny.encoder_tokenizer())
    for a, b in zip(*(first_states(one, one.encode(tiny.TEXTS)) for one in (loaded, given)), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=0)


def test_a_checkpoint_without_the_head_is_refused(tmp_path):
    tiny.bert().save_pretrained(tmp_path)
    tiny.encoder_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for classifier.bias, classifier.weight.*would make the scores"):
        BatchedModel(AutoModelForSequenceClassification, tmp_path)


def test_a_checkpoint_may_lack_what_is_not_used(tmp_path):
    model = tiny.bert()
    model.pooler = None
    model.save_pretrained(tmp_path)
    tiny.encoder_tokenizer().save_pretrained(tmp_path)
    BatchedModel(AutoModel, tmp_path, optional=("pooler.",))
    with pytest.raises(ValueError, match="no weights for pooler"):
        BatchedModel(AutoModel, tmp_path)


def test_wrong_arguments_name_the_mend():
    model, tokenizer = tiny.bert(), tiny.encoder_tokenizer()
    with pytest.raises(TypeError, match="pass tokenizer="):
        BatchedModel(AutoModel, model)
    with pytest.raises(TypeError, match="a hub name, a folder or a model object, not int"):
        BatchedModel(AutoModel, 3, tokenizer)
    for size in ("batch_size", "max_length"):
        with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
            BatchedModel(AutoModel, model, tokenizer, **{size: 0})


def test_a_tokenizer_of_another_model_is_found_out():
    model = GPT2LMHeadModel(tiny.gpt2().config.__class__(vocab_size=20, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    batched = BatchedModel(AutoModel, model, tiny.lm_tokenizer())
    with pytest.raises(ValueError, match=r"but the model knows 20 tokens: pass the tokenizer"):
        batched.run(batched.encode(tiny.TEXTS), lambda batch: batch.indices)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"completions": ["a", 3]}, TypeError, r"completions\[1\] is int 3"),
        ({"completions": ["a", None]}, TypeError, r"completions\[1\] is NoneType"),
        ({"completions": "abc"}, TypeError, "wants a list of completions, got the string 'abc'"),
        ({"completions": ["\ud800"]}, ValueError, r"cannot read completions\[0\].*'replace'"),
        ({"completions": ["a"], "prompts": []}, ValueError, "got 1 completions and 0 prompts"),
    ],
)
def test_texts_are_checked(columns, error, message):
    with pytest.raises(error, match=message):
        check_texts("scorer", **columns)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        (None, ValueError, "needs references"),
        ([["a"]], ValueError, "2 completions, 1 references"),
        ([["a"], []], ValueError, "completion number 1 has none"),
        ([["a"], "b"], TypeError, "got the string 'b'"),
        ([["a"], [4]], TypeError, r"references\[1\]\[0\] is int 4"),
    ],
)
def test_references_are_checked(references, error, message):
    with pytest.raises(error, match=message):
        check_references("scorer", ["x", "y"], references)
