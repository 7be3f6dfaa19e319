"""Readability: the formulas against values worked out by hand, the syllable counter against a dictionary's counts."""

import pytest

from agents.enhancement_agent.readability import (
    flesch_kincaid_grade,
    flesch_reading_ease,
    prose_text,
    readability,
    sentences,
    syllables,
)

SYLLABLES = {
    1: "the cat make makes walked loved used called filled shared through thought queue time times rules"
    " files lines whole clothes",
    2: "table little apple making houses boxes wanted needed special social nation system message agent"
    " workflow language sentence statement statements careful lovely million region union playing trying"
    " uses using changes churches wishes judges cities studies handled settled hundred sacred bridges"
    " trial marriage create science people hopeless careless added",
    3: "beautiful computer durable messages database carefully previous various serious curious dangerous"
    " courageous opinion medium studying initial peculiar familiar idea area actual video management"
    " improvement arguing example enabled resources processes services",
    4: "information education engineering reliable orchestrator definitely material industrial algorithm"
    " mechanism evaluate appreciate associate negotiate historian continuing",
    5: "university readability differentiate",
}


@pytest.mark.parametrize(("count", "words"), SYLLABLES.items())
def test_syllables_are_those_of_a_dictionary(count: int, words: str) -> None:
    assert {word: syllables(word) for word in words.split()} == dict.fromkeys(words.split(), count)


def test_what_has_no_letters_counts_as_one_syllable() -> None:
    assert syllables("2024") == 1
    assert syllables("日本") == 1


def test_formulas_give_the_values_of_a_worked_example() -> None:
    # "The cat sat on the mat." 6 words, 1 sentence, 6 syllables: the textbook example.
    assert flesch_reading_ease(6, 1) == pytest.approx(116.145)
    assert flesch_kincaid_grade(6, 1) == pytest.approx(-1.45)
    figures = readability("The cat sat on the mat.\n")
    assert (figures.words, figures.sentences, figures.syllables) == (6, 1, 6)
    assert figures.flesch_reading_ease == 116.1
    assert figures.flesch_kincaid_grade == -1.4


def test_abbreviations_and_decimals_end_no_sentence() -> None:
    text = "Dr. Smith used e.g. version 2.5 of it. Was it good? Yes, by J. Doe et al. in 2024!"
    assert len(sentences(text)) == 3


def test_only_prose_is_measured() -> None:
    markdown = (
        "# A title\n\nTwo words `and code` [link text](http://x.example/a) [1].\n\n```\nnot this\n```\n\n> not this\n"
    )
    assert prose_text(markdown) == ["A title", "Two words and code link text ."]


def test_a_document_without_prose_has_no_scores() -> None:
    figures = readability("```\ncode\n```\n")
    assert figures.words == 0
    assert figures.flesch_reading_ease is None
    assert figures.words_per_sentence == 0


def test_the_formulas_are_not_applied_to_other_languages() -> None:
    figures = readability("Der Hund bellt laut.\n", "de-AT")
    assert figures.words == 4
    assert figures.flesch_reading_ease is None
    assert figures.flesch_kincaid_grade is None


def test_harder_prose_scores_lower() -> None:
    easy = readability("The dog ran. It was fast. We saw it go.\n")
    hard = readability("Organizational considerations necessitate comprehensive interdepartmental communication.\n")
    assert easy.flesch_reading_ease is not None
    assert hard.flesch_reading_ease is not None
    assert easy.flesch_reading_ease > hard.flesch_reading_ease
    assert hard.complex_words == 6
