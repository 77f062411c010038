import json

import pytest

from benchmarks.lines import append, read

LINES = [{"task": "Reverse", "text": "a\u2028b é"}, {"task": "Add", "score": 1.0}, {"nested": {"curve": [1, 2]}}]


def test_lines_come_back(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    assert read(path) == []
    for line in LINES:
        append(path, line)
    assert read(path) == LINES
    assert path.read_bytes().count(b"\n") == len(LINES)


def test_cut_anywhere_no_whole_line_is_lost_and_no_torn_one_stays(tmp_path):
    path = tmp_path / "runs.jsonl"
    for line in LINES:
        append(path, line)
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found = read(path)
        assert found == LINES[: len(found)]
        assert len(found) >= content[:cut].count(b"\n")
        append(path, {"next": cut})
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*found, {"next": cut}]


def test_a_broken_line_within_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read(path)
