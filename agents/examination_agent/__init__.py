"""The examination agent: serves `review_content`, which approves an article, asks for a revision, or rejects it.

Rules check claims against the sources, tone against the guidelines, structure, citations and the form of links; with
`check_links` the links are requested too. A model (EXAMINATION_MODEL, else LLM_MODEL) adds what rules cannot see;
its issues stand only where they quote the article. `verdict` computes score and verdict from the issues alone, so
the same issues always give the same verdict.

    agent, examination, verdict              the task, all rules together, the verdict
    claims, tone, structure, references      the rules
    link_check, model_review, prompts        what asks others
    document, language                       an article parsed, English cut into sentences and terms

It imports the kit alone: an article reaches it as Markdown, by whatever agent it was written.
"""
