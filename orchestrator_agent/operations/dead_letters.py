"""DeadLetters: messages that could not be worked on: read, sent again, and made of attempts that agents died on."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import structlog

from orchestrator_agent.engine.events import ResponseReceived
from orchestrator_agent.inbox import Inbox
from pantheon.bus import Bus, Delivery, Publisher, Subscription, remove_stored, stored_at, stored_from, stream_mark
from pantheon.bus.dead_letter import publish_dead_letter
from protocol import subjects
from protocol.errors import BusError, ErrorCode
from protocol.messages import DeadLetter, ErrorInfo, salvage_ids
from protocol.names import ORCHESTRATOR
from protocol.streams import DEAD_LETTERS, TASKS

log = structlog.get_logger()

# JetStream says so on core NATS when a message was delivered as often as its consumer allows (ADR-33 of NATS).
ADVISORIES = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{TASKS.name}.*"
# Sent again at once: enough to keep the broker busy, few enough to be in memory with their bodies.
REDRIVEN_AT_ONCE = 200
# Their ids are the response, which has a limit: 20 MB of them.
MAX_REDRIVEN = 500_000


class DeadLetters:
    """Reads the stream DEAD_LETTERS. A letter that was sent again leaves it, which makes sending again idempotent."""

    def __init__(self, bus: Bus, publisher: Publisher, inbox: Inbox) -> None:
        self._bus = bus
        self._publisher = publisher
        self._inbox = inbox
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(ADVISORIES, self._on_advisory, queue="orchestrators")

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._bus.unsubscribe(self._subscription)

    async def read(
        self, *, letter_id: str | None = None, name: str | None = None, reason: str | None = None, limit: int
    ) -> list[tuple[int, DeadLetter]]:
        """Letters with their sequence in the stream, oldest first; `letter_id`: that one, wherever it is.

        Raises BusError.
        """
        found: list[tuple[int, DeadLetter]] = []
        async for letter in self._letters(letter_id=letter_id, name=name, reason=reason):
            found.append(letter)
            if len(found) >= limit:
                break
        return found

    async def _letters(
        self, *, letter_id: str | None, name: str | None, reason: str | None
    ) -> AsyncIterator[tuple[int, DeadLetter]]:
        """Those that are there now. What comes meanwhile is not among them: letters that are sent again may become
        letters again, and redriving would not end."""
        mark = await stream_mark(self._bus, DEAD_LETTERS.name)
        subject = subjects.dead_letter(name) if name is not None else subjects.ALL_DEAD_LETTERS
        following = 1
        while mark is not None and following <= mark.last_sequence:
            message = await stored_from(self._bus, DEAD_LETTERS.name, following, subject)
            if message is None or message.sequence > mark.last_sequence:
                return
            following = message.sequence + 1
            try:
                letter = DeadLetter.model_validate_json(message.data)
            except ValueError:
                continue
            if letter_id not in (None, str(letter.id)) or (reason is not None and reason not in letter.reason):
                continue
            yield message.sequence, letter
            if letter_id is not None:
                return

    async def redrive(
        self, *, letter_id: str | None, name: str | None, reason: str | None, at_most: int = MAX_REDRIVEN
    ) -> tuple[list[str], bool]:
        """Publish the bodies of these letters on their subjects again; the letters' ids, and whether there are more.

        Raises BusError.
        """
        redriven: list[str] = []
        some: list[tuple[int, DeadLetter]] = []
        async for letter in self._letters(letter_id=letter_id, name=name, reason=reason):
            if len(redriven) + len(some) >= at_most:
                return redriven + await self._send_again(some), True
            some.append(letter)
            if len(some) >= REDRIVEN_AT_ONCE:
                redriven += await self._send_again(some)
                some = []
        return redriven + await self._send_again(some), False

    async def _send_again(self, letters: Sequence[tuple[int, DeadLetter]]) -> list[str]:
        async def send(sequence: int, letter: DeadLetter) -> str:
            await self._publisher.publish(
                letter.subject,
                base64.b64decode(letter.body_base64),
                message_id=f"redrive:{letter.id}",
                headers={key: value for key, value in letter.headers.items() if not key.startswith("Nats-")},
                give_up_seconds=10,
            )
            await remove_stored(self._bus, DEAD_LETTERS.name, sequence)
            return str(letter.id)

        # All of them have an outcome before a failure is raised: none is sent behind it, uncounted.
        outcomes = await asyncio.gather(*(send(*letter) for letter in letters), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, str)]

    async def _on_advisory(self, delivery: Delivery) -> None:
        """A message that agents took and never acknowledged, as often as they may: it must not kill more of them."""
        try:
            advisory = json.loads(delivery.data)
            sequence, deliveries = int(advisory["stream_seq"]), int(advisory["deliveries"])
            message = await stored_at(self._bus, TASKS.name, sequence)
        except (ValueError, KeyError, TypeError, BusError) as error:
            log.warning("poison.unread", error=str(error))
            return
        if message is None:
            # It has been acknowledged after all, or has expired.
            return
        known = salvage_ids(message.data)
        agent = subjects.agent_of(message.subject)
        why = f"{agent} took it {deliveries} times and never answered"
        letter = Delivery(
            _client=self._bus.client,
            subject=message.subject,
            data=message.data,
            headers=dict(message.headers),
        )
        task_id: UUID | None = known.get("task_id")
        await publish_dead_letter(self._publisher, agent, letter, "poison", why, task_id, deliveries=deliveries)
        if task_id is not None and agent != ORCHESTRATOR:
            root = known.get("root_task_id", task_id)
            poison = ErrorInfo(code=ErrorCode.POISON, message=why)
            self._inbox.post(ResponseReceived(root, task_id, known.get("attempt", 1), "failed", error=poison))
        await remove_stored(self._bus, TASKS.name, sequence)
