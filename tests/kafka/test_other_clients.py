"""The code of the pages about other clients, which is compared with greendrop's."""

import ast
import asyncio
import inspect

import pytest

from tests.project.test_readme import READ


async def run_block(block, names):
    """Run code that may await, in the names of the blocks before it."""
    code = compile(block, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running


@pytest.mark.filterwarnings("ignore:.*_text is deprecated")  # of kafka-python
@pytest.mark.parametrize(("page", "count"), [("kafka-python", 101), ("aiokafka", 1)])
def test_code_for_another_client_sends_what_the_page_says(
    kafka, topic, stored, page, count
):
    """The other client stores the messages of its page on Apache Kafka."""
    names = {}

    async def run_all():
        for block in READ[f"docs/coming-from/{page}.md"].others:
            here = block.replace("localhost:9092", kafka.bootstrap_servers)
            for name in ("orders", "numbers"):
                here = here.replace(f'"{name}"', repr(topic))
            await run_block(here, names)

    asyncio.run(run_all())

    assert stored().total() == count
