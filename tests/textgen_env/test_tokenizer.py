import numpy as np
import pytest
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from textgen_env import TextTokenizer, train_tokenizer, word_tokenizer
from textgen_env.tokenizer import EOS_TOKEN, PAD_TOKEN

CORPUS = ["the cat sat on the mat", "the dog ran to the door", "it rained in the night, and then it rained again"]
STRANGE = [
    "a smile 🙂 and a family 👩‍👩‍👧",
    "a \x00 in the middle",
    "a line\u2028separator and a para\u2029graph",
    "tabs\tand\nnew lines\r\n\nin between",
    "Ünïcödé, 日本語, عربى, \u202eright to left\u202c",
    "e\u0301 is not \u00e9",
    "\ufeffa byte order mark",
]


@pytest.fixture(scope="module")
def trained():
    return TextTokenizer(train_tokenizer(CORPUS, 300))


@pytest.fixture(scope="module")
def gpt2(shared_data):
    folder = shared_data("gpt2_tokenizer")
    return TextTokenizer(GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")))


@pytest.fixture(scope="module")
def stories(shared_data):
    return TextTokenizer(shared_data("stories260K/hf"))


@pytest.fixture(params=["trained", "gpt2", "stories"])
def each(request):
    return request.getfixturevalue(request.param)


# Every tokenizer


def test_ids_fit_the_action_space(each):
    assert each.vocab_size == len(each.hf)
    assert each.pad_id not in each.eos_ids
    assert all(0 <= index < each.vocab_size for index in (each.pad_id, *each.eos_ids))
    ids = each.encode_prompt(" ".join(STRANGE))
    assert ids.dtype == np.int64
    assert 0 <= ids.min() <= ids.max() < each.vocab_size


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("the cat sat on", "the mat"),
        ("the cat sat on ", "the mat"),
        ("Summary:\n", "rain"),
        ("it rain", "ed"),
        ("", "the cat"),
        ("a list:", "\n- one\n- two"),
        ("nothing follows", ""),
    ],
)
def test_completion_round_trip(each, prompt, completion):
    ids = each.encode_completion(prompt, completion)
    assert ids.dtype == np.int64
    assert ids[-1] == each.eos_ids[0]
    assert not np.isin(ids[:-1], each.eos_ids).any()
    assert each.decode(ids) == completion.strip()


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_round_trip(each, text):
    assert each.decode(each.encode_completion("He said:", text)) == text.strip()
    assert each.decode(each.encode_prompt(text)) == text.strip()


def test_no_completion_is_the_eos_alone(each):
    assert each.encode_completion("the end", "").tolist() == [each.eos_ids[0]]


def test_empty_prompt_is_one_start_token(each):
    start = each.hf.bos_token_id
    assert each.encode_prompt("").tolist() == [each.eos_ids[0] if start is None else start]


def test_decode_strips_and_skips_special_tokens(each):
    ids = each.hf.encode("  the mat ", add_special_tokens=False)
    assert each.decode([*ids, each.eos_ids[0]]) == "the mat"
    assert each.decode([each.eos_ids[0]]) == each.decode([]) == ""
    assert each.decode(np.array(ids)) == "the mat"


# GPT-2's byte pairs


def test_first_token_carries_the_word_boundary(gpt2):
    world, space_world = gpt2.hf.encode("world"), gpt2.hf.encode(" world")
    assert world != space_world
    assert gpt2.encode_completion("Hello", "world").tolist() == [*space_world, 50256]
    assert gpt2.encode_completion("Hello\n", "world").tolist() == [*world, 50256]
    assert gpt2.encode_completion("", "world").tolist() == [*world, 50256]


def test_prompt_and_completion_are_the_text_as_a_model_reads_it(gpt2):
    prompt, completion = "Once upon a time", "there was a tokenizer"
    joint = [*gpt2.encode_prompt(prompt), *gpt2.encode_completion(prompt, completion)]
    assert joint == [*gpt2.hf.encode(f"{prompt} {completion}"), 50256]


def test_white_space_is_not_doubled(gpt2):
    joint = [*gpt2.encode_prompt("A list:"), *gpt2.encode_completion("A list:", "\n- one")]
    assert gpt2.hf.decode(joint[:-1]) == "A list:\n- one"


def test_merge_across_the_boundary(gpt2):
    """ "Hello " ends in a lone space that "Hello world" has merged away: the completion's own tokens stand in."""
    assert gpt2.encode_completion("Hello ", "world").tolist() == [*gpt2.hf.encode("world"), 50256]


def test_a_pad_is_found(gpt2):
    assert gpt2.hf.pad_token_id is None
    assert (gpt2.pad_id, gpt2.eos_ids) == (0, (50256,))


# A folder with a Llama tokenizer


def test_folder_brings_its_generation_config(stories):
    assert set(stories.eos_ids) == {1, 2}
    assert (stories.pad_id, stories.vocab_size) == (0, 512)


def test_start_token_only_before_the_prompt(stories):
    assert stories.encode_prompt("Once upon a time")[0] == stories.hf.bos_token_id == 1
    assert 1 not in stories.encode_completion("Once upon a time", "there was a cat")


# EOS and PAD


def with_tokens(**kwargs):
    return PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(CORPUS, 300).backend_tokenizer, **kwargs)


def test_no_eos_is_an_error():
    with pytest.raises(ValueError, match="names no EOS token"):
        TextTokenizer(with_tokens())
    with pytest.raises(ValueError, match="names no EOS token"):
        TextTokenizer(with_tokens(eos_token=EOS_TOKEN), eos_token_id=[])
    assert TextTokenizer(with_tokens(), eos_token_id=7).eos_ids == (7,)


@pytest.mark.parametrize("asked", [(5, 3), [5, 3], np.array([5, 3])])
def test_several_eos(asked):
    tokenizer = TextTokenizer(train_tokenizer(CORPUS, 300), asked)
    assert tokenizer.eos_ids == (5, 3)
    assert tokenizer.encode_completion("a", "b")[-1] == 5


@pytest.mark.parametrize("asked", [np.int64(5), 5])
def test_one_eos(asked):
    assert TextTokenizer(train_tokenizer(CORPUS, 300), asked).eos_ids == (5,)


@pytest.mark.parametrize("outside", [-1, 290, [4, 10**6]])
def test_eos_outside_the_vocabulary(outside):
    with pytest.raises(ValueError, match="lies outside the vocabulary of 290 tokens"):
        TextTokenizer(train_tokenizer(CORPUS, 290), outside)


def test_pad_that_is_eos_gets_another_filler():
    assert TextTokenizer(with_tokens(eos_token=EOS_TOKEN, pad_token=EOS_TOKEN)).pad_id == 0
    assert TextTokenizer(with_tokens(pad_token=PAD_TOKEN), eos_token_id=[0, 1, 2]).pad_id == 3
    assert TextTokenizer(with_tokens(eos_token=EOS_TOKEN, pad_token="the")).hf.pad_token_id > 1


def test_closing_eos_is_taken_off_a_prompt():
    """T5 and others close every text with EOS: a prompt must stay open."""
    from tokenizers import processors

    hf = with_tokens(eos_token=EOS_TOKEN)
    hf._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, hf.eos_token_id)]
    )
    assert hf.encode("the cat")[-1] == hf.eos_token_id
    tokenizer = TextTokenizer(hf)
    assert hf.eos_token_id not in tokenizer.encode_prompt("the cat")
    assert tokenizer.encode_prompt("").tolist() == [hf.eos_token_id]
    assert tokenizer.encode_completion("the", "cat").tolist().count(hf.eos_token_id) == 1
    assert tokenizer.decode(tokenizer.encode_completion("the", "cat")) == "cat"
    hf._tokenizer.post_processor = processors.ByteLevel()


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="not int"):
        TextTokenizer(3)


# Training


def test_training_is_deterministic_and_shared():
    first = train_tokenizer(CORPUS, 290)
    assert train_tokenizer(iter(CORPUS), 290) is first
    assert train_tokenizer(CORPUS, 291) is not first
    for number in range(9):  # push it out of the memory
        train_tokenizer([*CORPUS, str(number)], 290)
    again = train_tokenizer(CORPUS, 290)
    assert again is not first
    assert again.get_vocab() == first.get_vocab()
    assert again.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()


def test_training_learns_words():
    texts = CORPUS * 3
    sizes = [len(train_tokenizer(texts, size).encode(CORPUS[0])) for size in (258, 300)]
    assert sizes[0] == len(CORPUS[0])  # bytes only
    assert sizes[1] < sizes[0] / 2


def test_vocabulary_needs_room_for_the_bytes():
    assert len(train_tokenizer(CORPUS, 258)) == 258
    with pytest.raises(ValueError, match="vocab_size=257 is too small: bytes and special tokens need 258"):
        train_tokenizer(CORPUS, 257)


# Words


def test_one_token_a_word():
    tokenizer = TextTokenizer(word_tokenizer(["left", "right", "+"]))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_ids) == (5, 0, (1,))
    assert tokenizer.encode_prompt("right + left").tolist() == [3, 4, 2]
    assert tokenizer.encode_completion("right +", "left").tolist() == [2, 1]
    assert tokenizer.decode([3, 0, 2, 1]) == "right left"


def test_the_same_words_share_one_tokenizer():
    assert word_tokenizer(["a", "b"]) is word_tokenizer("ab")
    assert word_tokenizer(["b", "a"]).encode("a") == [3]


@pytest.mark.parametrize("saved", [False, True])
def test_an_unknown_word_is_named(saved, tmp_path):
    tokenizer = word_tokenizer(["left", "right"])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = TextTokenizer(tmp_path if saved else tokenizer)
    assert tokenizer.encode_prompt("left right").tolist() == [2, 3]
    with pytest.raises(ValueError, match="no word 'rihgt', found in 'left rihgt'; did you mean 'right'"):
        tokenizer.encode_prompt("left rihgt")


def test_a_failure_that_is_no_unknown_word_stays_what_it_is(trained):
    with pytest.raises(ValueError, match="text input must be of type `str`"):
        trained.encode_prompt(3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a b"], "'a b' is not one word"),
        (["a", ""], "'' is not one word"),
        (["a", "b", "a"], "'a' occurs twice"),
        (["a", "<eos>"], "'<eos>' occurs twice .* are there already"),
    ],
)
def test_words_must_be_words(words, message):
    with pytest.raises(ValueError, match=message):
        word_tokenizer(words)
