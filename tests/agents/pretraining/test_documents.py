import json

import pytest

from agents.pretraining.documents import Document, read_documents, segments_of, split_documents


def texts(documents):
    return [document.text for document in documents]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_a_text_file_holds_documents_between_separators(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffone\nmore\n\n\n\ntwo  \n\n \n\nthree")
    assert texts(read_documents([file])) == ["one\nmore", "two", "three"]
    assert texts(read_documents([file], separator=None)) == ["one\nmore\n\n\n\ntwo  \n\n \n\nthree"]
    assert texts(read_documents([file], separator="\n")) == ["one", "more", "two", "three"]


def test_a_record_has_a_text_and_the_rest_is_metadata(tmp_path):
    rows = [{"body": {"text": "line\u2028one"}, "rating": 3}, {"body": {"text": "two"}, "rating": 1}]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = read_documents([file], text_field="body.text")
    assert texts(found) == ["line\u2028one", "two"]
    assert [document.metadata["rating"] for document in found] == [3, 1]


def test_a_folder_stands_for_its_files_in_order(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "x.jsonl", '{"text": "a"}\n')
    write(tmp_path / "notes.pdf", "no")
    assert texts(read_documents([tmp_path])) == ["a", "b"]
    assert texts(read_documents([tmp_path / "b.txt", tmp_path / "a"])) == ["b", "a"]


def test_a_saved_dataset_is_read_from_its_train_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "rating": [1, 2]})
    rows.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "split"))
    for name in ("plain", "split"):
        found = read_documents([tmp_path / name])
        assert texts(found) == ["one", "two"]
        assert [document.metadata for document in found] == [{"rating": 1}, {"rating": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"txt": "one"}\n', "line 1: no field 'text'; did you mean 'txt'"),
        ("a.jsonl", '{"text": 3}\n', "line 1, field 'text': expected a string, got int"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "lone surrogate"),
        ("a.txt", "\n\n  \n\n", "no text in"),
        ("a.pdf", "%PDF", "neither plain text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents([write(tmp_path / name, content)])


def test_other_encodings_are_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt: not valid UTF-8"):
        read_documents([tmp_path / "a.txt"])


def test_misuse_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="must be a list"):
        read_documents("a.txt")
    with pytest.raises(ValueError, match="empty separator"):
        read_documents([tmp_path], separator="")
    with pytest.raises(FileNotFoundError):
        read_documents([tmp_path / "none.txt"])


def test_held_out_documents_are_chosen_by_their_content():
    documents = [Document(f"text {number}") for number in range(400)]
    _, validation = split_documents(documents, 0.25)
    assert len(validation) == pytest.approx(100, abs=30)
    again = split_documents(documents[::-1] + documents, 0.25)  # other order, every text twice
    assert set(texts(again[1])) == set(texts(validation))
    assert not set(texts(again[0])) & set(texts(again[1]))
    assert split_documents(documents, 0.0) == (documents, [])


@pytest.mark.parametrize(
    ("count", "share", "message"), [(1, 0.01, "would be held out"), (3, 1.0, "must lie in"), (3, -0.1, "must lie in")]
)
def test_a_side_without_documents_is_an_error(count, share, message):
    with pytest.raises(ValueError, match=message):
        split_documents([Document(f"text {number}") for number in range(count)], share)


@pytest.mark.parametrize(
    "text",
    ["One. Two! Three", "No end", " A.  B.\n\nC? \n", "Dr. No. 3.14 is pi.", "你好。再见。", "...", "\n"],
)
def test_segments_joined_are_the_text(text):
    assert segments_of(text, "document") == [text]
    parts = segments_of(text, "sentence")
    assert "".join(parts) == text
    assert all(not part.isspace() for part in parts) or text.isspace()
    assert "3.14 is pi." not in parts  # a point within a number ends nothing
