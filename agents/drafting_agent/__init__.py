"""The drafting agent: serves `export_document`, which makes HTML, DOCX, PDF and EPUB of Markdown.

pandoc and typst do the conversions as processes of their own: sandboxed, with a time limit, killed with their caller.
The same request makes the same bytes, whatever the clock says. Markdown is untrusted: raw HTML becomes text, scripts
and remote pictures do not survive, aliases and circular footnotes are refused.

    agent, export                   the task; the formats of a request made side by side
    conversion, typesetting         the two programs
    document, metadata, filename    the parsed document made safe, its metadata, the names of files
    writers, word_reference         a function for each format, and the styles of a DOCX
"""
