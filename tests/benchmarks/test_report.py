import doctest
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import report, statistics, wording
from benchmarks.comparison import Comparison
from benchmarks.readme_table import BEGIN, END, between_markers, readme_table
from benchmarks.records import gather, read
from tests.benchmarks.made_up import cell, failed, ladder, line, write

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</dd><script>alert(1)</script> | `x` <img src=http://evil.example/x.png>"


def page_of(lines):
    return report.to_page(Comparison(gather(lines)))


def text_of(lines):
    return report.to_text(Comparison(gather(lines)))


@pytest.fixture(scope="module")
def page():
    return page_of(ladder())


@pytest.fixture(scope="module")
def text():
    return text_of(ladder())


class Tags(HTMLParser):
    """Notes every tag with its attributes, and whether they are closed in turn."""

    VOID = ("meta", "br", "img", "line", "path", "circle", "use", "rect")

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def tables(text):
    """Every Markdown table, as rows of cells."""
    found = []
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            found.append([[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows])
    return found


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_for_anything(page):
    tags = Tags(page).found
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page):
    tags = Tags(page)
    assert tags.open == []
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for _, attributes in tags.found if "href" in attributes}
    assert {"overall", "separation", "task-0", "task-2"} <= links <= set(ids)


def test_the_page_is_light_or_dark_and_fits_a_phone(page):
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert page.count('<div class="wide"><table') == page.count("<table")  # wide tables scroll


def test_every_task_has_its_curves_and_texts(page):
    assert page.count('class="side-by-side"') == 3
    assert page.count('role="img"') == 3 * 2 + 1
    assert page.count("<details>") == 3
    assert "<details>" not in text_of(ladder())
    assert page.count("Completion (score") == 13  # one text a task and contender


def test_what_somebody_wrote_is_shown_and_never_interpreted():
    hostile = line(task=HOSTILE, contender=HOSTILE, circumstances={"cpu": HOSTILE})
    hostile["samples"] = [{"prompt": HOSTILE, "completion": HOSTILE, "reference": None, "score": 0.0}]
    lines = [hostile, {**failed(task=HOSTILE, contender=HOSTILE, seed=1), "error": HOSTILE}]
    page = page_of(lines)
    assert not {"script", "img"} & {tag for tag, _ in Tags(page).found}
    assert "&lt;/dd&gt;&lt;script&gt;" in page
    text = text_of(lines)
    assert not re.search(r"(?<!\\)<", re.sub("```.*?```", "", text, flags=re.DOTALL))
    for table in tables(text):
        assert len({len(row) for row in table}) == 1


# --- Markdown ---------------------------------------------------------------------------------------------


def test_every_table_is_a_table(text):
    found = tables(text)
    assert len(found) == 2 + 2 + 3 * 2 + 2
    for table in found:
        assert len({len(row) for row in table}) == 1
        assert all(re.fullmatch(":---|---:", cell) for cell in table[1])


def test_the_figures_of_a_table(text):
    overall = {row[0]: row for row in tables(text)[0]}
    assert overall["ppo"][1:3] == ["ours", "0.800 (0.800 to 0.800)"]
    assert overall["ppo"][3:6] == ["2 of 2", "1 of 2", "5 of 10"]
    assert overall["trl_ppo"][1] == "peer"
    assert overall["supervised"][1] == "baseline"
    assert overall["ilql"][3] == "1 of 2"
    chances = tables(text)[1]
    assert chances[0][1:] == ["ppo", "dqn", "trl_ppo", "supervised", "ilql"]
    assert chances[2][:3] == ["ppo", "", "1.00 (1.00 to 1.00)"]
    assert "Not in these figures, for want of normalised scores: Free." in text
    assert "not comparable with the others': ilql." in text


def test_the_figures_of_a_task(text):
    reached = {row[0]: row for row in tables(text)[4]}
    assert reached["dqn"][2:] == [
        "0.860 (0.843 to 0.874)",
        "2.720 (2.686 to 2.748)",
        "0.280",
        "0.140",
        "2.620",
        "2.500",
        "0.500",
    ]
    took = {row[0]: row for row in tables(text)[5]}
    assert took["ppo"][1:5] == ["5 of 5", "0.500 (0.500 to 0.500)", "40 (40)", "8.0 (8.0)"]
    assert took["dqn"][3:] == ["not reached", "not reached", "41", "8.0", "0.0", "512"]
    assert took["supervised"][2] == "–"
    free = tables(text)[8]
    assert "normalised regret" in free[0]
    assert free[0][2] == "score, IQM (95\u00a0%)"
    assert "Not run: ilql." in text


def test_tasks_that_separate_nobody_are_called_out(text):
    assert "SEPARATES NO PAIR" not in text.split("On the way")[0].replace("SEPARATES NO PAIR: Free", "")
    same = [*cell(0.5, 0.6), *cell(0.5, 0.6, contender="dqn")]
    assert text_of(same).count("SEPARATES NO PAIR: Reverse.") == 2
    assert '<section class="loud">' in page_of(same)
    assert "By no task: ppo and dqn." in text_of(same)
    apart = text_of([*cell(0.5, 0.6), *cell(0.1, 0.2, contender="dqn")])
    assert "SEPARATES NO PAIR" not in apart
    assert "Every pair is separated by some task." in apart
    alone = text_of([*cell(0.5, 0.6), *cell(0.1, 0.2, task="Add", contender="dqn")])
    assert "SEPARATES NO PAIR" not in alone  # nobody met there
    assert "| Add | 0 of 0 | – |" in alone


def test_a_part_of_the_budget_is_said_so():
    assert "NOT THE FULL BUDGET: 0.1 of it." in text_of([line(budget=0.1)])
    assert "FULL BUDGET" not in text_of([line()])


@pytest.mark.parametrize(
    "lines",
    [
        [line()],
        [line(normalised=None)],
        [failed()],
        cell(0.1, 0.2, contender="supervised"),
        [line(curve=[], samples=[])],
    ],
)
def test_little_is_reported_too(lines):
    assert "Reverse" in page_of(lines)
    assert "Reverse" in text_of(lines)


# --- the command ------------------------------------------------------------------------------------------


def test_nothing_asked_for_is_markdown_printed(tmp_path, capsys, text):
    path = write(tmp_path / "runs.jsonl", ladder())
    assert report.main([str(path)]) == 0
    assert capsys.readouterr().out == text
    assert report.main([str(path), "--markdown", "-", "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == text
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("lines", "options", "named"),
    [
        ([*cell(0.1, 0.2, 0.3), *cell(0.4, 0.5, contender="dqn")], [], ["Reverse · dqn · seed 2: missing"]),
        (cell(0.1, 0.2), ["--seeds", "3"], ["Reverse · ppo · seed 2: missing"]),
        ([line(), failed(seed=1)], [], ["Reverse · ppo · seed 1: failed: RuntimeError: out of luck"]),
        ([line(), line(seed=1, budget=0.5)], [], ["Reverse: its runs differ in their budget"]),
    ],
)
def test_what_is_missing_fails_the_report_loudly(lines, options, named, tmp_path, capsys):
    path = write(tmp_path / "runs.jsonl", lines)
    page, markdown = tmp_path / "page.html", tmp_path / "page.md"
    assert report.main([str(path), "--html", str(page), "--markdown", str(markdown), *options]) == 1
    errors = capsys.readouterr().err
    for fault in named:
        where, what = fault.split(": ", 1)
        assert fault in errors
        for content in (page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")):
            assert (
                content.index("Not to be relied on")
                < content.index(where)
                < content.index("Over all tasks</h2>" if content[0] == "<" else "## Over all tasks")
            )
            assert what in content


def test_a_run_made_again_mends_the_report(tmp_path):
    path = write(tmp_path / "runs.jsonl", [failed(), line(seed=1), line(seed=0)])
    assert report.main([str(path), "--markdown", str(tmp_path / "x.md")]) == 0


def test_no_runs_is_an_error_that_says_how_to_make_some(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path / "none.jsonl")])
    assert ended.value.code == 2
    assert "make runs with 'python -m benchmarks run" in capsys.readouterr().err


def test_compact_runs_give_the_same_report(tmp_path, capsys, text):
    path = write(tmp_path / "runs.jsonl", [failed(), *ladder()])
    small = tmp_path / "small.jsonl.gz"
    assert report.main([str(path), "--compact", str(small)]) == 0
    assert capsys.readouterr().out == ""
    assert report.main([str(small)]) == 0
    assert capsys.readouterr().out == text
    assert small.stat().st_size < path.stat().st_size / 10


# --- the README -------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_task_and_a_column_a_contender():
    (table,) = tables(readme_table(Comparison(gather(ladder()))))
    assert [row[0] for row in table] == ["", ":---", "Reverse", "Add", "all tasks"]
    columns = {column[0]: column[2:] for column in zip(*table, strict=True)}
    assert columns["ppo"] == ("1.00 (5)", "0.60 (0)", "0.80 (0.80 to 0.80)")
    assert columns["trl_ppo (peer)"][0] == "0.74 (0)"
    assert columns["ilql"][2] == "1 of 2"  # no mean over other tasks than the others'
    assert columns["ilql"][1] == "–"
    assert table[0][-1] == "ilql"
    assert "5 seeds" in readme_table(Comparison(gather(ladder())))


def test_what_is_no_1_is_not_shown_as_one():
    text = readme_table(Comparison(gather([line(normalised=0.998), line(contender="dqn", normalised=1.0)])))
    assert "| all tasks | 1.00 | \\>.99 |" in text
    assert "| Reverse | 1.00 (1) | \\>.99 (1) |" in text


def test_only_what_lies_between_the_markers_is_renewed(tmp_path):
    path = write(tmp_path / "runs.jsonl", ladder())
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\nrest\n")
    for _ in range(2):  # and again it is the same
        assert report.main([str(path), "--readme", str(readme)]) == 0
        content = readme.read_text(encoding="utf-8")
        assert content.startswith(f"# Title\n\n{BEGIN}\n\nNormalised scores")
        assert content.endswith(f"\n{END}\nrest\n")
        assert "old" not in content
        assert content.count("| ppo |") == 1


def test_a_table_that_hides_a_failed_seed_is_not_published(tmp_path, capsys):
    path = write(tmp_path / "runs.jsonl", [*ladder(), failed()])
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nold\n{END}\n")
    assert report.main([str(path), "--readme", str(readme)]) == 1
    assert readme.read_text() == f"{BEGIN}\nold\n{END}\n"
    assert "left as it was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}", f"{BEGIN} {BEGIN} {END}"]
)
def test_without_its_markers_a_readme_is_refused(text):
    with pytest.raises(ValueError, match="in this order and once each"):
        between_markers(text, "table")


def test_the_readme_shows_the_results_that_are_kept():
    """`make results` renews it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = ROOT / "benchmarks/results/ladder.jsonl.gz"
    loose = kept.with_suffix("")
    assert not loose.exists(), f"pack it: python -m benchmarks report {loose.name} --compact {kept.name}"
    if not kept.exists():
        assert between_markers(readme, "")  # the place is there
        pytest.skip(f"no {kept.name} yet")
    records = gather(read([kept]))
    assert [str(fault) for fault in records.faults] == []
    assert between_markers(readme, readme_table(Comparison(records))) == readme, "run 'make results'"


def test_make_results_renews_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^results:.*\n\t(.*)$", makefile, re.MULTILINE)
    assert recipe is not None
    assert "-m benchmarks report $(LADDER) --readme README.md" in recipe[1]
    assert "\nLADDER = benchmarks/results/ladder.jsonl.gz\n" in makefile


@pytest.mark.parametrize("module", [wording, statistics])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_lines_are_plain_json():
    assert json.loads(json.dumps(ladder())) == ladder()
