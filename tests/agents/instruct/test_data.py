import json

import pytest
from transformers import PreTrainedTokenizerFast

from agents.instruct.data import (
    ChatTemplate,
    Instruction,
    Lengths,
    Limits,
    Template,
    as_task,
    fitting,
    lengths_of,
    limits_for,
    make_template,
    read_instructions,
    rules,
    side_of,
    split_instructions,
)
from agents.supervised import reference_pairs
from tests.agents.conftest import word_tokenizer
from textgen_env import TextTokenizer
from textgen_env.tasks.dataset import SPLITS

WORDS = TextTokenizer(word_tokenizer("a b c d e f"))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_records_are_read_in_order(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"instruction": "Add", "input": "1 1", "output": "2", "id": 7},
        {"instruction": "Say hello", "output": "hello"},
        {"instruction": "Say no", "input": None, "output": "no"},
    )
    source = str(path)
    assert read_instructions(path) == [
        Instruction("Add", "1 1", "2", source),
        Instruction("Say hello", "", "hello", source),
        Instruction("Say no", "", "no", source),
    ]
    table = tmp_path / "a.csv"
    table.write_text("instruction,input,output\nAdd,1 1,2\nSay hello,,hello\n", encoding="utf-8")
    assert [(r.instruction, r.input, r.output) for r in read_instructions(table)] == [
        ("Add", "1 1", "2"),
        ("Say hello", "", "hello"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"instructions": "a", "output": "b"},
            r"a\.jsonl, line 2: no field 'instruction'; did you mean 'instructions'",
        ),
        ({"instruction": "a", "ouput": "b"}, r"a\.jsonl, line 2: no field 'output'; did you mean 'ouput'"),
        ({"instruction": "a", "inputs": "c", "output": "b"}, r"line 2: unknown field 'inputs'; did you mean 'input'"),
        ({"instruction": "a", "output": ["b"]}, r"line 2, field 'output': expected a text, got list"),
        ({"instruction": " ", "output": "b"}, r"line 2, field 'instruction': the text is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, r"line 2, field 'input': expected a text, got int"),
        ({"instruction": "a", "output": "\ud800"}, r"line 2, field 'output': lone surrogate"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path, record, message):
    path = write(tmp_path / "a.jsonl", {"instruction": "fine", "output": "fine"}, record)
    with pytest.raises(ValueError, match=message):
        read_instructions(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a \.jsonl nor a \.csv"):
        read_instructions(tmp_path / "a.txt")


# --- templates


def test_the_default_template_leaves_out_the_paragraph_of_an_absent_input():
    template = Template()
    assert template.render("Add", "1 1") == "### Instruction:\nAdd\n\n### Input:\n1 1\n\n### Response:\n"
    assert template.render("Say hello") == "### Instruction:\nSay hello\n\n### Response:\n"


def test_a_template_of_ones_own():
    template = Template('{"q": {instruction}} {input} =>')
    assert template.render("Add {input}", "1 1") == '{"q": Add {input}} 1 1 =>'  # data are never read as gaps
    assert template.render("Add") == '{"q": Add}  =>'
    with pytest.raises(ValueError, match=r"has an input, the template no '\{input\}'"):
        Template("{instruction}:").render("Add", "1 1")
    with pytest.raises(ValueError, match=r"names '\{inptu\}'; did you mean 'input'"):
        Template("{instruction} {inptu}")
    with pytest.raises(ValueError, match=r"does not contain '\{instruction\}'"):
        Template("{input}")


def chat_tokenizer(**special):
    inner = word_tokenizer("<user> <bot> a b c").backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", **special)
    tokenizer.chat_template = (
        "{% for m in messages %}<user> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
    )
    return TextTokenizer(tokenizer)


def test_the_tokenizers_chat_template():
    template = make_template("chat", chat_tokenizer())
    assert isinstance(template, ChatTemplate)
    assert template.render("a b") == "<user> a b <bot> "
    assert template.render("a", "b").split() == ["<user>", "a", "b", "<bot>"]
    with pytest.raises(ValueError, match="no chat template"):
        make_template("chat", WORDS)
    with pytest.raises(ValueError, match="a model from scratch has no chat template"):
        make_template("chat", None)


# --- splits


def test_no_instruction_is_on_two_sides():
    """However its records differ; a split by record, which is the common mistake, would fail this."""
    records = [Instruction(f"Do {n % 50}", f"to {n}", "x", "f") for n in range(500)]
    sides = split_instructions(records)
    assert sum(map(len, sides.values())) == 500
    found = [{record.instruction for record in sides[split]} for split in SPLITS]
    assert all(found)
    assert len(set.union(*found)) == sum(map(len, found))
    by_record = [{r.instruction for r in records if side_of(r.instruction + r.input) == split} for split in SPLITS]
    assert by_record[0] & by_record[2]  # must fail: the record's own text decides


def test_case_and_white_space_are_no_other_instruction():
    assert len({side_of(text) for text in ("Sum  up.", "sum up.", " SUM\nup. ")}) == 1
    later = split_instructions([Instruction(f"Do {n}", "", "x", "f") for n in range(40)])
    first = split_instructions([Instruction(f"Do {n}", "", "x", "f") for n in range(20)])
    assert all(set(first[split]) <= set(later[split]) for split in SPLITS)  # what comes later moves none


def test_records_of_one_prompt_are_one_prompt_with_several_answers():
    sides = {"train": [Instruction("a", "", "b", "f"), Instruction("a", "", "c", "g")], "validation": [], "test": []}
    (prompt,) = as_task(sides, lambda instruction, given: instruction).prompts()
    assert prompt.references == ("b", "c")
    assert prompt.metadata["source"] == "f"
    with pytest.raises(ValueError, match="no instruction is on the training side"):
        as_task({**sides, "train": []}, Template().render)
    with pytest.raises(ValueError, match=r"f, instruction 'a': the record has an input"):
        as_task({**sides, "train": [Instruction("a", "b", "c", "f")]}, Template("{instruction}").render)


# --- lengths


def task():
    records = [("a", "b"), ("a b c d", "b"), ("b", "c c c c c")]
    return as_task(
        {"train": [Instruction(i, "", o, "f") for i, o in records], "validation": [], "test": []},
        lambda instruction, given: instruction,
    )


def test_lengths_count_the_eos():
    lengths = lengths_of(task(), WORDS)
    assert lengths == Lengths((1, 4, 1), (2, 2, 6))
    assert [lengths.beyond(limits) for limits in (Limits(4, 6), Limits(3, 6), Limits(3, 5))] == [0, 1, 2]


def test_limits():
    lengths = Lengths((30, 8), (10, 4))
    assert limits_for(lengths, None, None, None) == Limits(30, 10)
    assert limits_for(lengths, 40, None, None) == Limits(30, 10)
    assert limits_for(lengths, 24, None, None) == Limits(14, 10)  # the prompt gives way
    assert limits_for(lengths, 24, 16, None) == Limits(16, 8)
    assert limits_for(lengths, 10, None, None) == Limits(5, 5)
    with pytest.raises(ValueError, match="more than the model's 24 positions"):
        limits_for(lengths, 24, 16, 9)


def test_what_does_not_fit_is_dropped_or_cut():
    limits = Limits(3, 5)
    assert [prompt.text for prompt in fitting(task(), WORDS, limits).prompts()] == ["a"]
    cut = reference_pairs(rules(task(), WORDS, limits))
    assert cut.input_ids_NS[1, :5].tolist() == [3, 4, 5, 3, 1]  # the end of the prompt is kept
    assert cut.input_ids_NS[2, :6].tolist() == [3, 4, 4, 4, 4, 4]  # an answer that is cut has no EOS
    with pytest.raises(ValueError, match="no training record fits"):
        fitting(task(), WORDS, Limits(1, 1))
