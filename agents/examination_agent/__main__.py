"""`python -m agents.examination_agent`: the examination agent as a process."""

from pantheon.runtime.extras import needs_extra

with needs_extra("examination_agent"):
    from agents.examination_agent.agent import agent

if __name__ == "__main__":
    agent.run()
