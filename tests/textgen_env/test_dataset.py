import copy
import dataclasses
import pickle
import random
import sys

import pytest

from textgen_env.tasks import TextTask, resolve_task
from textgen_env.tasks.dataset import FRACTIONS, split_of
from textgen_env.types import Prompt

ALL_TRAIN = (1.0, 0.0, 0.0)


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path."""

    def write_file(content: str | bytes, name: str = "data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write_file


def many(count: int) -> list[tuple[str, str]]:
    return [(f"prompt {number}", f"reference {number}") for number in range(count)]


def where(task: TextTask) -> dict[str, str]:
    return {prompt.text: split for split, prompts in task.splits.items() for prompt in prompts}


# Pairs


def test_pairs_of_every_form():
    ready = Prompt("d", ("x",), {"source": "book"})
    task = TextTask.from_pairs([("a", "x"), ("b", ["x", "y"]), ("c", None), ready, "e"], fractions=ALL_TRAIN)
    assert [prompt.references for prompt in task.prompts()] == [("x",), ("x", "y"), (), ("x",), ()]
    assert task.prompts()[3] == ready
    assert list(task.texts()) == ["a", "x", "b", "x", "y", "c", "d", "x", "e"]
    assert repr(task) == "TextTask('pairs', train=5, validation=0, test=0)"


def test_given_splits_and_their_other_names():
    task = TextTask.from_pairs({"train": [("a", "x")], "dev": ["b"], "test": ["c"]})
    assert [task.prompts(split)[0].text for split in ("train", "validation", "test")] == ["a", "b", "c"]


@pytest.mark.parametrize("item", [("a", "b", "c"), 3, ("a",)])
def test_malformed_pair(item):
    with pytest.raises(ValueError, match="pair 2: expected a prompt or"):
        TextTask.from_pairs(["fine", item])


def test_one_string_is_not_a_list_of_prompts():
    with pytest.raises(TypeError, match="one string"):
        TextTask.from_pairs("abc")


def test_empty_prompt_names_the_pair():
    with pytest.raises(ValueError, match="pair 2 of 'train', field 'prompt': the prompt is empty"):
        TextTask.from_pairs({"train": ["a", " \n"]})


# Splits


def test_the_split_of_a_prompt_is_its_own_affair():
    before = TextTask.from_pairs(many(500))
    shuffled = many(900)
    random.Random(0).shuffle(shuffled)
    after = where(TextTask.from_pairs(shuffled))
    assert where(before).items() <= after.items()
    assert all(split_of(text, FRACTIONS) == split for text, split in after.items())
    assert {split: len(prompts) for split, prompts in before.splits.items()} == pytest.approx(
        {"train": 400, "validation": 50, "test": 50}, abs=25
    )


def test_the_hash_is_pinned():
    """These must never change: a prompt that moves from test to train spoils old results."""
    found = [split_of(f"prompt {number}") for number in range(12)]
    assert found == ["train", "validation"] + ["train"] * 8 + ["test", "validation"]


def test_more_training_data_only_takes_from_the_others():
    small = where(TextTask.from_pairs(many(300), fractions=(0.5, 0.25, 0.25)))
    large = where(TextTask.from_pairs(many(300), fractions=(0.75, 0.125, 0.125)))
    assert all(large[text] == "train" for text, split in small.items() if split == "train")


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0, 1)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        TextTask.from_pairs(many(3), fractions=fractions)


def test_repeated_prompts_are_merged():
    items = [Prompt("a", ("x",), {"n": 1}), Prompt("a", ("y", "x"), {"n": 2}), Prompt("b")]
    task = TextTask.from_pairs(items, fractions=ALL_TRAIN)
    assert task.prompts() == (Prompt("a", ("x", "y"), {"n": 1}), Prompt("b"))


def test_empty_train_split_is_an_error():
    with pytest.raises(ValueError, match="the train split is empty"):
        TextTask.from_pairs(many(50), fractions=(0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="the train split is empty"):
        TextTask.from_pairs([])


def test_unknown_and_empty_splits():
    task = TextTask.from_pairs({"train": ["a"], "validation": ["b"]})
    with pytest.raises(ValueError, match="no prompts in split 'test'"):
        task.prompts("test")
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        list(task.texts("valdation"))
    with pytest.raises(ValueError, match="unknown split 'tarin'; did you mean 'train'"):
        TextTask.from_pairs({"tarin": ["a"]})
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TextTask("direct", {"train": (Prompt("a"),), "dev": ()})
    with pytest.raises(ValueError, match="given twice, the second time as 'dev'"):
        TextTask.from_pairs({"train": ["a"], "valid": ["b"], "dev": ["c"]})


def test_immutable_and_picklable():
    given = {"train": (Prompt("a"),)}
    task = TextTask("mine", given)
    given["train"] = ()
    assert task.prompts() == (Prompt("a"),)
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(AttributeError):
        task.name = "yours"


# Templates


def test_template_with_metadata_and_braces_in_the_data(write):
    path = write('{"q": "what is {n}?", "n": 3, "passage": "{prompt} {x}", "reference": "a"}\n')
    template = "{passage}|{prompt}|{n}| {}{a b}"
    task = TextTask.from_jsonl(path, prompt_field="q", template=template, fractions=ALL_TRAIN)
    assert task.prompts()[0].text == "{prompt} {x}|what is {n}?|3| {}{a b}"
    assert task.prompts()[0].metadata == {"n": 3, "passage": "{prompt} {x}"}


def test_bad_templates(write):
    path = write('{"prompt": "a", "passage": "b", "odd": null, "reference": "r"}\n')
    with pytest.raises(ValueError, match=r"template 'Q: ' does not contain '\{prompt\}'"):
        TextTask.from_jsonl(path, template="Q: ")
    with pytest.raises(ValueError, match=r"line 1: the template names '\{pasage\}'.*did you mean 'passage'"):
        TextTask.from_jsonl(path, template="{pasage} {prompt}")
    with pytest.raises(ValueError, match="line 1, field 'odd': expected a string"):
        TextTask.from_jsonl(path, template="{odd} {prompt}")
    with pytest.raises(ValueError, match=r"template names '\{reference\}'"):  # it would give the answer away
        TextTask.from_jsonl(path, template="{reference} {prompt}")


# JSON lines


def test_jsonl_fields_and_metadata(write):
    path = write(
        '{"context": ["One .", "Two ."], "ending": ["Three .", "Four ."], "id": 7}\n'
        "\n"
        '{"context": "Five .", "ending": null, "id": 8}\r\n'
        '{"context": "Six .", "ending": "", "id": 9}'
    )
    task = TextTask.from_jsonl(path, prompt_field="context", reference_field="ending", fractions=ALL_TRAIN)
    assert task.prompts() == (
        Prompt("One . Two .", ("Three .", "Four ."), {"id": 7}),
        Prompt("Five .", (), {"id": 8}),
        Prompt("Six .", (), {"id": 9}),
    )
    assert task.name == "data"
    bare = TextTask.from_jsonl(path, prompt_field="context", reference_field=None, fractions=ALL_TRAIN)
    assert bare.prompts()[0] == Prompt("One . Two .", (), {"ending": ["Three .", "Four ."], "id": 7})


def test_jsonl_breaks_lines_at_newlines_only(write):
    separators = "a\u2028b\u2029c\x85d"
    path = write(f'{{"prompt": "{separators}", "reference": "r"}}\n')
    assert TextTask.from_jsonl(path, fractions=ALL_TRAIN).prompts()[0].text == separators


def test_byte_order_mark_is_not_data(write):
    path = write(b'\xef\xbb\xbf{"prompt": "a", "reference": "r"}')
    assert TextTask.from_jsonl(path, fractions=ALL_TRAIN).prompts() == (Prompt("a", ("r",)),)
    path = write(b"\xef\xbb\xbfprompt,reference\na,r\n", "data.csv")
    assert TextTask.from_csv(path, fractions=ALL_TRAIN).prompts() == (Prompt("a", ("r",)),)


def test_jsonl_of_given_splits(write):
    files = {split: write(f'{{"prompt": "{split}", "reference": "r"}}', f"{split}.jsonl") for split in ("train", "val")}
    task = TextTask.from_jsonl(files)
    assert where(task) == {"train": "train", "val": "validation"}
    assert task.name == "train"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"prompt": 3, "reference": "r"}', "line 2, field 'prompt': expected a string .* got int"),
        ('{"prompt": ["a", 1], "reference": "r"}', "line 2, field 'prompt': .* got a list of int, str"),
        ('{"prompt": "", "reference": "r"}', "line 2, field 'prompt': the prompt is empty"),
        ('{"prompt": [], "reference": "r"}', "line 2, field 'prompt': the prompt is empty"),
        ('{"prompt": "a", "reference": {"b": 1}}', "line 2, field 'reference': .* got dict"),
        ('{"prompt": "a", "reference": ["b", ""]}', "line 2, field 'reference': .* is empty"),
        (r'{"prompt": "\ud800", "reference": "r"}', "line 2, field 'prompt': lone surrogate"),
        (r'{"prompt": "a", "reference": "\ud800"}', "line 2, field 'reference': lone surrogate"),
        (r'{"prompt": "a", "reference": "r", "note": "\ud800"}', "line 2, field 'note': lone surrogate"),
        ('{"prompt": "a", "referense": "r"}', "line 2: no field 'reference'; did you mean 'referense'"),
        ('{"promt": "a", "reference": "r"}', "line 2: no field 'prompt'; did you mean 'promt'"),
    ],
)
def test_jsonl_errors_name_file_line_and_field(write, line, message):
    path = write('{"prompt": "fine", "reference": "r"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"data.jsonl, {message}"):
        TextTask.from_jsonl(path)


def test_missing_references_say_how_to_do_without(write):
    with pytest.raises(ValueError, match="reference_field=None"):
        TextTask.from_jsonl(write('{"prompt": "a"}'))


def test_files_that_are_not_text_or_not_there(write, tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: not valid UTF-8"):
        TextTask.from_jsonl(write(b'{"prompt": "a", "reference": "r"}\n\xff\n'))
    with pytest.raises(ValueError, match=r"data\.jsonl: the file holds no records"):
        TextTask.from_jsonl(write("\n \n"))
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        TextTask.from_jsonl(tmp_path / "absent.jsonl")


# CSV


def test_csv_with_quoted_newlines(write):
    path = write('prompt,reference,n\r\n"a\nb, ""c""",r,1\r\n\r\nd\u2028e,,2\r\n', "data.csv")
    task = TextTask.from_csv(path, fractions=ALL_TRAIN)
    assert task.prompts() == (Prompt('a\nb, "c"', ("r",), {"n": "1"}), Prompt("d\u2028e", (), {"n": "2"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('prompt,reference\n"a\nb",r\nc\n', r", line 4: 1 fields, but the header has 2 \(prompt, reference\)"),
        ("prompt,reference\na,b,c\n", ", line 2: 3 fields, but the header has 2"),
        ("prompt,prompt\na,b\n", ", line 1: column names must be distinct"),
        ('prompt,reference\n"a,b\n', ", line 2: not valid CSV"),
        ("prompt,reference\n ,b\n", ", line 2, field 'prompt': the prompt is empty"),
        ("promt,reference\na,b\n", ", line 2: no field 'prompt'; did you mean 'promt'"),
        ("prompt,reference\n", ": the file holds no records"),
        ("", ": the file holds no records"),
        (b"prompt,reference\na,\xe9\n", ", line 2: not valid UTF-8"),
    ],
)
def test_csv_errors_name_file_line_and_field(write, content, message):
    path = write(content, "data.csv")
    with pytest.raises(ValueError, match=f"data.csv{message}"):
        TextTask.from_csv(path)


# Hugging Face datasets


def test_dataset_object_is_divided():
    datasets = pytest.importorskip("datasets")
    rows = {"question": [f"q{n}" for n in range(100)], "answer": [["x", "y"]] * 100, "level": list(range(100))}
    task = TextTask.from_dataset(
        datasets.Dataset.from_dict(rows), prompt_field="question", reference_field="answer", template="Q: {prompt}"
    )
    assert len(where(task)) == 100
    assert len(task.prompts()) < 100
    assert task.prompts()[0] == Prompt("Q: q0", ("x", "y"), {"level": 0})


def test_dataset_dict_gives_the_splits():
    datasets = pytest.importorskip("datasets")

    def part(text: str):
        return datasets.Dataset.from_dict({"prompt": [text], "reference": ["r"]})

    given = datasets.DatasetDict({"train": part("a"), "valid": part("b"), "test": part("c")})
    assert where(TextTask.from_dataset(given)) == {"a": "train", "b": "validation", "c": "test"}
    with pytest.raises(ValueError, match="unknown split 'train_sft'"):
        TextTask.from_dataset(datasets.DatasetDict({"train_sft": part("a")}))
    with pytest.raises(ValueError, match=r"dataset \('train'\), row 0, field 'prompt': the prompt is empty"):
        TextTask.from_dataset(datasets.DatasetDict({"train": part(""), "test": part("c")}))


def test_dataset_by_name(write, tmp_path):
    pytest.importorskip("datasets")
    path = write("".join(f'{{"prompt": "p{n}", "reference": "r"}}\n' for n in range(60)))
    load = {"data_files": str(path), "cache_dir": str(tmp_path / "cache")}
    task = TextTask.from_dataset("json", load_kwargs=load)
    assert where(task) == where(TextTask.from_jsonl(path))  # "train" alone is data that nobody split
    with pytest.raises(TypeError, match="already loaded"):
        TextTask.from_dataset([{"prompt": "a"}], load_kwargs=load)


def test_dataset_by_name_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install textgen-env\[datasets\]"):
        TextTask.from_dataset("some/name")


# resolve_task


CALLS: list[int] = []
READY = TextTask.from_pairs(["a"], fractions=ALL_TRAIN)
NUMBER = 3


def make(size: int = 2, words: object = None) -> TextTask:
    CALLS.append(size)
    return TextTask.from_pairs(many(size), name="made", fractions=ALL_TRAIN)


def test_resolve_objects_and_functions():
    assert resolve_task(READY) is READY
    assert len(resolve_task(make, size=4).prompts()) == 4
    assert resolve_task(f"{__name__}:READY") is READY


def test_a_named_task_is_built_once():
    CALLS.clear()
    first = resolve_task(f"{__name__}:make", size=3, words="x")
    assert resolve_task(f"{__name__}:make", words="x", size=3) is first
    assert resolve_task(f"{__name__}:make", size=4, words="x") is not first
    assert CALLS == [3, 4]
    resolve_task(f"{__name__}:make", size=3, words=["unhashable"])
    assert CALLS == [3, 4, 3]


def test_a_file_is_read_again_when_it_changed(write):
    row = '{"prompt": "a", "answer": "r"}\n'
    arguments = {"reference_field": "answer", "fractions": ALL_TRAIN}
    path = str(write(row))
    first = resolve_task(path, **arguments)
    assert resolve_task(path, **arguments) is first
    write(row + '{"prompt": "b", "answer": "r"}\n')
    assert resolve_task(path, **arguments) != first
    assert resolve_task(str(write("prompt,reference\na,r\n", "x.csv")), fractions=ALL_TRAIN).name == "x"


def test_resolve_errors():
    with pytest.raises(ValueError, match="'news' is no task"):
        resolve_task("news")
    with pytest.raises(TypeError, match="finished task and takes no arguments, got \\['size'\\]"):
        resolve_task(READY, size=3)
    with pytest.raises(TypeError, match="NUMBER' is a int; expected a TextTask"):
        resolve_task(f"{__name__}:NUMBER")
    with pytest.raises(TypeError, match="returned a int"):
        resolve_task(lambda: 3)
    with pytest.raises(FileNotFoundError, match="absent"):
        resolve_task("absent.jsonl")
    with pytest.raises(AttributeError, match="did you mean 'make'"):
        resolve_task(f"{__name__}:mke")


# The game a task may carry


def last_word(prompt):
    return prompt.text.split()[-1]


def anything(prompt, actions, tokenizer):
    return range(tokenizer.vocab_size)


def test_a_task_carries_its_game():
    plain = TextTask.from_pairs({"train": ["a", "b"]})
    assert (plain.vocabulary, plain.max_new_tokens, plain.reward, plain.oracle, plain.allowed_tokens) == (None,) * 5
    game = {
        "vocabulary": ("a", "b"),
        "max_new_tokens": 3,
        "reward": "rouge_l",
        "oracle": last_word,
        "allowed_tokens": anything,
    }
    task = dataclasses.replace(plain, **game)
    for twin in (task, copy.deepcopy(task), pickle.loads(pickle.dumps(task)), TextTask("pairs", plain.splits, **game)):
        assert twin == task
        assert {name: getattr(twin, name) for name in game} == game
    assert dataclasses.replace(plain, vocabulary=["a", "b"]).vocabulary == ("a", "b")


@pytest.mark.parametrize(
    ("game", "error", "message"),
    [
        ({"vocabulary": "a b"}, TypeError, "vocabulary is one string; give its words"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_bad_games(game, error, message):
    with pytest.raises(error, match=f"task 'pairs': {message}"):
        dataclasses.replace(TextTask.from_pairs({"train": ["a"]}), **game)
