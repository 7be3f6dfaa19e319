"""The llm agent: writes and summarizes, by a language model of any vendor or, without one, from the sources alone."""
