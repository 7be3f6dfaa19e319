"""The llm agent: serves `generate_content` (write or revise an article) and `summarize_content`.

With a model (LLM_MODEL) it asks that model, streams its text, and keeps only citation marks of sources that exist.
Without one it writes offline: it selects sentences of the sources, orders them and cites each. What either path
returns names how it was made (`offline`, `model`) and what a reader should know (`note`).

    agent                                  the tasks
    prompts, model_output                  the path with a model
    corpus, ranking, selection             sources as sections and sentences, their weight, which are taken
    offline, composition, form, revision   an article made of them, and changed as a review asks
    article, markdown, sentences, vocabulary, preferences
                                           what these work with

The same request gives the same article offline. It imports the kit alone, no other agent.
"""
