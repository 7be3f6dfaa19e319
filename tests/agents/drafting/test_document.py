"""The pure parts: a document's tree made safe, its metadata, names of files."""

from typing import Any

import pytest

from agents.drafting_agent.document import clean, html_paragraphs, plain_text
from agents.drafting_agent.filename import safe_basename
from agents.drafting_agent.metadata import UNDATED_EPOCH_SECONDS, Metadata


def _text(words: str) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = []
    for word in words.split():
        nodes += [{"t": "Space"}] * bool(nodes) + [{"t": "Str", "c": word}]
    return nodes


def _para(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"t": "Para", "c": list(nodes)}


def _heading(level: int, words: str, identifier: str = "") -> dict[str, Any]:
    return {"t": "Header", "c": [level, [identifier, [], []], _text(words)]}


def _link(address: str, words: str = "text") -> dict[str, Any]:
    return {"t": "Link", "c": [["", [], [["onclick", "evil()"]]], _text(words), [address, ""]]}


def _image(address: str, words: str = "alt") -> dict[str, Any]:
    return {"t": "Image", "c": [["", [], []], _text(words), [address, ""]]}


def _cleaned(*blocks: dict[str, Any], title: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = clean({"meta": {}, "blocks": list(blocks)}, title=title).tree["blocks"]
    return found


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", " JavaScript:x", "data:text/html,x", "file:///etc/passwd", "", "vbscript:x"]
)
def test_unsafe_links_become_their_text(address: str) -> None:
    assert _cleaned(_para(_link(address))) == [_para(*_text("text"))]


@pytest.mark.parametrize(
    "address", ["https://x.example/a:b", "mailto:a@x.example", "tel:+1", "page.html", "/a/b:c", "?q=a:b"]
)
def test_safe_links_stay_without_handlers(address: str) -> None:
    link = _cleaned(_para(_link(address)))[0]["c"][0]
    assert link["c"][0] == ["", [], []]
    assert link["c"][2][0] == address


def test_links_into_the_document_hold_only_when_their_target_exists() -> None:
    made = _cleaned(
        _para(_link("#there"), _link("#nowhere")), _heading(2, "There", "there"), _heading(2, "More", "there")
    )
    assert [node["t"] for node in made[0]["c"]] == ["Link", "Str"]
    assert [block["c"][1][0] for block in made[1:]] == ["there", ""]  # One target a name.


def test_raw_html_becomes_its_words() -> None:
    raw = {"t": "RawBlock", "c": ["html", "<div onclick=x>One<br>two <script>evil()</script><b>three</b></div>"]}
    inline = [{"t": "RawInline", "c": ["html", tag]} for tag in ("<b>", "<br/>")]
    made = _cleaned(raw, _para(*inline))
    assert [plain_text(block).strip() for block in made[:2]] == ["One", "two three"]
    assert made[2] == _para({"t": "LineBreak"})
    assert html_paragraphs("<style>x</style><p>a&amp;b") == ["a&b"]


def test_pictures_from_elsewhere_become_links_and_own_ones_stay() -> None:
    own = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
        "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    document = clean(
        {
            "meta": {},
            "blocks": [_para(_image("https://x.example/a.png"), _image("/etc/passwd"), _image(own), _image(own[:-1]))],
        }
    )
    remote, local, kept, broken = document.tree["blocks"][0]["c"]
    assert (remote["t"], remote["c"][2][0]) == ("Link", "https://x.example/a.png")
    assert local == {"t": "Emph", "c": _text("alt")}
    assert kept["t"] == "Image"
    assert broken == _text("alt")[0]
    assert [image.name.endswith(".png") for image in document.images.values()] == [True]


def test_the_only_first_heading_is_the_title_and_the_rest_moves_up() -> None:
    document = clean(
        {"meta": {}, "blocks": [_heading(1, "The title"), _para(*_text("x")), _heading(3, "A"), _heading(4, "B")]}
    )
    assert document.title == "The title"
    assert [block["c"][0] for block in document.tree["blocks"] if block["t"] == "Header"] == [1, 2]


def test_a_first_heading_that_says_something_else_than_the_title_stays() -> None:
    made = _cleaned(_heading(1, "An opening"), _heading(2, "A"), title="The title")
    assert [plain_text(block["c"][2]) for block in made] == ["An opening", "A"]
    assert _cleaned(_heading(1, "The Title!"), _para(*_text("x")), title="the title") == [_para(*_text("x"))]


def test_citations_link_to_the_list_of_sources() -> None:
    sources = {
        "t": "OrderedList",
        "c": [[1, {"t": "Decimal"}, {"t": "Period"}], [[_para(*_text("One"))], [_para(*_text("Two"))]]],
    }
    made = _cleaned(_para(*_text("Said [1][2], not [3].")), _heading(2, "Sources"), sources)
    links = [node["c"][2][0] for node in made[0]["c"] if node["t"] == "Link"]
    assert links == ["#source-1", "#source-2"]
    assert plain_text(made[0]) == "Said [1][2], not [3].\n"
    assert made[2]["c"][1][1][0]["c"][0]["c"][0][0] == "source-2"


def test_tasks_get_their_boxes() -> None:
    open_box = [{"t": "Str", "c": "["}, {"t": "Space"}, {"t": "Str", "c": "]"}]  # As pandoc reads "[ ]".
    items = [[{"t": "Plain", "c": [*open_box, *_text("open")]}], [{"t": "Plain", "c": _text("[x] done")}]]
    made = _cleaned({"t": "BulletList", "c": items})[0]["c"]
    assert [plain_text(item).strip() for item in made] == ["\u2610open", "\u2612 done"]


def test_front_matter_speaks_where_the_request_does_not() -> None:
    meta = {
        "title": {"t": "MetaInlines", "c": _text("From the file")},
        "author": {
            "t": "MetaList",
            "c": [{"t": "MetaInlines", "c": _text("A")}, {"t": "MetaInlines", "c": _text("B")}],
        },
        "keywords": {"t": "MetaList", "c": [{"t": "MetaInlines", "c": _text("k")}]},
    }
    document = clean({"meta": meta, "blocks": [_heading(1, "From the file")]})
    assert (document.title, document.fields["author"], document.keywords) == ("From the file", "A, B", ["k"])
    assert document.tree["blocks"] == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("article", "article"),
        ("../../etc/passwd", "etc-passwd"),
        ("a b\tc.pdf", "a-b-c"),
        ("..", "article"),
        ("", "article"),
        ("CON", "article"),
        ("C:\\x\\y.docx", "C-x-y"),
        ("Über uns", "Über-uns"),
        ("x" * 300, "x" * 80),
        ("a\x00b", "a-b"),
        (".hidden", "hidden"),
    ],
)
def test_names_of_files_are_safe(name: str, safe: str) -> None:
    assert safe_basename(name) == safe


def _about(date: str = "", language: str = "en") -> Metadata:
    return Metadata("T", "A", date, language, "", ())


def test_dates_are_written_out_in_english_only() -> None:
    assert _about("2026-11-20").shown_date == "20 November 2026"
    assert _about("2026-11-20T10:00:00Z", "de").shown_date == "2026-11-20"
    assert _about("last spring").shown_date == "last spring"


def test_the_time_inside_files_comes_from_the_document_alone() -> None:
    assert _about().epoch_seconds == UNDATED_EPOCH_SECONDS
    assert _about("2026-11-20").epoch_seconds == 1795132800
    assert _about("1815-12-10").epoch_seconds == 315532800


def test_language_gives_region_direction_and_labels() -> None:
    assert (_about(language="pt-BR").region, _about(language="pt-BR").contents_label) == ("BR", "Conteúdo")
    assert (_about(language="he").direction, _about(language="he").region) == ("rtl", None)
    assert _about(language="xx").skip_label == "Skip to content"
