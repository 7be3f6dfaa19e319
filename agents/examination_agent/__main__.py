"""`python -m agents.examination_agent`: the examination agent as a process."""

from agents.examination_agent.agent import agent

if __name__ == "__main__":
    agent.run()
