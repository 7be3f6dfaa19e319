"""An agent built with the kit: this file is all that it needs. Run it with NATS_URL set: `python translation_agent.py`.

It "translates" into upper case, which every reader understands; put a real translator into the function.
"""

from pydantic import BaseModel, Field

from pantheon import Agent, TaskContext, TaskFailure

LANGUAGES = ("loud",)


class Translate(BaseModel):
    text: str = Field(max_length=100_000)
    language: str = "loud"


class Translated(BaseModel):
    text: str
    language: str


agent = Agent("translation_agent", version="1.0.0", description="Translates text.")


@agent.task("translate_text", timeout_seconds=30)
async def translate(task: Translate, ctx: TaskContext) -> Translated:
    """Translate a text into a language."""
    if task.language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise TaskFailure("unknown_language", f"there is no language '{task.language}'; there is {known}")
    lines = []
    for number, line in enumerate(task.text.splitlines(), start=1):
        lines.append(line.upper())
        await ctx.progress(100 * number / len(task.text.splitlines()), f"line {number}")
    return Translated(text="\n".join(lines), language=task.language)


if __name__ == "__main__":
    agent.run()
