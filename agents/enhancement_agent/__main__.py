"""Run the enhancement agent: `python -m agents.enhancement_agent`."""

from pantheon.runtime.extras import needs_extra

with needs_extra("enhancement_agent"):
    from agents.enhancement_agent.agent import agent

if __name__ == "__main__":
    agent.run()
