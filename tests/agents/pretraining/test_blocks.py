import numpy as np
import pytest
import torch

from agents.pretraining.blocks import Blocks, Controls, encode_segments, pack, pieces_of
from agents.pretraining.documents import segments_of
from agents.pretraining.figures import predictions
from agents.pretraining.preference import tokenizer_that_starts, with_control_vocabulary
from tests.agents.conftest import make_policy, word_tokenizer
from textgen_env import TextTokenizer
from textgen_env.tokenizer import train_tokenizer

GOOD, BAD = 8, 9


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(word_tokenizer("a b c d e f"))  # ids 2 … 7; 1 is the EOS, and stands at the start too


def cut(segments, tokenizer, size, rewards=None, **options):
    return pieces_of(segments, rewards or [0.0] * len(segments), tokenizer, block_size=size, **options)


def test_a_document_is_read_from_its_start_and_predicted_to_its_end(tokenizer):
    (piece,) = cut([[2, 3], [4]], tokenizer, 8, [0.5, -1.0])
    assert piece.inputs_T.tolist() == [1, 2, 3, 4]
    assert piece.targets_T.tolist() == [2, 3, 4, 1]
    assert piece.rewards_T.tolist() == [0.5, 0.5, -1.0, -1.0]  # the EOS belongs to the last segment


def test_a_long_document_is_cut_and_every_token_predicted_once(tokenizer):
    pieces = cut([[2, 3, 4, 5, 6]], tokenizer, 2)
    assert [piece.inputs_T.tolist() for piece in pieces] == [[1, 2], [3, 4], [5, 6]]
    assert [piece.targets_T.tolist() for piece in pieces] == [[2, 3], [4, 5], [6, 1]]


def test_every_piece_follows_the_control_token_of_its_segment(tokenizer):
    controls = Controls(GOOD, BAD, threshold=0.5)
    pieces = cut([[2, 3, 4, 5], [6]], tokenizer, 3, [1.0, 0.0], controls=controls)
    assert [piece.targets_T.tolist() for piece in pieces] == [[GOOD, 2, 3], [4, 5, BAD], [6, 1]]
    assert [piece.inputs_T.tolist() for piece in pieces] == [[1, GOOD, 2], [GOOD, 4, 5], [BAD, 6]]
    without = cut([[2, 3, 4, 5], [6]], tokenizer, 3)
    assert without[1].inputs_T[0] == 4  # must fail: a piece that begins within a segment would not know its kind


def test_some_segments_go_without_control_token(tokenizer):
    controls, rng = Controls(GOOD, BAD, threshold=0.5, drop=0.3), np.random.default_rng(0)
    bare = [GOOD not in cut([[2]], tokenizer, 8, [1.0], controls=controls, rng=rng)[0].targets_T for _ in range(1000)]
    assert np.mean(bare) == pytest.approx(0.3, abs=0.05)


def test_packing_cuts_nothing_and_loses_nothing():
    lengths = np.random.default_rng(0).integers(1, 21, 500).tolist()
    blocks = pack(lengths, 64)
    assert sorted(index for block in blocks for index in block) == list(range(500))
    assert max(sum(lengths[index] for index in block) for block in blocks) <= 64
    assert len(blocks) <= 1.01 * sum(lengths) / 64 + 1  # nearly full
    with pytest.raises(ValueError, match="65 tokens does not fit"):
        pack([65], 64)


def make_blocks(tokenizer, size=7):
    documents = [[2, 3, 4], [5], [6, 6, 7, 2], [3, 3], [4, 5, 6, 7, 2, 3, 4, 5, 6]]
    pieces = [piece for ids in documents for piece in cut([ids], tokenizer, size)]
    return documents, Blocks.of(pieces, size, tokenizer.pad_id)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_shares_a_block_does_not_see_each_other(tokenizer, family):
    """Log-probabilities in packed blocks are those of every piece alone, through the plain model."""
    policy = make_policy(family, vocab_size=8)
    _, blocks = make_blocks(tokenizer)
    assert int(blocks.pieces_NS.max()) > 0  # there is something to see
    batch = blocks.batch()
    found, _ = predictions(policy, batch)
    expected, at = [], 0
    for row, numbers in zip(blocks.input_ids_NS, blocks.pieces_NS, strict=True):
        for number in range(int(numbers.max()) + 1):
            ids = row[numbers == number].long()
            log_probs = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for place in range(len(ids)):
                expected.append(log_probs[place, batch.targets_N[at]])
                at += 1
    gap = (torch.stack(expected) - found).abs().max()
    assert float(gap.detach()) < 1e-9
    leaky, _ = policy(batch.input_ids_BS, batch.positions_BS, batch.select_N)  # must fail: plain causal attention
    leaky_N = leaky.log_softmax(-1).gather(-1, batch.targets_N[:, None]).squeeze(-1)
    assert float((torch.stack(expected) - leaky_N).abs().max().detach()) > 1e-3


def test_padding_does_not_matter(tokenizer):
    policy = make_policy(vocab_size=8)
    _, blocks = make_blocks(tokenizer)
    before, _ = predictions(policy, blocks.batch())
    blocks.input_ids_NS[blocks.pieces_NS < 0] = 5
    blocks.target_ids_NS[blocks.pieces_NS < 0] = 5
    after, _ = predictions(policy, blocks.batch())
    assert torch.equal(before, after)


def test_a_batch_of_whole_blocks_needs_no_mask(tokenizer):
    blocks = Blocks.of(cut([[2, 3, 4, 5, 6, 7, 2]], tokenizer, 4), 4, 0)
    assert blocks.select([0, 1]).batch().attention_mask is None
    assert blocks.num_tokens == 8


def test_the_fingerprint_is_of_all_there_is(tokenizer):
    _, blocks = make_blocks(tokenizer)
    _, again = make_blocks(tokenizer)
    assert blocks.fingerprint() == again.fingerprint()
    again.rewards_NS[0, 0] += 1
    assert blocks.fingerprint() != again.fingerprint()


def test_micro_batches_hold_so_many_tokens(tokenizer):
    _, blocks = make_blocks(tokenizer)
    chosen = blocks.select([3, 1, 2, 0])
    for tokens, expected in ((14, [[0, 1], [2, 3]]), (1, [[0], [1], [2], [3]]), (1000, [[0, 1, 2, 3]])):
        parts = list(chosen.micro_batches(tokens))
        assert [rows.tolist() for rows, _ in parts] == expected
        for rows, part in parts:
            assert part.fingerprint() == chosen.select(rows).fingerprint()
    assert torch.equal(chosen.input_ids_NS, blocks.input_ids_NS[[3, 1, 2, 0]])


TEXT = 'Mr. Fox ran.  He said "Stop!" twice.\nThen <|eos|> and <|good|>.'


def test_segments_keep_the_tokens_of_the_whole_text():
    own = tokenizer_that_starts(train_tokenizer([TEXT] * 3, 300))
    tokenizer = TextTokenizer(with_control_vocabulary(own))
    parts = segments_of(TEXT, "sentence")
    assert len(parts) > 2
    encoded = encode_segments(tokenizer, parts)
    flat = [token for ids in encoded for token in ids]
    assert flat == encode_segments(tokenizer, [TEXT])[0]
    assert [tokenizer.hf.decode(ids) for ids in encoded] == parts
    # What looks like a special token is text.
    assert not {*tokenizer.eos_ids, *tokenizer.hf.convert_tokens_to_ids(["<|good|>", "<|bad|>"])} & set(flat)
    read = tokenizer.hf(TEXT, add_special_tokens=False).input_ids
    assert tokenizer.eos_ids[0] in read  # must fail: encoded the usual way


def test_texts_start_where_generation_starts():
    own = train_tokenizer([TEXT] * 3, 300)
    tokenizer = TextTokenizer(tokenizer_that_starts(own))
    (piece,) = pieces_of(encode_segments(tokenizer, ["Mr. Fox"]), [0.0], tokenizer, block_size=64)
    prompt = tokenizer.encode_prompt("Mr. Fox")
    assert piece.inputs_T.tolist() == prompt.tolist()
    assert tokenizer.encode_prompt("").tolist() == [tokenizer.eos_ids[0]]
    assert tokenizer.decode(prompt) == "Mr. Fox"
    assert own.encode("Mr. Fox") != prompt.tolist()  # the shared tokenizer is left as it was


def test_a_word_that_the_tokenizer_lacks_is_named():
    from textgen_env.tokenizer import word_tokenizer as strict_words

    with pytest.raises(ValueError, match="no token for a word of 'x y'"):
        encode_segments(TextTokenizer(strict_words(["x"])), ["x y"])
