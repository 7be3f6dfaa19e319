"""English prose cut into sentences and comparable terms; numbers, names and quotations found in it."""

import re

_MASKED = re.compile(r"`+[^`]*`+|\]\([^)]*\)|(?:https?://|www\.)\S+?(?=[.,;:!?]*(?:\s|$|\)))|\S+@\S+\.\w+")
_STOP = re.compile(
    r"""([.!?\u2026]+)(["'\u201d\u2019)\]*_]*)(\s+)(?=["'\u201c\u2018(\[*_`]*[^\W_])|[\u3002\uff01\uff1f]"""
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:(?:mr|mrs|ms|dr|prof|jr|sr|vs|cf|al|approx|fig|figs|eq|e\.g|i\.e|z\.b|jan|feb|mar|"
    r"apr|jun|jul|aug|sept?|oct|nov|dec)|[A-HJ-Za-hj-z])$",
    re.IGNORECASE,
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence of a paragraph begins and ends. A line break counts as white space."""
    mask = _MASKED.sub(lambda match: "x" * len(match.group()), text)
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _STOP.finditer(mask):
        if match.group(1):
            following = mask[match.end() :].lstrip("\"'\u201c\u2018([*_`")[:1]
            before = mask[start : match.start()]
            opened = before.rfind("(") > (before + (match.group(2) or "")).rfind(")")
            if following.islower() or opened or (match.group(1) == "." and _ABBREVIATION.search(before)):
                continue
        end = match.start(3) if match.group(1) else match.end()
        spans.append((start, end))
        start = match.end()
    if text[start:].strip():
        spans.append((start, len(text)))
    return spans


def split_sentences(text: str) -> list[str]:
    return [" ".join(text[start:end].split()) for start, end in sentence_spans(text)]


_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKUP = re.compile(r"\\([\\`*_<\[\]#])|(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)|`+|<[a-zA-Z/][^>]*>")


def plain(text: str) -> str:
    """The text a reader sees of inline Markdown."""
    return _MARKUP.sub(lambda match: match.group(1) or "", _LINK.sub(r"\1", text))


_WORD = re.compile(r"[^\W_]+(?:['\u2019.\-/][^\W_]+)*")


_UNDIVIDED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")
"""Characters of scripts that put no space between words: Chinese, Japanese, Thai."""


def count_words(text: str) -> int:
    """Two characters of a script without spaces count as a word, which is what translators reckon with."""
    bare = plain(text)
    undivided = len(_UNDIVIDED.findall(bare))
    if undivided:
        bare = _UNDIVIDED.sub(" ", bare)
    return len(_WORD.findall(bare)) + (undivided + 1) // 2


_GERMAN = frozenset("der die das und nicht ist ein eine einen mit von den dem auf zu sich wird f\u00fcr".split())
_GERMAN_SHARE = 0.1


def has_capital_nouns(text: str) -> bool:
    """Whether it is German, where every noun has a capital, so that capitals mark no names."""
    found = re.findall(r"[^\W\d_]+", text.casefold())
    return sum(word in _GERMAN for word in found) > _GERMAN_SHARE * max(1, len(found))


STOP_WORDS = frozenset(
    "a about above across after again against ago all almost along already also although always am among "
    "an and another any anyone anything are around as at away back be became because become becomes been "
    "before being below between both but by came can cannot come comes could did do does doing done down "
    "during each either else enough even ever every everyone everything few first for from further get "
    "gets give given gives go goes going gone got had has have having he her here hers him his how "
    "however i if in indeed instead into is it its itself just keep kept know known last least less let "
    "like likely long look made make makes making many may maybe me might mine more moreover most mostly "
    "much must my near nearly need needs neither never next no nobody none nor not nothing now nowhere of "
    "off often on once one ones only onto or other others our ours out over own part per perhaps put "
    "quite rather really said same say says see seem seems seen several shall she should since so some "
    "somebody someone something sometimes still such take taken takes than that the their theirs them "
    "themselves then there therefore these they thing things this those though through thus to together "
    "too toward towards two under until up upon us use used uses using usually very want wants was way "
    "ways we well went were what whatever when whenever where whether which while who whole whom whose "
    "why will with within without would yes yet you your yours".split()
)
_SUFFIXES = ("ations", "ation", "ities", "ings", "ions", "ing", "ion", "ity", "ies", "ers", "ed", "er", "es", "ly", "s")


def stem(word: str) -> str:
    """A crude stem, good enough to make "retries", "retried" and "retry" meet."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            if suffix == "s" and word.endswith(("ss", "us", "is")):
                break
            word = word[: -len(suffix)] + ("y" if suffix == "ies" else "")
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word[:-1] + "y" if word.endswith("i") else word.removesuffix("e") if len(word) > 4 else word


def terms(text: str) -> list[str]:
    """The comparable terms of a text, without stop words."""
    found = []
    for word in _WORD.findall(plain(text)):
        if _UNDIVIDED.search(word):
            # No space marks where its words end; pairs of characters find the same matter well enough.
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
            continue
        lower = word.casefold().replace("\u2019", "'").removesuffix("'s")
        pieces = re.split(r"[-/']", lower)
        found += [stem(piece) for piece in pieces if len(piece) > 1 and piece not in STOP_WORDS]
    return found


def folded(text: str) -> str:
    """Words alone, in lower case, one space between: for finding a wording whatever its punctuation."""
    return " ".join(re.findall(r"\w+", plain(text).casefold()))


# A letter of a script without spaces may stand before a number: only Latin ones make it a part of a name.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])v?[$\u20ac\u00a3]?(\d{1,3}(?:[,\u202f\u00a0]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)*)(?=\D|$)"
)
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen twenty".split()
    )
} | {
    "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "hundred": "100", "thousand": "1000", "dozen": "12", "half": "50", "third": "3", "quarter": "25",
    "million": "1000000", "billion": "1000000000",
}  # fmt: skip
_TENS = re.compile(
    r"\b(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)-(one|two|three|four|five|six|seven|eight|nine)\b"
)


def numbers(text: str) -> list[str]:
    """The numbers written in digits, in the same form: 1,000 and 1000 are equal, 2.50 and 2.5 too."""
    return list(dict.fromkeys(_normal(found) for found in _NUMBER.findall(plain(text))))


def all_numbers(text: str) -> set[str]:
    """The numbers of a text, those in words included."""
    bare = plain(text).casefold()
    found = set(numbers(text)) | {_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", bare) if word in _NUMBER_WORDS}
    found |= {str(int(_NUMBER_WORDS[tens]) + int(_NUMBER_WORDS[units])) for tens, units in _TENS.findall(bare)}
    return found


def _normal(number: str) -> str:
    digits = re.sub(r"[,\u202f\u00a0]", "", number)
    if digits.count(".") == 1:
        digits = digits.rstrip("0").rstrip(".")
    return digits.lstrip("0") or "0"


_NAME = re.compile(
    r"\b[A-Z\u00c0-\u00de][\w\u2019'&]*(?:[.\-][A-Z0-9]\w*)*"
    r"(?:\s+(?:(?:of|de|van|von|der|la|&)\s+)?[A-Z\u00c0-\u00de][\w\u2019'&\-]*)*"
)
_NOT_NAMES = frozenset("I I'm I've I'd A An The".split())


def names(sentence: str) -> list[str]:
    """What is written as a name: capitals where none are due. A first word counts only if it cannot be a plain word."""
    bare = plain(sentence)
    found: dict[str, None] = {}
    for match in _NAME.finditer(bare):
        name = match.group().strip("'\u2019")
        starts = (
            re.search(r"(?:^|[.!?:\u2026]\s*[\"'\u201c\u2018(]*|[\"\u201c\u2018(])$", bare[: match.start()]) is not None
        )
        if starts:
            first, _, rest = name.partition(" ")
            own = re.search(r"^\w.*[A-Z0-9]", first) is not None and len(first) > 1
            if not own:
                # "Consider Temporal" begins with a word, "Ada Lovelace" with a name: without a dictionary only the rest
                # is sure.
                name = re.sub(r"^(?:of|de|van|von|der|la|&)\s+", "", rest)
        name = re.sub(r"['\u2019]s$", "", name)
        if len(name) > 1 and name not in _NOT_NAMES:
            found[name] = None
    return list(found)


_QUOTATION = re.compile(r"\"([^\"]{8,400})\"|\u201c([^\u201d]{8,400})\u201d|\u00ab([^\u00bb]{8,400})\u00bb")


def quotations(sentence: str, *, min_words: int = 3) -> list[str]:
    found = ["".join(groups).strip() for groups in _QUOTATION.findall(plain(sentence))]
    return [quotation for quotation in found if len(quotation.split()) >= min_words]
