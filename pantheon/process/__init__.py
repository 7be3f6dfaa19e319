"""Process: one running instance of an agent."""
