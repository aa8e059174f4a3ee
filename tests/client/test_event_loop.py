"""Waits in a running asyncio event loop."""

import pytest

from tests.interpreter import run

PROGRAM = """
    import asyncio
    from greendrop import Producer

    producer = Producer(kafka={"bootstrap.servers": servers})

    def send():
        return producer.produce_sync(topic="t", payload=b"x")

    async def main():
        await asyncio.to_thread(send)
        handle = producer.produce_async(topic="t", payload=b"x")
        await asyncio.to_thread(handle.wait)
        if blocks:
            for _ in range(3):
                send()
                producer.produce_many_sync([{"topic": "t", "payload": b"x"}])

    asyncio.run(main())
    send()
    producer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched"])
def test_blocked_event_loop_is_warned_of_once(mode, mock_cluster):
    """However often sync verbs are called in coroutines, one line names the way out."""
    servers = mock_cluster.bootstrap_servers

    ended = run(PROGRAM, mode, fails=True, servers=servers, blocks=True)

    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 0
    assert "await asyncio.to_thread(producer.produce_sync" in line


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched"])
def test_waits_in_threads_of_asyncio_are_not_warned_of(mode, mock_cluster):
    """`to_thread`, `produce_async` and waits after the loop block no event loop."""
    servers = mock_cluster.bootstrap_servers

    run(PROGRAM, mode, servers=servers, blocks=False)
