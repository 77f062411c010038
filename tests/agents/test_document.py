import pytest

from agents.document import Drawing, Group, Heading, Paragraph, Table, Texts, html_of, to_html, to_markdown

HOSTILE = "<script>alert('x')</script> & | `a`"


def test_a_drawing_is_html_in_the_page_and_words_in_markdown():
    drawing = Drawing("<svg><path/></svg>", "half | full")
    assert html_of(drawing) == "<svg><path/></svg>"
    table = Table(["", drawing], [["row", drawing]])
    assert html_of(table).count("<svg>") == 2
    assert to_markdown([table]).splitlines()[-1] == r"| row | half \| full |"


def test_a_drawing_without_words_leaves_no_gap_in_markdown():
    assert to_markdown([Paragraph("one"), Drawing("<svg></svg>"), Paragraph("two")]) == "one\n\ntwo\n"


def test_a_group_keeps_its_blocks():
    group = Group([Heading("Part"), Group([Paragraph("inner")])], style="loud", anchor="part-1")
    page = html_of(group)
    assert page.startswith('<section class="loud" id="part-1">')
    assert "<section>\n<p>inner</p>\n</section>" in page
    assert to_markdown([group]) == "## Part\n\ninner\n"


def test_a_group_with_a_summary_waits_to_be_opened():
    page = html_of(Group([Texts([("Prompt", HOSTILE)])], summary=HOSTILE))
    assert page.startswith("<details><summary>&lt;script&gt;")
    assert "<script" not in page


@pytest.mark.parametrize("name", ["style", "anchor"])
def test_a_groups_names_cannot_leave_their_quotes(name):
    assert 'x" onload="y' not in html_of(Group([], **{name: 'x" onload="y'}))


def test_nothing_that_somebody_wrote_is_interpreted():
    blocks = [Heading(HOSTILE), Paragraph(HOSTILE), Table([HOSTILE], [[HOSTILE]]), Texts([(HOSTILE, HOSTILE)])]
    assert "<script" not in to_html(blocks)
    markdown = to_markdown(blocks)
    assert "<script" not in markdown.replace(r"\<script", "").split("```")[0]
