"""Run the drafting agent: `python -m agents.drafting_agent`."""

from agents.drafting_agent.agent import agent

if __name__ == "__main__":
    agent.run()
