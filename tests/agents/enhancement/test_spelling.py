"""Spelling: typing errors are found, and nothing that could be a name or a term is touched."""

import pytest

from agents.enhancement_agent.corrector import correct
from agents.enhancement_agent.misspellings import corrections
from agents.enhancement_agent.spelling import guess, is_word


def test_the_table_corrects_to_words_and_from_none() -> None:
    table = corrections()
    assert len(table) > 800
    assert [right for right in table.values() if not is_word(right) and right not in _BRITISH] == []
    assert [wrong for wrong in table if wrong in table.values()] == []


_BRITISH = frozenset(("doesn't", "shouldn't", "wouldn't"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("databse", "database"),
        ("infromation", "information"),
        ("proivde", "provide"),
        ("netwrok", "network"),
        ("sentnce", "sentence"),
        ("importnat", "important"),
        ("chararcters", "characters"),
        ("peformance", "performance"),
    ],
)
def test_a_slip_of_the_fingers_is_guessed(typed: str, meant: str) -> None:
    assert guess(typed) == meant


@pytest.mark.parametrize(
    "word",
    "kubernetes tokenizer middleware filesystem hostname datastore backoff idempotency centre colour"
    " colours behaviour favour honour  labelled modelling focussed upsert upserting strlen fflush allocs"
    " mutexes pytest numpy kubectl nginx autoscaler rebase  microservice deduplication serializer"
    " dockerfile vazina zigbee ollama teh".split(),
)
def test_terms_names_and_other_lands_spellings_are_not_guessed_at(word: str) -> None:
    assert guess(word) is None


def test_case_is_kept() -> None:
    made = correct("Teh end. We recieve it.\n").markdown
    assert made == "The end. We receive it.\n"


@pytest.mark.parametrize(
    "prose",
    [
        "The Databse product is a name.\n",  # title case within a sentence
        "One databse and another databse.\n",  # twice: somebody means it
        "The databse is `databse` in code.\n",  # an identifier
        "See databse at http://databse.example/.\n",  # part of an address
        "TEH is an acronym, and so is RECIEVE.\n",
        "The option teh_value and the file recieve.py and user@recieve.example stay.\n",
        "The word pre-databse-era has hyphens.\n",
    ],
)
def test_what_could_be_a_name_stays(prose: str) -> None:
    assert correct(prose).markdown == prose


def test_a_misspelling_known_for_sure_is_corrected_wherever_it_is_prose() -> None:
    made = correct("We recieve and recieve, but `recieve` is code.\n").markdown
    assert made == "We receive and receive, but `recieve` is code.\n"


def test_typographic_apostrophes_are_kept_in_corrections() -> None:
    assert correct("It dosen\u2019t work.\n").markdown == "It doesn\u2019t work.\n"


def test_other_languages_are_not_spelled_in_english() -> None:
    text = "Das ist teh Wort.\n"
    assert correct(text, language="de").markdown == text


def test_no_entry_of_the_table_has_swallowed_its_neighbours() -> None:
    # "formating" was corrected to "following": an entry of the table had lost the bar at its end.
    table = corrections()
    assert [wrong for wrong in table if not wrong.replace("'", "").isalpha()] == []
    made = correct("We like formating and the foriegn press.\n").markdown
    assert made == "We like formatting and the foreign press.\n"


@pytest.mark.parametrize(
    "prose",
    [
        "The novels of Colum McCann and the songs of Bernard Thier are known.\n",
        "Thier Street is long.\n",
        "We met Mr. Thier and Dr. Suttle again.\n",
        "The town of Comming has the Utilize platform, and The Prior To shows it.\n",
    ],
)
def test_names_that_look_like_slips_stay(prose: str) -> None:
    assert correct(prose).markdown == prose


def test_a_slip_with_a_capital_is_corrected_where_a_sentence_begins_or_the_document_repeats_it() -> None:
    made = correct("# How We Recieve It\n\nRecieve it. We recieve it, thier way.\n").markdown
    assert made == "# How We Receive It\n\nReceive it. We receive it, their way.\n"


@pytest.mark.parametrize("word", "terroir linkerd smushed formol hondle matjes draggling imagos".split())
def test_another_word_is_no_slip(word: str) -> None:
    assert guess(word) is None
