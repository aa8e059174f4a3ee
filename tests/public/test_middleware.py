import copy
import threading

import gevent
import pytest

from greendrop import Message, MessageInvalidError, MiddlewareError, Producer
from greendrop.middleware import Middleware

NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}

#: Each verb that sends, given the producer and the fields of one message.
VERBS = {
    "produce_sync": lambda producer, **fields: producer.produce_sync(**fields),
    "produce_async": lambda producer, **fields: producer.produce_async(**fields),
    "produce_many_sync": lambda producer, **fields: producer.produce_many_sync(
        [fields]
    ),
    "produce_many_async": lambda producer, **fields: producer.produce_many_async(
        [Message(**fields)]
    ),
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


class Stop(BaseException):
    """An interruption: not an error of the step that it hits."""


def tagged(tag):
    """Make a step that appends a suffix to the payload."""
    return lambda message: message._replace(payload=f"{message.payload}{tag}")


# -- the steps ------------------------------------------------------------------------


def test_steps_run_in_their_order():
    """`append` adds a step at the end, `prepend` at the front."""
    middleware = Middleware(set())
    middleware.append(tagged("b"))
    middleware.append(tagged("c"))
    middleware.prepend(tagged("a"))

    assert middleware.run(Message("t", "x"), None).payload == "xabc"


def test_append_returns_the_step():
    """`append` returns the step, so it can be used as a decorator."""
    middleware = Middleware(set())

    @middleware.append
    def step(message):
        return message

    assert middleware.steps == (step,)


def test_removed_step_runs_no_more():
    """`remove` removes every occurrence of a step; an unknown step is ignored."""
    middleware = Middleware(set())
    step = middleware.append(tagged("a"))
    middleware.prepend(step)
    middleware.append(tagged("b"))

    middleware.remove(step)
    middleware.remove(step)

    assert middleware.run(Message("t", "x"), None).payload == "xb"


@pytest.mark.parametrize("add", ["append", "prepend"])
def test_step_that_cannot_be_called_is_refused(add):
    """A mistake is reported when the step is added, not when a message is sent."""
    with pytest.raises(TypeError, match="callable, not str"):
        getattr(Middleware(set()), add)("step")


def test_steps_are_changed_while_messages_go_through():
    """A step may remove itself; the current message keeps the old steps."""
    middleware = Middleware(set())

    def once(message):
        middleware.remove(once)
        return message._replace(payload="once")

    middleware.append(once)
    middleware.append(tagged("!"))

    assert middleware.run(Message("t", "x"), None).payload == "once!"
    assert middleware.run(Message("t", "x"), None).payload == "x!"


def test_threads_add_steps_at_once():
    """No step is lost when several threads add steps."""
    middleware = Middleware(set())

    def add():
        for _ in range(200):
            middleware.append(lambda message: message)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(middleware.steps) == 8 * 200


# -- sending --------------------------------------------------------------------------


@every_verb
def test_message_goes_through_the_steps_once_before_validation(sent, verb):
    """Each verb sends the message that the steps return, and calls each step once."""
    producer, messages = sent
    calls = []

    @producer.middleware.append
    def fix_topic(message):
        calls.append(message.payload)
        return message._replace(topic="events", payload="mended")

    verb(producer, topic="no topic!", payload="x", label=7)

    assert calls == ["x"]
    (message,) = messages
    assert (message.topic, message.payload, message.label) == ("events", b"mended", 7)


@every_verb
def test_messages_that_steps_return_are_validated(verb):
    """The message that the steps return is validated."""
    producer = Producer(kafka=NOWHERE)
    producer.middleware.append(lambda message: message._replace(topic="no topic!"))

    with pytest.raises(MessageInvalidError):
        verb(producer, topic="t", payload=b"x")

    assert producer.status == "configured"


@every_verb
@pytest.mark.parametrize(
    "headers",
    [{"a": ["1", "2"]}, [["a", "1"]], {"a": bytearray(b"1")}],
    ids=["lists", "pairs", "bytes"],
)
def test_callers_objects_are_not_changed(sent, verb, headers):
    """A step that changes headers changes its own copy of them."""
    producer, _ = sent
    payload = bytearray(b"x")
    before = copy.deepcopy((headers, payload))

    @producer.middleware.append
    def change(message):
        if isinstance(message.headers, dict):
            for value in message.headers.values():
                if isinstance(value, list):
                    value.append("3")
            message.headers["b"] = "4"
        else:
            message.headers.append(("b", "4"))
        assert type(message.payload) is bytes
        return message

    verb(producer, topic="events", payload=payload, headers=headers)

    assert (headers, payload) == before


# -- steps that fail ------------------------------------------------------------------


def broken(message):
    """Raise an error with a secret in its text."""
    raise ValueError(f"secret {message.payload}")


@every_verb
@pytest.mark.parametrize(
    ("step", "text"),
    [(broken, "'broken' raised ValueError"), (lambda _: None, "returned NoneType")],
    ids=["raises", "no message"],
)
def test_step_that_fails_is_named_and_nothing_is_sent(verb, step, text):
    """The error names the step and the state of the message, and no content."""
    producer = Producer(kafka=NOWHERE)
    producer.middleware.append(step)

    with pytest.raises(MiddlewareError, match=text) as raised:
        verb(producer, topic="t", payload="hush")

    assert "hush" not in str(raised.value)
    assert "nothing was sent" in str(raised.value)
    assert raised.value.step == step.__qualname__
    assert isinstance(
        raised.value.__cause__, ValueError if step is broken else type(None)
    )
    assert producer.status == "configured"


def test_step_that_fails_prevents_the_whole_batch():
    """Nothing of a batch is sent, including the messages before the failing one."""
    producer = Producer(kafka=NOWHERE)
    seen = []

    @producer.middleware.append
    def third_fails(message):
        seen.append(message)
        return message if len(seen) < 3 else None

    with pytest.raises(MiddlewareError):
        producer.produce_many_async([Message("t", b"x")] * 5)

    assert (producer.status, producer.queue_size) == ("configured", 0)


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, gevent.GreenletExit])
def test_interruptions_pass_unchanged(kind):
    """A kill or Ctrl-C in a step is not reported as an error of the step."""
    producer = Producer(kafka=NOWHERE)

    @producer.middleware.append
    def interrupted(message):
        raise kind

    with pytest.raises(kind):
        producer.produce_sync(topic="t", payload=b"x")


def test_timeout_in_a_step_is_the_callers(hub):
    """A gevent.Timeout around a verb ends a step that waits, and is not wrapped."""
    producer = Producer(kafka=NOWHERE)

    @producer.middleware.append
    def slow(message):
        gevent.sleep(10)
        return message

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        producer.produce_sync(topic="t", payload=b"x")
    assert producer.current_variant is producer


# -- the sending variant --------------------------------------------------------------


@every_verb
def test_steps_see_the_sending_variant(sent, verb):
    """In a step `current_variant` is the copy that the verb was called on.

    Outside a step it is the producer itself, also during another greenlet's call.
    """
    producer, _ = sent
    variant = producer.variant()
    seen = []

    @producer.middleware.append
    def look(message):
        seen.append((producer.current_variant, variant.current_variant))
        return message

    assert producer.current_variant is producer
    verb(variant, topic="events", payload=b"x")
    verb(producer, topic="events", payload=b"x")

    assert seen == [(variant, variant), (producer, producer)]
    assert producer.current_variant is producer
    assert variant.current_variant is variant


def test_current_variant_is_reset_after_each_call(make_producer):
    """After a call that sent or failed, `current_variant` is the producer again."""
    producer, other = make_producer(), make_producer()
    variant = producer.variant()
    seen = []

    @producer.middleware.append
    def forward(message):
        other.produce_async(topic="copies", payload=message.payload)
        seen.append(producer.current_variant)
        return message

    @other.middleware.append
    def look(message):
        seen.append((producer.current_variant, other.current_variant))
        return None if message.payload == b"bad" else message

    variant.produce_async(topic="events", payload=b"x")
    with pytest.raises(MiddlewareError):
        variant.produce_async(topic="events", payload=b"bad")

    assert seen == [(variant, other), variant, (variant, other)]
    assert producer.current_variant is producer
    assert other.current_variant is other


def test_greenlets_do_not_see_each_others_variants(hub):
    """While one greenlet waits in a step, another greenlet sees its own variant."""
    producer = Producer(kafka=NOWHERE)
    variant = producer.variant()
    inside = gevent.event.Event()
    go_on = gevent.event.Event()

    @producer.middleware.append
    def wait(message):
        inside.set()
        go_on.wait(10)

    def send():
        with pytest.raises(MiddlewareError):
            variant.produce_async(topic="t", payload=b"x")

    sending = gevent.spawn(send)
    inside.wait(10)

    assert producer.current_variant is producer

    go_on.set()
    sending.get(timeout=10)
