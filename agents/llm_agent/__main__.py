"""`python -m agents.llm_agent`: the llm agent as a process."""

from pantheon.runtime.extras import needs_extra

with needs_extra("llm_agent"):
    from agents.llm_agent.agent import agent

if __name__ == "__main__":
    agent.run()
