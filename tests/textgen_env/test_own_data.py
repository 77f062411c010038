"""Built-in tasks on a user's own files and datasets: read right, or refused with the place and the mend."""

import csv
import inspect
import json
import os
import re

import gymnasium as gym
import pytest

from textgen_env import TextMDP, resolve_reward
from textgen_env.tasks import (
    classification,
    dialogue,
    news_summary,
    question_answering,
    sentiment,
    story_ending,
    translation,
)
from textgen_env.tasks.own_data import BEST_AT_A_REFERENCE, under

ALL_TRAIN = (1.0, 0.0, 0.0)
COLUMNS = {
    "NewsSummary": ("{article}\nTL;DR:", "headline"),
    "StoryEnding": ("{context}\nEnding:", "ending"),
    "Translation": ("{source}\nTranslation:", "target"),
    "QuestionAnswering": ("{passage}\nQuestion: {question}\nAnswer:", "answer"),
    "Dialogue": ("{context}\nReply:", "reply"),
    "Classification": ("{text}\nTopic:", "label"),
}
"""Id -> what a prompt looks like, in the names of its usual columns, and the column of the reference."""
FUNCTIONS = {
    "NewsSummary": news_summary,
    "StoryEnding": story_ending,
    "Sentiment": sentiment,
    "Translation": translation,
    "QuestionAnswering": question_answering,
    "Dialogue": dialogue,
    "Classification": classification,
}


def records_of(name, count=30):
    template, reference = COLUMNS[name]
    columns = [*re.findall(r"\{(\w+)\}", template), reference]
    return [{column: f"the {column} of item {number}" for column in columns} for number in range(count)]


@pytest.fixture
def jsonl(tmp_path):
    """Write records, or lines as they are, and give the path."""

    def write(records, name="mine.jsonl"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


# Files


@pytest.mark.parametrize("name", COLUMNS)
def test_jsonl_by_id(name, jsonl):
    template, reference = COLUMNS[name]
    records = records_of(name)
    env = gym.make(f"textgen_env/{name}-v0", task_kwargs={"data": jsonl(records)}, max_new_tokens=40)
    mdp = env.unwrapped.mdp
    found = {prompt.text: prompt.references for split in mdp.task.splits.values() for prompt in split}
    assert found == {template.format_map(record): (record[reference],) for record in records}
    assert mdp.task.name == "mine"
    assert mdp.optimal_return() == 1
    assert mdp.task.vocabulary is None  # words of its own would be those of the generated prompts


def test_openings_by_id(jsonl):
    texts = ["one two three four", "five six", "seven eight nine"]
    kwargs = {"data": jsonl([{"text": text} for text in texts]), "opening_words": 2, "fractions": ALL_TRAIN}
    mdp = gym.make("textgen_env/Sentiment-v0", task_kwargs=kwargs).unwrapped.mdp
    found = {prompt.text: prompt.references for prompt in mdp.prompts}
    assert found == {"one two": ("three four",), "five six": (), "seven eight": ("nine",)}
    assert mdp.reward.name == "sentiment_lexicon"
    with pytest.raises(ValueError, match="has no oracle"):
        mdp.optimal_return()
    whole = sentiment(data=kwargs["data"], opening_words=None, fractions=ALL_TRAIN)
    assert [(prompt.text, prompt.references) for prompt in whole.prompts()] == [(text, ()) for text in texts]


def test_csv_and_given_splits(tmp_path):
    records = records_of("Translation", 4)
    paths = {}
    for split, rows in {"train": records[:2], "dev": records[2:3], "test": records[3:]}.items():
        paths[split] = tmp_path / f"{split}.csv"
        with paths[split].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    task = translation(data=paths, reward="chrf")
    assert [len(task.prompts(split)) for split in ("train", "validation", "test")] == [2, 1, 1]
    assert TextMDP(task, split="test").optimal_return() == 1


def test_other_names_and_inner_columns(jsonl):
    pairs = jsonl([{"translation": {"en": f"one {n}", "de": f"eins {n}"}} for n in range(9)])
    named = {"prompt_field": "translation.en", "reference_field": "translation.de", "fractions": ALL_TRAIN}
    assert translation(data=pairs, **named).prompts()[0].references == ("eins 0",)
    squad = jsonl([{"context": "c", "question": "q", "answers": {"text": ["a", "b"], "start": [0, 1]}}], "squad.jsonl")
    (prompt,) = question_answering(
        data=squad, template="{context} {prompt}", reference_field="answers.text", fractions=ALL_TRAIN
    ).prompts()
    assert (prompt.text, prompt.references) == ("c q", ("a", "b"))


def test_a_file_that_changed_is_read_again(jsonl):
    def first():
        kwargs = {"data": str(path), "fractions": ALL_TRAIN}
        return gym.make("textgen_env/Dialogue-v0", task_kwargs=kwargs).unwrapped.mdp.prompts[0].references

    path = jsonl([{"context": ["Hello .", "Hi ."], "reply": "before"}])
    assert first() == ("before",)
    path = jsonl([{"context": ["Hello .", "Hi ."], "reply": "after"}])
    os.utime(path, (1, 1))  # whatever the clock's grain
    assert first() == ("after",)


# Datasets


def test_a_dataset_by_name_and_by_folder(jsonl, tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    path = jsonl(records_of("Dialogue"), "folder/train.jsonl")
    expected = dialogue(data=path).splits
    cache = {"cache_dir": str(tmp_path / "cache")}
    by_folder = dialogue(data=tmp_path / "folder", load_kwargs=cache)
    by_name = dialogue(data="json", load_kwargs={**cache, "data_files": str(path)})
    assert by_folder.splits == by_name.splits == expected
    assert (by_folder.name, by_name.name) == (str(tmp_path / "folder"), "json")
    with pytest.raises(ValueError, match=r"json, row 0: no field 'replies'; .*'reply'"):
        dialogue(data="json", reference_field="replies", load_kwargs={**cache, "data_files": str(path)})


def test_classes_that_a_dataset_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    for data in (rows, datasets.DatasetDict({"train": rows})):
        task = classification(data=data, fractions=ALL_TRAIN)
        assert [prompt.references for prompt in task.prompts()] == [("yes",), ("no",)]


def test_classes_that_are_numbers(jsonl):
    path = jsonl([{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    task = classification(data=path, labels=("no", "yes"), mask=True, fractions=ALL_TRAIN)
    assert [prompt.references for prompt in task.prompts()] == [("yes",), ("no",)]
    assert task.allowed_tokens.texts == ("no", "yes")


# Errors that say where, and the mend


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column(name, jsonl):
    reference = COLUMNS[name][1]
    records = records_of(name, 3)
    records[2][reference + "s"] = records[2].pop(reference)
    path = jsonl(["", *records])
    message = f"{path}, line 4: no field '{reference}'; did you mean '{reference}s'? Name it with reference_field=..."
    with pytest.raises(ValueError, match=re.escape(message.split("?")[0])):
        FUNCTIONS[name](data=path)


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (dialogue, '{"context": "c", "reply": 3}', "line 2, field 'reply': expected a string or a list of strings"),
        (dialogue, '{"context": ["c", 1], "reply": "r"}', "line 2, field 'context': expected a string or a list"),
        (dialogue, '{"context": "c", "reply": "r"', "line 2: not valid JSON"),
        (story_ending, '{"context": " ", "ending": "e"}', "line 2, field 'context': the prompt is empty"),
        (news_summary, "[]", "line 2: expected a JSON object, got list"),
        (sentiment, '{"texts": "t"}', "line 2: no field 'text'; did you mean 'texts'"),
        (sentiment, '{"text": ["t"]}', "line 2: field 'text': expected a string, got list"),
        (classification, '{"text": "t", "lable": 1}', "line 2: no field 'label'; did you mean 'lable'"),
        (classification, '{"text": "t", "label": 1}', r"line 2: class 1 in column 'label' has no name: labels=\("),
        (question_answering, '{"question": "q", "answer": "a"}', "line 2: the template names '{passage}', which is no"),
    ],
)
def test_a_malformed_record(read, line, message, jsonl):
    path = jsonl(["", line])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, {message}"):
        read(data=path)


def test_a_class_beyond_the_names(jsonl):
    path = jsonl([{"text": "t", "label": 2}])
    with pytest.raises(ValueError, match="line 1: class 2 in column 'label' has no name: labels has 2 names"):
        classification(data=path, labels=("no", "yes"))


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "mine.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"mine.txt': files of your own end in .jsonl or .csv"):
        dialogue(data=tmp_path / "mine.txt")
    with pytest.raises(OSError, match=r"absent.jsonl"):
        dialogue(data=tmp_path / "absent.jsonl")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_the_other_way(name):
    task = FUNCTIONS[name]
    size = next(argument for argument in inspect.signature(task).parameters if argument.startswith("num_"))
    with pytest.raises(TypeError, match=f"{size}= shapes the generated prompts and has no effect on your own data"):
        task(data=[{}], **{size: 10})
    with pytest.raises(TypeError, match="prompt_field= says how your own data is read: give data= with it"):
        task(prompt_field="text")
    with pytest.raises(TypeError, match=f"has no argument '{size[:-1]}'; did you mean '{size}'"):
        task(**{size[:-1]: 10})
    assert {"data", "prompt_field", "fractions", "load_kwargs"} <= set(inspect.signature(task).parameters)


def test_load_kwargs_with_a_file(jsonl):
    with pytest.raises(TypeError, match="load_kwargs are for a dataset given by name or folder, not for files"):
        dialogue(data=jsonl(records_of("Dialogue")), load_kwargs={"split": "train"})


def test_bad_opening_words():
    with pytest.raises(ValueError, match="opening_words must be at least 1, or None, got 0"):
        sentiment(data=[{"text": "t"}], opening_words=0)


# The oracle


@pytest.mark.parametrize("reward", sorted(BEST_AT_A_REFERENCE))
def test_a_reference_is_best(reward):
    references = [["the black cat sleeps", "a cat sleeps"]]
    words = ["the", "black", "cat", "sleeps", "a"]
    score = resolve_reward(reward).function
    others = [" ".join(words[i] for i in (a, b, c)) for a in range(5) for b in range(5) for c in range(5)]
    others += ["the black cat sleeps sleeps", "sleeps cat black the", "", "the black cat sleeps"]
    best = score(completions=[references[0][0]], references=references)[0]
    assert best >= max(score(completions=others, references=references * len(others)))


@pytest.mark.parametrize(
    ("reward", "reference", "known"),
    [
        ("rouge_l", "A cat.", True),
        ("rouge_l", "?!", False),  # no word that ROUGE sees: it would earn 0
        ("bleu", "?!", True),
        ("bleu", (), False),
        ("rouge_1_recall", "A cat.", False),  # must fail: going on costs nothing, so more than one text is best
        (lambda completions, **_: [0.0] * len(completions), "A cat.", False),
    ],
)
def test_an_oracle_only_where_one_is_known(reward, reference, known):
    rows = [{"context": "Hello.", "reply": "Hi."}, {"context": "And?", "reply": reference}]
    task = under(dialogue(data=rows, fractions=ALL_TRAIN), reward)
    assert (task.oracle is not None) == known
    if known:
        assert TextMDP(task).optimal_return() == 1
