"""`python -m orchestrator_agent`: one orchestrator process."""

import os
import sys
from pathlib import Path

from pantheon.process.run import run_agent
from pantheon.runtime.extras import needs_extra
from pantheon.runtime.settings import MeshSettings
from protocol.errors import PantheonError

with needs_extra("orchestrator_agent"):
    from orchestrator_agent.service import Orchestrator, OrchestratorAgent, load_library


def main() -> int:
    """Run until SIGTERM or Ctrl-C; WORKFLOWS_PATH names folders of workflow files, separated as in PATH."""
    try:
        settings = MeshSettings.load()
        folders = [Path(folder) for folder in os.environ.get("WORKFLOWS_PATH", "").split(os.pathsep) if folder]
        library = load_library(folders)
    except PantheonError as error:
        sys.stderr.write(f"orchestrator_agent: {error}\n")
        return 1
    made = Orchestrator(settings, library)
    return run_agent(OrchestratorAgent(library), make_worker=made.make_worker)


if __name__ == "__main__":
    raise SystemExit(main())
