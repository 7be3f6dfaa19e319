"""The language of a document: rules of English keep away from all others."""

import pytest

from agents.enhancement_agent.language import ENGLISH, UNKNOWN, language_of

OTHERS = {
    "German": "Eine Wärmepumpe entzieht der Umgebung Wärme und gibt sie an das Heizungswasser ab. Dafür braucht sie"
    " Strom, und zwar eine Kilowattstunde für drei bis vier Kilowattstunden Wärme.",
    "French": "Les produits du terroir sont au centre de cette tradition. On prépare les légumes avec du beurre, et le"
    " résultat est toujours agréable pour les clients du restaurant.",
    "Spanish": "El desarrollo de las ciudades ha sido rápido. Los visitantes prefieren la costa, pero es posible"
    " visitar también el interior del país con un permiso especial.",
    "Dutch": "De stad heeft een nieuw systeem voor het openbaar vervoer. Het is belangrijk dat de mensen de bus kunnen"
    " nemen in de morgen en in de avond.",
    "Russian": "Чай появился в России в XVII веке.",
    "Japanese": "緑茶は奈良時代に中国から日本へ伝わりました。",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_other_languages_are_not_taken_for_english(text: str) -> None:
    assert language_of([text]) == UNKNOWN


def test_english_is_known_also_in_terse_notes_and_between_other_words() -> None:
    assert language_of(["The queue hands each task to one worker, which answers when it is done with it."]) == ENGLISH
    assert language_of(["Install the wheel. Run the tests. Check logs for errors. Restart on failure."]) == ENGLISH
    assert language_of(["Kafka, NATS, Redis"]) == ENGLISH
    assert language_of([]) == ENGLISH
