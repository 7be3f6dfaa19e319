"""Run the drafting agent: `python -m agents.drafting_agent`."""

from pantheon.runtime.extras import needs_extra

with needs_extra("drafting_agent", "pypandoc", "typst"):
    from agents.drafting_agent.agent import agent

if __name__ == "__main__":
    agent.run()
