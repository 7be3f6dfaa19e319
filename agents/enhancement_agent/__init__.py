"""The enhancement agent: serves `enhance_content`, which corrects spelling, style and readability of Markdown.

Rules correct what can only mean one thing. A model (LLM_MODEL) may polish the text before them; its version is taken
only when code, links, citations, quotations, numbers and headings survived in it, and a model that fails leaves the
rules. No newline is added or removed by rules, and correcting twice changes nothing.

    agent, corrector               the task; all rules applied until none finds anything more
    spelling, style, misspellings, phrases
                                   the rules and their tables
    prose, edit, preservation      where a correction may be made, a correction, what must survive
    rewriter                       the path with a model
    readability, language          figures, and whether the text is English at all
"""
