"""Rate limits: buckets of one process, buckets shared in a real Valkey, and a mesh that keeps to them."""

import asyncio
import time

import pytest

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.capacity import Capacity
from orchestrator_agent.dispatch.rate_limits import RateLimits, TokenTimes
from orchestrator_agent.dispatch.redis_state import RedisState, RedisTimes
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.dispatch.settings import FlowSettings, RateLimit, read_rate
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.tuning import DispatchTuning
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.workflows.library import Library
from pantheon.discovery import Registry
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import ValkeyServer
from protocol import InstanceRecord, new_id
from protocol.errors import SettingsError
from tests.flow_control.test_fair_mesh import WAITING, Counter, send, until_rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


ALICE = '["default","alice"]'

# On a machine that stalls, Redis is there all the same.
SLOW = RedisTimes(response_seconds=PATIENCE_SECONDS)


def limits(
    shared: RedisState,
    clock: Clock | None = None,
    *,
    active: ActiveProcesses | None = None,
    signal: DispatchSignal | None = None,
    times: TokenTimes | None = None,
    **kinds: dict[str, str],
) -> RateLimits:
    read = {kind: {name: read_rate(rate) for name, rate in rates.items()} for kind, rates in kinds.items()}
    return RateLimits(
        read, Registry(), shared, active=active, signal=signal, times=times, clock=clock or time.monotonic
    )


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10/s", RateLimit(10, 10)),
        ("60/m", RateLimit(1, 1)),
        ("1/h", RateLimit(1 / 3600, 1)),
        (" 0.5 / s burst 7 ", RateLimit(0.5, 7)),
    ],
)
def test_a_rate_is_read(text: str, limit: RateLimit) -> None:
    assert read_rate(text) == limit


@pytest.mark.parametrize("text", ["", "10", "10/d", "-1/s", "0/s", "ten/s", "1/s burst"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        read_rate(text)


def test_the_settings_name_what_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE_LIMITS", '{"agents": {"llm_agent": "2/s"}, "requesters": {"*": "5/m burst 3"}}')
    settings = FlowSettings.load()
    assert settings.rate_limits["agents"] == {"llm_agent": RateLimit(2, 2)}
    assert settings.rate_limits["requesters"]["*"].burst == 3
    for wrong in ('{"agent": {}}', '{"agents": {"a": "much"}}', '{"agents": 1}', "not json", "[]"):
        monkeypatch.setenv("RATE_LIMITS", wrong)
        with pytest.raises(SettingsError, match="RATE_LIMITS"):
            FlowSettings.load()


async def test_a_process_alone_has_the_rate_and_one_of_three_a_third() -> None:
    clock = Clock()
    active = ActiveProcesses()
    made = limits(RedisState(None), clock, active=active, agents={"a": "6/s burst 2"})
    assert made.active
    assert made.of_agent("b") is None
    assert made.of_agent("a") == 2
    made.spend(RouteRequest("x"), "a")
    made.spend(RouteRequest("x"), "a")
    assert made.of_agent("a") == 0
    clock.now += 1 / 6 + 0.001
    assert made.of_agent("a") == 1
    made.spend(RouteRequest("x"), "a")
    active.learn([new_id() for _ in range(3)])
    clock.now += 1 / 6 + 0.001
    assert made.of_agent("a") == 0
    clock.now += 10
    # Of what may go at once, too.
    assert made.of_agent("a") == 1
    active.learn([new_id()])
    clock.now += 10
    assert made.of_agent("a") == 2


async def test_the_dispatcher_is_woken_when_there_is_a_token() -> None:
    clock = Clock()
    signal = DispatchSignal()
    made = limits(RedisState(None), clock, signal=signal, agents={"a": "20/s burst 1"})
    made.spend(RouteRequest("x"), "a")
    assert made.of_agent("a") == 1
    made.spend(RouteRequest("x"), "a")
    assert made.of_agent("a") == 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        await signal.wait()
    clock.now += 1 / 20 + 0.001
    assert made.of_agent("a") == 1


async def test_the_most_exact_name_of_a_requester_counts() -> None:
    made = limits(
        RedisState(None), requesters={"*": "1/s burst 9", "alice": "1/s burst 3", "blue/alice": "1/s burst 5"}
    )
    assert made.of_requester(made.limited(RouteRequest("x", tenant="blue", requester="alice"))) == 5
    assert made.of_requester(made.limited(RouteRequest("x", tenant="red", requester="alice"))) == 3
    assert made.of_requester(made.limited(RouteRequest("x"))) == 9
    named = limits(RedisState(None), requesters={"alice": "1/s"})
    assert named.limited(RouteRequest("x", requester="bob")) == ""
    assert named.limited(RouteRequest("x", requester="alice")) == ALICE


async def test_an_agent_brings_its_own_limit_unless_the_settings_have_one() -> None:
    registry = Registry()
    made = RateLimits({"agents": {"b": read_rate("1/s burst 2")}}, registry, RedisState(None))
    assert made.of_agent("a") is None
    for name, rate in (("a", "1/s burst 4"), ("b", "1/s burst 8"), ("c", "nonsense")):
        registry.apply([InstanceRecord(name=name, instance_id="i", task_types=("x",), metadata={"rate_limit": rate})])
    made.learn()
    assert (made.of_agent("a"), made.of_agent("b"), made.of_agent("c")) == (4, 2, None)
    assert made.active
    assert not RateLimits({}, Registry(), RedisState(None)).active


async def test_a_limit_that_is_reached_is_a_wait_reason() -> None:
    registry = Registry()
    registry.apply([InstanceRecord(name=name, instance_id="i", task_types=(name,), max_concurrency=9) for name in "ab"])
    rates = {"agents": {"a": read_rate("1/h")}, "requesters": {"alice": read_rate("1/h burst 2")}}
    made = RateLimits(rates, registry, RedisState(None))
    gate = Admission(Window(Capacity(registry)), ReadyQueue(Database("postgresql://nowhere/nothing")), made)
    router = Router(registry, Library(), AgentHealth(), admission=gate)
    for task_type in "ab":
        assert router.choose(RouteRequest(task_type, requester="alice")) is not None
        assert router.choose(RouteRequest("a", requester="bob")) is None
    assert router.wait_reasons(RouteRequest("a", requester="bob")).agents == {"a": "its rate limit is reached"}
    assert router.wait_reasons(RouteRequest("b", requester="bob")).task is None
    assert (
        router.wait_reasons(RouteRequest("b", requester="alice")).task == "the rate limit of its requester is reached"
    )
    await made.stop()


async def test_two_processes_share_one_bucket_in_redis(valkey: ValkeyServer) -> None:
    # A Redis that responds late is away, and then each process uses a bucket of its own.
    each, other = RedisState(valkey.url, SLOW), RedisState(valkey.url, SLOW)
    both = [limits(shared, requesters={"alice": "40/s burst 4"}) for shared in (each, other)]
    spent = 0
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while spent < 50:
            for made in both:
                if (made.of_requester(ALICE) or 0) > 0:
                    made.spend(RouteRequest("x", requester="alice"), "a")
                    spent += 1
            await asyncio.sleep(0.001)
    # Not faster together than one alone might be; slower is a machine that is busy.
    passed = time.monotonic() - began
    assert spent <= 40 * passed + 4 + 1
    for made in both:
        await made.stop()
    for shared in (each, other):
        await shared.close()


async def test_a_bucket_whose_redis_is_away_is_the_processs_own(valkey: ValkeyServer) -> None:
    shared = RedisState(valkey.url)
    signal = DispatchSignal()
    made = limits(shared, signal=signal, agents={"a": "1/s burst 3"})
    await valkey.stop()
    assert made.of_agent("a") == 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        await signal.wait()
    assert made.of_agent("a") == 3
    await made.stop()
    await shared.close()


async def test_a_token_that_is_not_used_goes_back(valkey: ValkeyServer) -> None:
    """It was lost: an agent of 1/h that was only weighed against another, or asked about, had used up its hour."""
    each, other = RedisState(valkey.url, SLOW), RedisState(valkey.url, SLOW)
    times = TokenTimes(pocket_kept_seconds=0.05, ask_again_seconds=0.02)
    weighing, using = (limits(shared, times=times, agents={"a": "1/h burst 1"}) for shared in (each, other))
    await until(lambda: weighing.of_agent("a") == 1, "the token, in the pocket of the process that does not use it")
    await until(lambda: using.of_agent("a") == 1, "the same token at another process")
    using.spend(RouteRequest("x"), "a")
    taken = await each.take_tokens("agent:a", per_second=1 / 3600, burst=1, count=1)
    assert taken is not None
    assert taken[0] == 0
    for made in (weighing, using):
        await made.stop()
    for shared in (each, other):
        await shared.close()


async def test_a_redis_that_goes_and_comes_back_gives_no_second_burst(
    valkey: ValkeyServer,
) -> None:
    """Each process had a whole burst of its own when Redis went away, and Redis's bucket was full when it came back."""
    shared = [RedisState(valkey.url, RedisTimes(retry_seconds=0.01)) for _ in range(2)]
    times = TokenTimes(ask_again_seconds=0.02)
    active = ActiveProcesses()
    active.learn([new_id(), new_id()])
    both = [limits(redis, active=active, times=times, agents={"a": "4/h burst 8"}) for redis in shared]
    spent = 0

    async def use_up() -> None:
        nonlocal spent
        for _ in range(40):
            for made in both:
                if made.of_agent("a"):
                    made.spend(RouteRequest("x"), "a")
                    spent += 1
            await asyncio.sleep(0.005)

    async def until_there(there: bool) -> None:
        async def asked() -> bool:
            for each in shared:
                await each.noted(["n"])
            return all(each.there is there for each in shared)

        await until(asked, "the store" if there else "that the store is away")

    await until_there(True)
    while spent < 4:
        await use_up()
    before = spent
    assert before <= 8
    await valkey.stop()
    await until_there(False)
    await use_up()
    away = spent
    # What is left of each one's half.
    assert away <= 8 + 2
    await valkey.start()
    await until_there(True)
    await use_up()
    assert spent - away <= 1
    for made in both:
        await made.stop()
    for each in shared:
        await each.close()


@pytest.mark.parametrize("with_redis", [False, True])
async def test_a_limited_requester_gets_its_rate_and_delays_nobody(
    settings: MeshSettings,
    plain: PlainClient,
    valkey: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    with_redis: bool,
) -> None:
    monkeypatch.setenv("RATE_LIMITS", '{"requesters": {"slow": "10/s burst 1", "rare": "1/h burst 1"}}')
    if with_redis:
        settings = settings.model_copy(update={"redis_url": MeshSettings.load(redis_url=valkey.url).redis_url})
    counter = Counter(concurrency=10)
    counter.gate.set()
    async with (
        orchestrator(settings, load_library([]), tuning=Tuning(dispatch=DispatchTuning(redis=SLOW))),
        AgentProcess(counter.agent, settings),
    ):
        await plain.ask("work", {"who": "first"}, requester="free")
        began = time.monotonic()
        await send(plain, "rare", 5)
        slow = await send(plain, "slow", 15)
        free = await send(plain, "free", 50)
        await plain.until(lambda: set(free) <= set(plain.responses))
        await plain.until(lambda: set(slow) <= set(plain.responses))
        took = time.monotonic() - began
        assert counter.values.count("rare") <= 1
    assert took > 1.2


async def test_a_limited_agent_gets_its_rate_however_many_send(
    settings: MeshSettings, plain: PlainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE_LIMITS", '{"agents": {"slow_agent": "20/s burst 2"}}')
    counter = Counter(concurrency=1)
    async with orchestrator(settings, load_library([])), AgentProcess(counter.agent, settings):
        ids = [*await send(plain, "a", 20), *await send(plain, "b", 20)]
        # All but what fills the window is queued before the first is done.
        await until_rows(settings, 38, WAITING)
        began = time.monotonic()
        counter.gate.set()
        await plain.until(lambda: set(ids) <= set(plain.responses))
        took = time.monotonic() - began
    assert took > 1.6
    assert 4 <= counter.values[:20].count("b") <= 16
