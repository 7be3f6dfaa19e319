"""DispatchTuning: the times and sizes of dispatch in one value. The defaults are production's; tests have others."""

from dataclasses import dataclass, field

from orchestrator_agent.dispatch.agent_health import OPEN_SECONDS
from orchestrator_agent.dispatch.rate_limits import TokenTimes
from orchestrator_agent.dispatch.redis_state import RedisTimes
from orchestrator_agent.dispatch.shared_circuits import ProbeTimes
from orchestrator_agent.dispatch.window import WindowSettings


@dataclass(frozen=True)
class DispatchTuning:
    window: WindowSettings = field(default_factory=WindowSettings)
    tokens: TokenTimes = field(default_factory=TokenTimes)
    redis: RedisTimes = field(default_factory=RedisTimes)
    probes: ProbeTimes = field(default_factory=ProbeTimes)
    # How long a circuit is open before it lets a task through.
    circuit_open_seconds: float = OPEN_SECONDS
