"""Front matter: the YAML between two lines of dashes with which a Markdown file may begin."""

import re

_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*(?:\n|\Z)", re.DOTALL)


def without_front_matter(markdown: str) -> str:
    """The document with blank lines in place of its front matter, so that every line number stays true."""
    front = _FRONT_MATTER.match(markdown)
    return "\n" * front.group().count("\n") + markdown[front.end() :] if front else markdown
