"""Run the communication agent: `python -m agents.communication_agent`."""

from pantheon.runtime.extras import needs_extra

with needs_extra("communication_agent"):
    from agents.communication_agent.agent import agent

if __name__ == "__main__":
    agent.run()
