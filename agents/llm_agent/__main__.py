"""`python -m agents.llm_agent`: the llm agent as a process."""

from agents.llm_agent.agent import agent

if __name__ == "__main__":
    agent.run()
