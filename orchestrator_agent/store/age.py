"""Age: how old a task can be, by its id alone."""

from datetime import datetime
from uuid import UUID


def surely_new(task_id: UUID, moment: datetime, history_after_seconds: float) -> bool:
    """Whether an id is so young that no task of it can be in the history: a version 7 id says when it was made.

    Half the time to spare is for requesters whose clocks are ahead.
    """
    if task_id.version != 7:
        return False
    age = moment.timestamp() - (task_id.int >> 80) / 1000
    return 0 <= age < history_after_seconds / 2
