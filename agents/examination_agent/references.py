"""Citations and links: every mark has its entry, every entry its mark, every address a form that can work."""

import re
from collections import Counter
from urllib.parse import urlsplit

from .document import Document, Link
from .models import Issue, Severity

_HOST = re.compile(
    r"^(?:[a-z0-9\u00a1-\uffff](?:[a-z0-9\u00a1-\uffff_-]*[a-z0-9\u00a1-\uffff])?\.)*[a-z0-9\u00a1-\uffff-]+\.?$", re.I
)
_ADDRESS_IN_ENTRY = re.compile(r"https?://[^\s<>)\]]+")


def check_citations(document: Document, source_count: int) -> list[Issue]:
    """Marks and entries against each other. `source_count` is of the request's sources, 0 when it has none."""
    issues: list[Issue] = []
    entries = {entry.number for entry in document.entries}
    for number, times in Counter(entry.number for entry in document.entries).items():
        if times > 1:
            line = [entry.line for entry in document.entries if entry.number == number][1]
            issues.append(
                _citation("medium", line, f"[{number}]", f"{times} entries are numbered {number}", "Number them apart.")
            )
    reported: set[int] = set()
    for mark in document.marks:
        if mark.number in entries or mark.number in reported:
            continue
        reported.add(mark.number)
        if document.entries or not 1 <= mark.number <= source_count:
            message = f"[{mark.number}] has no entry in the list of sources"
            issues.append(_citation("high", mark.line, mark.excerpt[:240], message, "Cite a source that is listed."))
    if document.marks and not document.entries:
        issues.append(
            _citation("medium", None, "", "there are citation marks and no list of sources", "Add `## Sources`.")
        )
    cited = {mark.number for mark in document.marks}
    issues += [
        _citation(
            "low", entry.line, entry.text[:240], f"entry {entry.number} is never cited", "Cite it or take it out."
        )
        for entry in document.entries
        if entry.number not in cited
    ]
    for label, note in document.note_marks.items():
        if label not in document.notes:
            message = f"[^{label}] has no footnote"
            issues.append(
                _citation("high", note.line, note.excerpt[-240:], message, f"Write the note `[^{label}]: \u2026`.")
            )
    issues += [
        _citation("low", line, f"[^{label}]", f"nothing refers to the footnote [^{label}]", "Refer to it, or drop it.")
        for label, line in document.notes.items()
        if label not in document.note_marks
    ]
    if source_count and not document.marks and not document.note_marks and document.words:
        issues.append(
            _citation("medium", None, "", "nothing is cited, though there are sources", "Cite them as [1], [2].")
        )
    return issues


def _citation(severity: Severity, line: int | None, excerpt: str, message: str, suggestion: str) -> Issue:
    return Issue(kind="citation", severity=severity, line=line, excerpt=excerpt, message=message, suggestion=suggestion)


def check_links(document: Document) -> list[Issue]:
    """The form of each link, without asking anyone."""
    issues: list[Issue] = []
    slugs = Counter(re.sub(r"-\d+$", "", heading.slug) for heading in document.headings if heading.slug)
    for link in document.links:
        if fault := fault_of(link, document.anchors, slugs):
            severity, message, suggestion = fault
            excerpt = f"{'!' if link.image else ''}[{link.text}]({link.target})" if link.text else link.target
            if link.target.startswith("["):
                excerpt = f"[{link.text}]{link.target}"
            issues.append(
                Issue(
                    kind="link",
                    severity=severity,
                    line=link.line,
                    excerpt=excerpt,
                    message=message,
                    suggestion=suggestion,
                )
            )
    return issues


def fault_of(link: Link, anchors: set[str], slugs: Counter[str]) -> tuple[Severity, str, str] | None:
    target = link.target.strip()
    if not target:
        return "medium", "the link has no address", "Give it one, or leave the words alone."
    if target.startswith("#"):
        anchor = target[1:]
        if anchor not in anchors:
            return "medium", f"no heading has the anchor {target}", "Link to a heading that exists."
        if slugs[anchor] > 1:
            return "low", f"{slugs[anchor]} headings share the anchor {target}", "Give the headings different names."
        return None
    if not link.parsed and target.startswith("["):
        return "medium", f"no line defines the reference {target}", f"Add `{target}: https://\u2026`, or take it out."
    if not link.parsed or re.search(r"\s", target):
        return "medium", "the link is malformed: its address holds a space or is not closed", "Write %20 for a space."
    if target.startswith(("mailto:", "tel:")):
        valid = "@" in target if target.startswith("mailto:") else re.search(r"\d", target) is not None
        return None if valid else ("medium", f"{target} is no address", "Correct it.")
    try:
        parts = urlsplit(target)
        port_is_sane = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        return "medium", "the link's address cannot be read", "Correct it."
    if not parts.scheme and not target.startswith("//"):
        if re.match(r"^(?:https?|www)\b", target, re.IGNORECASE):
            return "medium", "the link's address lacks `https://`", "Write it whole."
        return "low", "a relative link leads nowhere once the article is published elsewhere", "Use a whole address."
    if parts.scheme.lower() not in ("http", "https"):
        return "medium", f"'{parts.scheme}:' is no scheme that a reader can follow", "Use https."
    if not parts.hostname or not port_is_sane or not (_HOST.match(parts.hostname) or ":" in parts.hostname):
        return "medium", "the link's address has no valid host", "Correct it."
    return None


def addresses(document: Document) -> list[tuple[str, int]]:
    """The web addresses of an article that are well formed, each once, with the first line that has it."""
    slugs: Counter[str] = Counter()
    found: dict[str, int] = {}
    for link in document.links:
        if link.target.lower().startswith(("http://", "https://")) and fault_of(link, set(), slugs) is None:
            found.setdefault(link.target, link.line)
    for entry in document.entries:
        for address in _ADDRESS_IN_ENTRY.findall(entry.text):
            found.setdefault(address.rstrip(".,;:!?"), entry.line)
    return list(found.items())
