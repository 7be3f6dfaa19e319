"""Claims against sources: paraphrases pass, inventions do not."""

import pytest

from agents.examination_agent.claims import check_claims
from agents.examination_agent.document import read_document
from agents.examination_agent.language import (
    all_numbers,
    names,
    numbers,
    quotations,
    sentence_spans,
    split_sentences,
    stem,
)
from agents.examination_agent.models import Issue
from pantheon.text.sources import Source

SOURCES = [
    Source(
        title="Retries",
        text="If each step of a task succeeds with a probability of 99 percent, a task of fifty steps succeeds in only "
        "about 60 percent of all runs. Retrying the failed step alone does help. The service was written by Ada "
        "Lovelace in London and handles 1,500 requests. A rate limit, an overloaded service and a timeout are passing "
        'failures, and waiting is the right response. She called it "the engine of all patience" in June.',
    ),
    Source(
        title="Brokers",
        text="Brokers acknowledge messages at great speed, and many of them do so before the data is safely on disk. "
        "A queue in memory grows until the process dies. The NATS server keeps 24 hours of responses.",
    ),
]


def check(text: str, topic: str = "") -> list[Issue]:
    return check_claims(read_document(f"# T\n\n{text}\n"), SOURCES, topic)[0]


@pytest.mark.parametrize(
    "text",
    [
        "A task of 50 steps succeeds in about 60% of runs when each step succeeds with 99 percent probability [1].",
        "Many brokers acknowledge a message before its data has safely reached the disk [2].",
        "Retrying only the step that failed helps [1].",
        "Waiting is the right answer to passing failures such as rate limits, timeouts and overloaded services [1].",
        "Ada Lovelace wrote the service in London; it handles 1500 requests [1].",
        'She called it "The engine of all patience" [1].',
        "NATS keeps responses for 24 hours on the server [2].",
        "Queues held in memory grow until their process dies [2].",
        "Why do tasks fail?",
        "That is all.",
    ],
)
def test_a_paraphrase_is_supported(text: str) -> None:
    assert [issue for issue in check(text) if issue.severity != "low"] == []


@pytest.mark.parametrize(
    ("text", "severity", "expected"),
    [
        ("The service was written by Grace Hopper and handles requests.", "high", '"Grace Hopper"'),
        ("A task of fifty steps succeeds in about 75 percent of all runs [1].", "high", "the number 75"),
        ("Grace Hopper wrote the service and it handles requests.", "medium", '"Hopper"'),
        ("The Kafka broker keeps responses in memory until the process dies.", "medium", '"Kafka"'),
        ('She called it "a machine for endless joy" in June.', "high", "the quotation"),
        ("Elephants in the southern savanna sleep standing during summer.", "medium", "no passage"),
        ("Retrying doubles the revenue of every team within weeks and delights investors.", "medium", "no passage"),
    ],
)
def test_an_invention_is_found(text: str, severity: str, expected: str) -> None:
    (issue,) = check(text)
    assert (issue.kind, issue.severity, issue.line) == ("unsupported_claim", severity, 3)
    assert expected in issue.message
    assert issue.excerpt
    assert issue.suggestion


def test_a_fact_cited_from_the_wrong_source_is_a_citation_s_fault() -> None:
    (issue,) = check("The NATS server keeps 24 hours of responses [1].")
    assert (issue.kind, issue.suggestion) == ("citation", "Cite [2].")


def test_what_the_topic_gives_need_not_be_in_a_source() -> None:
    text = "The Pantheon service handles 1,500 requests at the right time."
    assert check(text)
    assert not check(text, topic="Pantheon")


def test_a_claim_half_made_is_a_matter_of_degree() -> None:
    (issue,) = check("Overloaded services and rate limits annoy customers, managers, auditors and waiting regulators.")
    assert (issue.kind, issue.severity) == ("unsupported_claim", "low")


def test_the_line_is_that_of_the_sentence() -> None:
    found = check(
        "Retrying the failed step alone does help.\nBut 77 teams deny it.\n\nA queue in memory\ngrows to 88 bytes."
    )
    assert [issue.line for issue in found] == [4, 6]


def test_without_sources_nothing_is_claimed_to_be_wrong() -> None:
    assert check_claims(read_document("# T\n\nThe moon has 99 doors."), [Source(text=" ")]) == ([], 0)


def test_numbers_have_one_form() -> None:
    assert numbers("1,500 and 2.50, $3 or 4% of v1.2.3; 10th, x86") == ["1500", "2.5", "3", "4", "1.2.3", "10"]
    assert {"99", "50", "23", "12"} <= all_numbers("ninety-nine, fifty, twenty-three, a dozen")


def test_names_are_capitals_where_none_are_due() -> None:
    assert names("The team of Ada Lovelace met NATS users. Then I left for New York's port.") == [
        "Ada Lovelace",
        "NATS",
        "New York",
    ]
    assert names("OpenAI and PostgreSQL are names at any place.") == ["OpenAI", "PostgreSQL"]
    assert names("Consider Temporal: It works.") == ["Temporal"]


def test_quotations_of_a_word_or_two_are_no_quotations() -> None:
    assert quotations('He said "well done" and "this is a real one", \u201cas is this one\u201d.') == [
        "this is a real one",
        "as is this one",
    ]


def test_sentences_keep_their_place() -> None:
    text = "One e.g. two.\nThree (four. Five.) six. See https://a.b/c.d. End"
    assert split_sentences(text) == ["One e.g. two.", "Three (four. Five.) six.", "See https://a.b/c.d.", "End"]
    assert sentence_spans("\u4e00\u3002\u4e8c") == [(0, 2), (2, 3)]
    assert stem("retries") == stem("retried") == "retry"


COFFEE = [
    Source(
        title="Coffee",
        text="The price of arabica rose by 70 percent in 2024. Robusta tolerates heat better than arabica. Growers"
        " react by moving uphill and by planting shade trees, which lower the temperature of the leaves.",
    ),
    Source(title="Tea", text="The price of tea rose in spring. The price of tea fell in autumn."),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The price of arabica fell by 70 percent in 2024.", "'fell' where the source says 'rose'"),
        ("Robusta tolerates heat worse than arabica.", "'worse' where the source says 'better'"),
        ("Growers react by moving downhill.", "'downhill' where the source says 'uphill'"),
        ("Shade trees raise the temperature of the leaves.", "'raise' where the source says 'lower'"),
    ],
)
def test_the_opposite_of_what_a_source_says_is_found(text: str, expected: str) -> None:
    (issue,) = check_claims(read_document(f"# T\n\n{text}\n"), COFFEE)[0]
    assert (issue.kind, issue.severity, issue.line) == ("unsupported_claim", "medium", 3)
    assert expected in issue.message


@pytest.mark.parametrize(
    "text",
    [
        "Arabica's price rose by 70 percent in 2024.",
        "The price of tea fell in autumn.",
        "The price of tea rose in spring and fell in autumn.",
        "Robusta tolerates heat better than arabica does.",
    ],
)
def test_what_some_passage_says_is_no_opposite(text: str) -> None:
    assert check_claims(read_document(f"# T\n\n{text}\n"), COFFEE)[0] == []


def test_nouns_of_german_are_no_names() -> None:
    source = Source(
        text="Eine Wärmepumpe entzieht der Umgebung Wärme und gibt sie an das Heizungswasser ab. Eine Pumpe mit Einbau"
        " kostet zwischen 20.000 und 35.000 Euro, und der Staat fördert den Einbau mit bis zu 70 Prozent."
    )
    text = "# Pumpen\n\nDie Anlage kostet 20.000 bis 35.000 Euro mit Einbau, der Staat fördert bis zu 70 Prozent.\n"
    assert [issue.message for issue in check_claims(read_document(text), [source])[0] if issue.severity != "low"] == []


def test_scripts_without_spaces_are_held_against_the_sources() -> None:
    source = Source(text="緑茶は奈良時代に中国から日本へ伝わりました。最初は薬として僧侶に飲まれていました。")
    text = (
        "# 緑茶\n\n緑茶は奈良時代に中国から伝わりました。緑茶は1999年に伝わりました。自動車の価格は毎年上昇します。\n"
    )
    found = check_claims(read_document(text), [source])[0]
    assert [issue.excerpt for issue in found] == ["緑茶は1999年に伝わりました。", "自動車の価格は毎年上昇します。"]
