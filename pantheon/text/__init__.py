"""Prose as several agents read it: sources, sentences, words, comparable terms.

The writer and the reviewer are agents of their own and do not import one another, and yet they must agree: a length
that was asked for is counted as it is written, a claim is compared with the sources' own sentences, and a source is the
same payload for both. What they must agree on is here; what is one agent's own stays with it.

    sources        Source and SourceInput, the payload
    sentences      a paragraph cut into sentences
    words          inline Markdown as a reader sees it, words counted, words alone
    terms          words reduced to what can be compared: stop words out, endings off
    front_matter   a Markdown file without its front matter

Pure functions of text: no I/O, no state, the standard library and pydantic alone. English in what depends on a
language. The same text gives the same sentences, words and terms in every process.

Called by the agents that write and review; nothing else in the kit needs it, and it imports nothing of the kit.
"""
