import copy
import inspect
import json
import pickle
import re
import threading

import pytest

import greendrop
from greendrop import Message, Producer, errors
from greendrop.delivery import refused_handle
from greendrop.errors import (
    AbortTransaction,
    BrokerError,
    ConfigurationInvalidError,
    DeliveryError,
    DeliveryTimeoutError,
    FlushTimeoutError,
    GreendropError,
    IllegalWaitError,
    MessageInvalidError,
    MessagesAbandonedError,
    MiddlewareError,
    NotDeliveredError,
    NotSentError,
    OAuthTokenError,
    OutcomeUnknownError,
    ProduceError,
    ProduceManyError,
    QueueFullError,
    TransactionalOffsetInvalidError,
    VariantInvalidError,
)
from greendrop.testing import MemoryCluster

#: This object can't be pickled.
LAMBDA = lambda: 1  # noqa: E731

CLASSES = sorted(
    (
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, GreendropError) and not each.__name__.startswith("_")
    ),
    key=lambda each: each.__name__,
)

BROKER_ERROR = BrokerError(
    "message too large (MESSAGE_TOO_LARGE, 10)",
    code=10,
    name="MESSAGE_TOO_LARGE",
    fatal=True,
    retriable=True,
    abortable=True,
)


def example_of(kind):
    """Make an error with every attribute it can have, caused by a broker error."""
    if issubclass(
        kind,
        (
            ConfigurationInvalidError,
            MessageInvalidError,
            TransactionalOffsetInvalidError,
            VariantInvalidError,
        ),
    ):
        error = kind({"kafka.acks": "is wrong", "id": "must not be empty"})
    elif kind is BrokerError:
        error = copy.copy(BROKER_ERROR)
    elif kind is MessagesAbandonedError:
        error = kind("3 were lost", count=3, buffered=[Message("t", b"x", label=5)])
    elif kind is FlushTimeoutError:
        error = kind("3 messages are left", count=3)
    elif kind is MiddlewareError:
        error = kind("step 'f' failed", step="f")
    elif kind is ProduceManyError:
        error = kind("message 1 of 2", dispatched=["handle"], failed_index=1)
    else:
        error = kind("what happened")
    error.__cause__ = BROKER_ERROR
    return error


def documented_tree():
    """Parse the diagram in the docstring of errors.py: class name -> parent's name."""
    parents, path = {}, ["GreendropError"]
    for line in errors.__doc__.splitlines():
        if found := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(found[1]) // 4 + 1
            del path[depth:]
            parents[found[2]] = path[-1]
            path.append(found[2])
    return parents


def test_tree_is_as_documented():
    """The diagram in the docstring of errors.py shows each class below its parent."""
    real = {
        each.__name__: next(
            base.__name__ for base in each.__mro__[1:] if base.__name__[0] != "_"
        )
        for each in CLASSES
        if each is not GreendropError
    }

    assert documented_tree() == real


def test_every_error_can_be_imported_from_the_package():
    """Every public error class is exported by `greendrop`."""
    for each in CLASSES:
        assert getattr(greendrop, each.__name__) is each
        assert each.__name__ in greendrop.__all__


def test_some_errors_are_also_pythons_own():
    """A delivery timeout is a TimeoutError, and an illegal wait a RuntimeError."""
    assert issubclass(DeliveryTimeoutError, TimeoutError)
    assert issubclass(IllegalWaitError, RuntimeError)


def same(one, other):
    """Return whether two errors have the same class, arguments, text and attributes."""
    return (
        type(one) is type(other)
        and one.args == other.args
        and str(one) == str(other)
        and vars(one) == vars(other)
    )


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_pickle_with_attributes_and_cause(kind, protocol):
    """An error that was sent through a process pool or Celery has the same content."""
    error = example_of(kind)

    got = pickle.loads(pickle.dumps(error, protocol))

    assert same(error, got)
    assert same(BROKER_ERROR, got.__cause__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_json(kind):
    """Class and `args` rebuild the text: Celery's JSON results have only those.

    Counts and lists of the error are rebuilt too, except for handles.
    """
    error = example_of(kind)

    args = json.loads(json.dumps(error.args))
    got = kind(*args)

    assert str(error) == str(got)
    expected = {"errors", "step", "count", "failed_index", "code", "name"} & vars(
        error
    ).keys()
    assert {key: vars(error)[key] for key in expected} == {
        key: vars(got)[key] for key in expected
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_text_added_to_an_error_survives_pickling(kind):
    """Text that is added to an error later is at its end, also after pickling."""
    error = example_of(kind)
    before = str(error)

    error.add("2 messages are back")

    assert str(error) == f"{before}; 2 messages are back"
    assert same(error, pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_errors_have_the_same_content(kind, copied):
    """A copy of an error is a separate object with the same content."""
    error = example_of(kind)

    got = copied(error)

    assert got is not error
    assert same(error, got)
    assert same(BROKER_ERROR, got.__cause__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_read_as_text(kind):
    """The text is a sentence, without braces, quotes or tuples around it."""
    assert re.fullmatch(r"[a-z0-9][^{}]*", str(example_of(kind)))


def test_bad_fields_are_named_in_the_text():
    """Each bad field is named in the text and is a key of `errors`."""
    error = MessageInvalidError({"topic": "is wrong", "key": "is empty"})

    assert str(error) == "topic: is wrong; key: is empty"
    assert error.errors == {"topic": "is wrong", "key": "is empty"}


def test_errors_copy_the_mapping_of_fields():
    """Changing the mapping that an error was made from does not change the error."""
    problems = {"topic": "is wrong"}
    error = MessageInvalidError(problems)
    problems.clear()

    assert error.errors == {"topic": "is wrong"}


@pytest.mark.parametrize(
    "kind",
    [each for each in CLASSES if issubclass(each, ProduceError)],
    ids=lambda kind: kind.__name__,
)
def test_produce_errors_have_the_attributes_of_their_cause(kind):
    """The broker error's code, name and flags are attributes of the produce error."""
    error = example_of(kind)

    assert error.code == 10
    assert error.name == "MESSAGE_TOO_LARGE"
    assert error.fatal is True
    assert error.retriable is True
    assert error.abortable is True


@pytest.mark.parametrize("cause", [None, ValueError("x"), DeliveryError("y")])
def test_produce_errors_without_a_broker_error_have_no_code(cause):
    """Without a broker error as cause the code is None and every flag is False."""
    error = ProduceError("what happened")
    error.__cause__ = cause

    assert error.code is None
    assert error.name is None
    assert error.fatal is False
    assert error.retriable is False
    assert error.abortable is False


def test_flags_of_a_broker_error_are_false_by_default():
    """A broker error is not fatal, retriable or abortable unless it says so."""
    error = BrokerError("what happened", code=-195, name="_TRANSPORT")

    assert (error.fatal, error.retriable, error.abortable) == (False, False, False)


def test_notes_survive_pickling():
    """Notes added by `add_note` (Python 3.11) survive like other attributes."""
    error = ProduceError("what happened")
    error.__notes__ = ["while sending an order"]

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while sending an order"]


class NoRepr:
    """An object that can be neither shown nor pickled."""

    def __reduce__(self):
        """Refuse."""
        raise RuntimeError("not today")

    def __repr__(self):
        """Refuse."""
        raise RuntimeError("not this either")


class TwoArgumentsError(Exception):
    """Can be pickled but not unpickled: its constructor needs more than `args`."""

    def __init__(self, text, more):
        super().__init__(text)
        self.more = more


@pytest.mark.parametrize(
    "cause",
    [
        OSError(threading.Lock()),
        TwoArgumentsError("out of luck", 5),
        OSError(NoRepr()),
        OSError("plain"),
    ],
    ids=["lock", "constructor", "no repr", "plain"],
)
@pytest.mark.parametrize("kind", [MiddlewareError, OAuthTokenError])
def test_errors_pickle_whatever_their_cause_is(kind, cause):
    """A cause that can't be pickled is replaced by an error with its repr as text."""
    error = example_of(kind)
    error.__cause__ = cause
    cause.__cause__ = BROKER_ERROR

    got = pickle.loads(pickle.dumps(error))

    assert same(error, got)
    if cause.args == ("plain",):
        assert type(got.__cause__) is OSError
    else:
        assert type(got.__cause__) is GreendropError
        assert type(cause).__name__ in str(got.__cause__)
        assert same(got.__cause__.__cause__, BROKER_ERROR)


def test_errors_pickle_whatever_they_carry():
    """Arguments and attributes that can't be pickled are replaced by their repr."""
    lock = threading.Lock()
    error = AbortTransaction("stop", lock)
    error.lock = lock
    error.many = (lock, 5)

    got = pickle.loads(pickle.dumps(error))

    assert got.args == ("stop", repr(lock))
    assert (got.lock, got.many) == (repr(lock), (repr(lock), 5))


def test_buffered_messages_of_an_error_pickle_field_by_field():
    """A label that can't be pickled does not cost the message's payload."""
    lock = threading.Lock()
    message = Message("t", b"payload", label=lock)
    error = MessagesAbandonedError("one was lost", count=1, buffered=[message])

    got = pickle.loads(pickle.dumps(error))

    assert got.buffered == (message._replace(label=repr(lock)),)
    assert type(got.buffered[0]) is Message


def test_copies_of_errors_share_what_they_carry():
    """Each of several tasks that wait for one message raises a copy of its error."""
    lock = threading.Lock()
    error = AbortTransaction("stop", lock)
    error.lock = lock
    error.__cause__ = OSError(lock)

    got = copy.copy(error)

    assert got is not error
    assert type(got) is AbortTransaction
    assert got.args == ("stop", lock)
    assert got.lock is lock
    assert got.__cause__ is error.__cause__


@pytest.mark.parametrize(
    ("label", "pickled"),
    [
        (len, len),
        ({"id": 5}, {"id": 5}),
        (threading.Lock, threading.Lock),
        (LAMBDA, repr(LAMBDA)),
        ([LAMBDA], repr([LAMBDA])),
    ],
    ids=["function", "mapping", "class", "lambda", "list of a lambda"],
)
def test_errors_pickle_whatever_the_labels_are(label, pickled):
    """A label that can't be pickled is replaced by its repr, in handles too."""
    with MemoryCluster() as cluster:
        producer = Producer(kafka={"bootstrap.servers": cluster.bootstrap_servers})
        cluster.fail_messages("INVALID_RECORD")
        with pytest.raises(ProduceManyError) as raised:
            producer.produce_many_sync([Message("t", b"x", label=label)])
        producer.close()

    got = pickle.loads(pickle.dumps(raised.value))

    assert raised.value.dispatched[0].label is label
    assert got.dispatched[0].label == pickled
    assert got.dispatched[0].error.name == "INVALID_RECORD"


def test_subclass_of_a_user_pickles():
    """A user's subclass of our errors can be pickled without extra code."""
    error = UsersError("what happened", order=5)

    got = pickle.loads(pickle.dumps(error))

    assert same(error, got)
    assert got.order == 5


class UsersError(ProduceError):
    """An error whose constructor does not accept its own `args`."""

    def __init__(self, text, *, order):
        super().__init__(text)
        self.order = order


@pytest.mark.parametrize(
    ("branch", "state"),
    [
        (NotSentError, "not_sent"),
        (NotDeliveredError, "not_delivered"),
        (OutcomeUnknownError, "unknown"),
    ],
)
def test_each_branch_has_one_message_state(branch, state):
    """All errors below one branch have the same `message_state`, also when pickled."""
    for kind in CLASSES:
        if issubclass(kind, branch):
            error = example_of(kind)
            assert error.message_state == state
            assert pickle.loads(pickle.dumps(error)).message_state == state


def test_an_illegal_wait_states_whether_the_message_was_queued():
    """The `message_state` of an illegal wait is that of the case."""
    refused = IllegalWaitError("nothing was sent")
    queued = pickle.loads(pickle.dumps(IllegalWaitError("queued", "unknown")))

    assert refused.message_state == "not_sent"
    assert queued.message_state == "unknown"


def handle_with(error):
    """Make a handle that has failed, or one without an outcome."""
    handle = refused_handle("t", None, error)
    if error is None:
        handle._reports = object()
    return handle


@pytest.mark.parametrize(
    ("cause", "handles", "rolled_back", "state"),
    [
        (QueueFullError("full"), [], [], "not_sent"),
        (DeliveryError("refused"), [], [], "not_delivered"),
        (DeliveryError("x"), [DeliveryError("x")], [], "not_delivered"),
        (QueueFullError("full"), [DeliveryError("x")], [], "not_delivered"),
        (QueueFullError("full"), [None], [], "unknown"),
        (DeliveryTimeoutError("late"), [None], [], "unknown"),
        (DeliveryTimeoutError("late"), [], [None], "not_delivered"),
        (None, [], [], "unknown"),
    ],
)
def test_a_failed_batch_has_the_state_that_holds_for_all_its_messages(
    cause, handles, rolled_back, state
):
    """The least certain state wins; a message that was rolled back is not delivered."""
    error = ProduceManyError(
        "text", 0, list(map(handle_with, handles)), list(map(handle_with, rolled_back))
    )
    error.__cause__ = cause

    assert error.message_state == state


@pytest.mark.parametrize(
    "verb",
    [
        name
        for name in vars(Producer)
        if name.startswith(("produce_", "tombstone_", "buffer", "flush"))
    ],
)
def test_all_that_the_verbs_raise_about_messages_are_produce_errors(verb):
    """One `except ProduceError` catches each error that a verb's docstring names."""
    text = inspect.getdoc(vars(Producer)[verb])
    section = re.search(r"\nRaises:\n((?: .*\n|\n(?= ))*)", text + "\n")
    named = re.findall(r"\b\w+Error\b", section[1]) if section else []

    assert named or verb == "buffered"
    assert all(issubclass(getattr(errors, name), ProduceError) for name in named)


VERBS = {
    "produce_sync": {"topic": "t", "payload": b"x"},
    "produce_async": {"topic": "t", "payload": b"x"},
    "produce_many_sync": [Message("t", b"x")],
    "produce_many_async": [Message("t", b"x")],
    "tombstone_sync": {"topic": "t", "key": b"k", "partition": 0},
    "tombstone_async": {"topic": "t", "key": b"k", "partition": 0},
    "tombstone_many_sync": [Message("t", None, b"k", partition=0)],
    "tombstone_many_async": [Message("t", None, b"k", partition=0)],
    "buffer": {"topic": "t", "payload": b"x"},
    "buffer_many": [Message("t", b"x")],
    "flush_sync": {},
    "flush_async": {},
}


def call(producer, verb):
    """Call a verb with its message, or messages."""
    given = VERBS[verb]
    if isinstance(given, dict):
        return getattr(producer, verb)(**given)
    return getattr(producer, verb)(given)


@pytest.mark.parametrize("verb", VERBS)
def test_one_except_catches_what_each_verb_raises(verb):
    """Before setup, after close and with a failing middleware nothing is sent."""
    unconfigured = Producer()
    closed = Producer(kafka={"bootstrap.servers": "localhost:1"})
    closed.close()
    failing = Producer(kafka={"bootstrap.servers": "localhost:1"})
    failing.middleware.append(lambda _: 1 / 0)

    producers = [unconfigured, closed]
    if not verb.startswith("flush"):
        producers.append(failing)
    for producer in producers:
        with pytest.raises(ProduceError) as caught:
            call(producer, verb)
        assert caught.value.message_state == "not_sent"
    failing.close()
