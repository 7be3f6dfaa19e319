"""Reader: all reads at once."""

from orchestrator_agent.store.broker_marks import BrokerMarks
from orchestrator_agent.store.concurrency import ConcurrencyStore
from orchestrator_agent.store.sweeps import TaskSweeps
from orchestrator_agent.store.task_queries import TaskQueries
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.workflows import ScheduleStore, WorkflowStore


class Reader(TaskReader, TaskSweeps, TaskQueries, WorkflowStore, ScheduleStore, ConcurrencyStore, BrokerMarks):
    """Until its callers take the part that they need."""
