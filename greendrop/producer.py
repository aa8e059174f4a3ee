"""`Producer` and its verbs.

Every verb has the same steps: build and validate the message, dispatch it, wait if it
is a sync verb, emit an event. The work is done by `_producer.core`.
"""

from __future__ import annotations

import weakref
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from greendrop import _concurrency, _pickling, _wording, events
from greendrop._connections.client_slots import (
    ClientSlot,
    check_wait_timeout,
    merged_topic_config,
)
from greendrop._frames import concealed
from greendrop._hints import MISSING, NoFields, attribute_error, call_error, hinted
from greendrop._logging.log import ERROR, Log
from greendrop._producer.batches import validate_all, wait_reports
from greendrop._producer.buffer import BufferedMessage, Flush
from greendrop._producer.core import Core
from greendrop._validation import as_message, as_tombstone, check_topic, validate
from greendrop.config.settings import build_settings
from greendrop.delivery import DeliveryScope
from greendrop.errors import (
    SENDING_ERRORS,
    MessagesAbandonedError,
    ProduceManyError,
    ProducerAlreadyConfiguredError,
    ProducerNotConfiguredError,
)
from greendrop.events import Monitor
from greendrop.message import Message
from greendrop.middleware import Middleware
from greendrop.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from typing_extensions import Never, Self, Unpack

    from greendrop._connections.state import Status
    from greendrop.config.settings import Settings
    from greendrop.config.types import ProducerSettings
    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.errors import ProduceError
    from greendrop.events import EventName
    from greendrop.interceptors import Interceptor
    from greendrop.message import Headers

__all__ = ["Producer"]

_T = TypeVar("_T")

_log = Log("greendrop")

# Making a NamedTuple by its own constructor costs twice as much.
_new_message = tuple.__new__


class Producer(_pickling.PerProcess):
    """Sends messages to Kafka, and reports the outcome of each.

    One producer serves all greenlets and threads of a process. Construction opens
    nothing, so a producer may be constructed at module level and before a fork; it
    connects when the first message is sent. Use it as a context manager, or call
    `close`.

    Args:
        kafka: librdkafka's configuration, with its own keys and units.
        **settings: See docs/reference/settings.md. Durations are in seconds.

    Raises:
        ConfigurationInvalidError: Some settings are invalid; the text names all of
            them.
    """

    @concealed
    def __init__(
        self,
        kafka: Mapping[str, object] | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        # The hooks that have to see each message: see `Core.hooks`.
        self._hooks: set[object] = set()
        #: Subscribe to events here, before the first message or at any time.
        self.monitor = Monitor(hooks=self._hooks)
        #: Steps that change each message before it is validated.
        self.middleware = Middleware(self._hooks)
        self._core: Core | None = None
        self._slot: ClientSlot  # set together with `_core`
        self._max_wait_timeout: float
        # The producer of a variant: garbage-collected, it would close the shared core.
        self._origin: Producer | None = None
        self._emit_process("producer.created")
        if kafka is not None or settings:
            self.setup(kafka, **settings)

    @concealed
    def setup(
        self,
        kafka: Mapping[str, object] | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        """Configure a producer that was constructed without settings; possible once.

        Raises:
            ProducerAlreadyConfiguredError: The producer has settings already.
            ConfigurationInvalidError: Some settings are invalid; the text names all of
                them. `setup` may be called again.
        """
        if self._core is not None:
            text = f"producer {self.id!r} is configured already"
            raise ProducerAlreadyConfiguredError(text)
        core = Core(build_settings(kafka, settings), self.monitor, self._hooks)
        # A weak reference: the core refers to the listeners, which often refer to the
        # producer.
        weakref.finalize(self, _release, weakref.ref(core)).atexit = False
        self._slot = core.main
        self._max_wait_timeout = core.settings.max_wait_timeout
        self._core = core
        if events.monitor.listens("producer.configured"):
            config = core.settings.redacted()
            self._emit_process("producer.configured", config=config)

    @concealed
    def variant(
        self,
        *,
        max_wait_timeout: float | None = None,
        topic_config: Mapping[str, object] | None = None,
    ) -> Self:
        """Return a producer that shares all with this one, except for two settings.

        Variants are cheap: make one where it is needed, as with structlog's `bind`, or
        keep it. A variant of a variant keeps what it doesn't change, key by key.
        Events, state and `close` are those of the producer; a variant that is
        garbage-collected closes nothing.

        Args:
            max_wait_timeout: Seconds that the sync verbs of the variant wait.
            topic_config: librdkafka's keys that apply to a topic: acks,
                request.timeout.ms, message.timeout.ms, partitioner, compression.codec,
                compression.level. Each distinct `topic_config` gets a connection of its
                own at first use; there may be 16. Order is kept within one of them.

        Raises:
            VariantInvalidError: Some keys are invalid; the text names all of them.
                Nothing was opened.
            ProducerNotConfiguredError: The producer has no settings yet.
            ProducerClosedError: The producer is closed.

        Blocking:
            A new `topic_config` is tried out: one to three milliseconds.
        """
        core = self._core or self._unconfigured()
        core.check_open()
        variant = type(self).__new__(type(self))
        vars(variant).update(vars(self))
        variant._origin = self  # noqa: SLF001 - of our own kind
        if max_wait_timeout is not None:
            variant._max_wait_timeout = check_wait_timeout(  # noqa: SLF001
                max_wait_timeout
            )
        if topic_config is not None:
            changed = self._slot.topic_config
            changed = merged_topic_config(core.settings, changed, topic_config)
            variant._slot = core.slot(changed)  # noqa: SLF001
        return variant

    def intercept(self, build: Callable[[Settings], Interceptor]) -> None:
        """Pass all further messages through an interceptor, for tracing.

        It sees the messages of all variants, after middleware and validation. Without
        interceptors there is no cost. A second interceptor receives the messages that
        the first one returns.

        Args:
            build: Returns the interceptor; called with the producer's settings.

        Raises:
            ProducerNotConfiguredError: The producer has no settings yet.
        """
        core = self._core or self._unconfigured()
        core.intercept(build(core.settings))

    # --- one message -------------------------------------------------------------

    @hinted
    def produce_sync(
        self,
        *positional: Never,
        topic: str,
        payload: bytes | str | None,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        partition_key: bytes | str | None = None,
        timestamp: int | datetime | None = None,
        label: object = None,
        **unknown: Unpack[NoFields],
    ) -> DeliveryReport:
        """Send one message and wait until the broker has stored it.

        The arguments are the fields of `Message`.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names all of them.
                Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            QueueFullError: No space in the queue within `wait_timeout_on_queue_full`.
                Nothing was sent.
            OAuthTokenError: There is no token to log in with. Nothing was sent.
            DeliveryError: The message was not delivered and will not be.
            DeliveryTimeoutError: No delivery report within `max_wait_timeout`. The
                message may still be delivered.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.
            IllegalWaitError: The caller is the hub, or a listener of this producer,
                where the wait could never end. The message was queued, unless the text
                says otherwise: see `produce_async`.

        Blocking:
            Lets other greenlets run where the thread has a hub, and blocks the thread
            elsewhere; for at most `max_wait_timeout`, after the waits of
            `produce_async`.
        """
        if positional or unknown:
            raise call_error(
                self.produce_sync, positional, unknown, topic=topic, payload=payload
            )
        core = self._core or self._unconfigured()
        handle = None
        if (
            not core.hooks
            and headers is None
            and partition is None
            and partition_key is None
            and timestamp is None
            and (client := self._slot.active) is not None
        ):
            handle = client.send_plain(topic, payload, key, label)
        if handle is not None:
            try:
                return handle.wait(self._max_wait_timeout)
            except SENDING_ERRORS as error:
                message = Message(topic, payload, key, label=label)
                self._emit_error("message.produce_sync", error, message=message)
                raise
        if topic is MISSING or payload is MISSING:
            raise call_error(self.produce_sync, (), (), topic=topic, payload=payload)
        fields = (
            topic,
            payload,
            key,
            headers,
            partition,
            partition_key,
            timestamp,
            label,
        )
        return self._produce_sync(core, _new_message(Message, fields))

    def _produce_sync(self, core: Core, message: Message) -> DeliveryReport:
        if self.middleware.steps:
            message = self.middleware.run(message, self)
        message = validate(message, core.size_limit)
        emits = "message.produced_sync" in self.monitor.listeners
        started = _concurrency.monotonic() if emits else 0.0
        try:
            handle = core.send(
                self._slot, message, "produce_sync", self._max_wait_timeout
            )
            report = handle.wait(self._max_wait_timeout)
        except SENDING_ERRORS as error:
            failure = core.explain(error)
            self._emit_error("message.produce_sync", failure, message=message)
            if failure is error:
                raise
            raise failure from failure.__cause__
        if emits:
            self._tell("message.produced_sync", started, message=message)
        return report

    @hinted
    def produce_async(
        self,
        *positional: Never,
        topic: str,
        payload: bytes | str | None,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        partition_key: bytes | str | None = None,
        timestamp: int | datetime | None = None,
        label: object = None,
        **unknown: Unpack[NoFields],
    ) -> DeliveryHandle:
        """Send one message without waiting for the broker.

        The arguments are the fields of `Message`. The outcome is reported by the
        handle, and by the events `message.acknowledged` and `error.occurred`.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names all of them.
                Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            QueueFullError: No space in the queue within `wait_timeout_on_queue_full`;
                raised at once where the caller must not wait. Nothing was sent.
            OAuthTokenError: There is no token to log in with. Nothing was sent.
            DeliveryError: librdkafka refused the message at once.
            TransactionError: A transactional producer sends the message in a
                transaction of its own, and that failed; see `transaction`.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.
            IllegalWaitError: The caller is the hub, or a listener of this producer, and
                would have to wait: for the number of partitions of the topic, because
                the message has a `partition_key`, or for a transaction. Nothing was
                sent.

        Blocking:
            While the queue is full, for at most `wait_timeout_on_queue_full`; with a
            `partition_key` also as `partition_count`. A transactional producer outside
            of a transaction waits for a whole transaction. While it connects and there
            is no OAuth token yet, for at most half a minute. Lets other greenlets run
            where the thread has a hub, and blocks the thread elsewhere. In a running
            asyncio event loop it never waits, and raises instead; there the handle can
            be awaited.
        """
        if positional or unknown:
            raise call_error(
                self.produce_async, positional, unknown, topic=topic, payload=payload
            )
        core = self._core or self._unconfigured()
        if (
            not core.hooks
            and headers is None
            and partition is None
            and partition_key is None
            and timestamp is None
            and (client := self._slot.active) is not None
        ):
            handle = client.send_plain(topic, payload, key, label)
            if handle is not None:
                return handle
        if topic is MISSING or payload is MISSING:
            raise call_error(self.produce_async, (), (), topic=topic, payload=payload)
        fields = (
            topic,
            payload,
            key,
            headers,
            partition,
            partition_key,
            timestamp,
            label,
        )
        return self._produce_async(core, _new_message(Message, fields))

    def _produce_async(self, core: Core, message: Message) -> DeliveryHandle:
        if self.middleware.steps:
            message = self.middleware.run(message, self)
        message = validate(message, core.size_limit)
        emits = "message.produced_async" in self.monitor.listeners
        started = _concurrency.monotonic() if emits else 0.0
        try:
            handle = core.send(
                self._slot, message, "produce_async", self._max_wait_timeout
            )
        except SENDING_ERRORS as error:
            self._emit_error("message.produce_async", error, message=message)
            raise
        if emits:
            self._tell("message.produced_async", started, message=message)
        return handle

    # --- batches -----------------------------------------------------------------

    def produce_many_sync(
        self, messages: Iterable[Message | Mapping[str, object]]
    ) -> list[DeliveryReport]:
        """Send a batch and wait until the broker has stored all of it.

        Args:
            messages: `Message`s, or mappings with their fields. All are validated
                before the first one is sent.

        Returns:
            The reports, in the order of the messages.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names those of the
                first bad messages, as `messages[3].topic`. Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            ProduceManyError: Some messages were not sent or not delivered; `dispatched`
                holds the handles of those that were queued. All of these are final,
                unless the cause is a `DeliveryTimeoutError`.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.
            IllegalWaitError: As for `produce_sync`. In a batch with `partition_key`s
                some messages may have been queued.

        Blocking:
            As `produce_sync`, with one `max_wait_timeout` for the whole batch.
        """
        core = self._core or self._unconfigured()
        return self._many_sync(core, self._checked_batch(core, messages))

    def produce_many_async(
        self, messages: Iterable[Message | Mapping[str, object]]
    ) -> list[DeliveryHandle]:
        """Send a batch without waiting for the broker.

        Args:
            messages: As for `produce_many_sync`.

        Returns:
            The handles, in the order of the messages.

        Raises:
            MessageInvalidError: As for `produce_many_sync`. Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            ProduceManyError: A message was not queued, nor were the ones after it;
                `dispatched` holds the handles of the ones before it.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.
            IllegalWaitError: As for `produce_async`. Nothing was sent; after the first
                message it is the cause of a `ProduceManyError`.

        Blocking:
            As `produce_async` for each message, but only once for the number of
            partitions of each topic. A long batch lets other greenlets run in between.
        """
        core = self._core or self._unconfigured()
        return self._many_async(core, self._checked_batch(core, messages))

    def _checked_batch(
        self, core: Core, messages: Iterable[Message | Mapping[str, object]]
    ) -> list[Message]:
        limit = core.size_limit
        if self.middleware.steps:
            return validate_all(messages, self._prepare_item)

        def read(item: object) -> Message:
            return validate(as_message(item), limit)

        return validate_all(messages, read, limit)

    def _prepare_item(self, item: object) -> Message:
        return self._prepare(as_message(item))

    def _prepare(self, message: Message) -> Message:
        core = self._core or self._unconfigured()
        if self.middleware.steps:
            message = self.middleware.run(message, self)
        return validate(message, core.size_limit)

    def _many_sync(
        self, core: Core, batch: list[Message], flush: Flush | None = None
    ) -> list[DeliveryReport]:
        started = _concurrency.monotonic()
        try:
            reports = core.send_batch_and_wait(
                self._slot, batch, self._max_wait_timeout, flush
            )
        except ProduceManyError as error:
            self._emit_batch_error("messages.produce_many_sync", error, batch)
            raise
        if self.monitor.listens("messages.produced_sync"):
            self._tell("messages.produced_sync", started, messages=batch)
        return reports

    def _many_async(
        self, core: Core, batch: list[Message], flush: Flush | None = None
    ) -> list[DeliveryHandle]:
        started = _concurrency.monotonic()
        try:
            with core.waits_of("produce_many_async"):
                handles = core.send_batch(
                    self._slot,
                    batch,
                    "produce_many_async",
                    self._max_wait_timeout,
                    flush,
                )
        except ProduceManyError as error:
            self._emit_batch_error("messages.produce_many_async", error, batch)
            raise
        if self.monitor.listens("messages.produced_async"):
            self._tell("messages.produced_async", started, messages=batch)
        return handles

    # --- tombstones --------------------------------------------------------------

    @hinted
    def tombstone_sync(
        self,
        *positional: Never,
        topic: str,
        key: bytes | str,
        partition: int,
        headers: Headers | None = None,
        timestamp: int | datetime | None = None,
        label: object = None,
        **unknown: Unpack[NoFields],
    ) -> DeliveryReport:
        """Send a message without payload, which deletes its key in a compacted topic.

        Key and partition are required: a tombstone in another partition than the
        messages with its key would delete nothing.

        Args:
            topic: The topic, like the other arguments a field of `Message`.
            key: Bytes or text, not empty.
            partition: 0 or more.
            headers: As in `Message`.
            timestamp: As in `Message`.
            label: As in `Message`.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names all of them.
                Nothing was sent.
            ProduceError: As for `produce_sync`.

        Blocking:
            As `produce_sync`.
        """
        required = {"topic": topic, "key": key, "partition": partition}
        if positional or unknown or any(each is MISSING for each in required.values()):
            raise call_error(self.tombstone_sync, positional, unknown, **required)
        fields = (topic, None, key, headers, partition, None, timestamp, label)
        core = self._core or self._unconfigured()
        message = as_tombstone(_new_message(Message, fields), core.size_limit)
        return self._produce_sync(core, message)

    @hinted
    def tombstone_async(
        self,
        *positional: Never,
        topic: str,
        key: bytes | str,
        partition: int,
        headers: Headers | None = None,
        timestamp: int | datetime | None = None,
        label: object = None,
        **unknown: Unpack[NoFields],
    ) -> DeliveryHandle:
        """Send a tombstone without waiting for the broker.

        The arguments are those of `tombstone_sync`.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names all of them.
                Nothing was sent.
            ProduceError: As for `produce_async`.

        Blocking:
            As `produce_async`.
        """
        required = {"topic": topic, "key": key, "partition": partition}
        if positional or unknown or any(each is MISSING for each in required.values()):
            raise call_error(self.tombstone_async, positional, unknown, **required)
        fields = (topic, None, key, headers, partition, None, timestamp, label)
        core = self._core or self._unconfigured()
        message = as_tombstone(_new_message(Message, fields), core.size_limit)
        return self._produce_async(core, message)

    def tombstone_many_sync(
        self, messages: Iterable[Message | Mapping[str, object]]
    ) -> list[DeliveryReport]:
        """Send a batch of tombstones and wait until the broker has stored all of them.

        Args:
            messages: As for `produce_many_sync`. Payloads are ignored.

        Raises:
            MessageInvalidError: As for `produce_many_sync`; also for each message
                without key or partition. Nothing was sent.
            ProduceManyError: As for `produce_many_sync`.

        Blocking:
            As `produce_many_sync`.
        """
        return self.produce_many_sync(validate_all(messages, self._tombstone))

    def tombstone_many_async(
        self, messages: Iterable[Message | Mapping[str, object]]
    ) -> list[DeliveryHandle]:
        """Send a batch of tombstones without waiting for the broker.

        Args:
            messages: As for `tombstone_many_sync`.

        Raises:
            MessageInvalidError: As for `tombstone_many_sync`. Nothing was sent.
            ProduceManyError: As for `produce_many_async`.

        Blocking:
            As `produce_many_async`.
        """
        return self.produce_many_async(validate_all(messages, self._tombstone))

    def _tombstone(self, item: object) -> Message:
        core = self._core or self._unconfigured()
        return as_tombstone(item, core.size_limit)

    # --- the buffer --------------------------------------------------------------

    @hinted
    def buffer(
        self,
        *positional: Never,
        topic: str,
        payload: bytes | str | None,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        partition_key: bytes | str | None = None,
        timestamp: int | datetime | None = None,
        label: object = None,
        **unknown: Unpack[NoFields],
    ) -> None:
        """Keep one message until the next flush; sends nothing and does not connect.

        The arguments are the fields of `Message`. The message passes middleware and
        validation now, so that a mistake is raised to the caller that made it.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names all of them.
                The message was not buffered.
            MiddlewareError: A step of `middleware` failed. The message was not
                buffered.
            ProducerClosedError: The message was not buffered.
            ProducerUsedInParentProcessError: The message was not buffered; see `reset`.
        """
        if positional or unknown or topic is MISSING or payload is MISSING:
            raise call_error(
                self.buffer, positional, unknown, topic=topic, payload=payload
            )
        core = self._core or self._unconfigured()
        fields = (
            topic,
            payload,
            key,
            headers,
            partition,
            partition_key,
            timestamp,
            label,
        )
        message = _new_message(Message, fields)
        began = _concurrency.monotonic()
        prepared = self._prepare(message)
        core.buffer_messages([BufferedMessage(message, prepared, self._slot)])
        if self.monitor.listens("message.buffered"):
            held = core.buffer.messages()
            self._tell("message.buffered", began, message=message, buffer=held)

    def buffer_many(self, messages: Iterable[Message | Mapping[str, object]]) -> None:
        """Keep several messages until the next flush, next to each other.

        All pass middleware and validation now; if one fails, none is buffered.

        Args:
            messages: As for `produce_many_sync`.

        Raises:
            MessageInvalidError: Some fields are invalid; the text names those of the
                first bad messages, as `messages[3].topic`. No message was buffered.
            MiddlewareError: A step of `middleware` failed. No message was buffered.
            ProducerClosedError: No message was buffered.
            ProducerUsedInParentProcessError: No message was buffered; see `reset`.

        Blocking:
            A long batch lets other greenlets run in between.
        """
        core = self._core or self._unconfigured()
        began = _concurrency.monotonic()
        entries: list[BufferedMessage] = []

        def read(item: object) -> Message:
            message = as_message(item)
            prepared = self._prepare(message)
            entries.append(BufferedMessage(message, prepared, self._slot))
            return message

        batch = validate_all(messages, read)
        core.buffer_messages(entries)
        if self.monitor.listens("messages.buffered"):
            held = core.buffer.messages()
            self._tell("messages.buffered", began, messages=batch, buffer=held)

    @property
    def buffered(self) -> tuple[Message, ...]:
        """The buffered messages, as the callers wrote them. Never blocks.

        Without messages that are being flushed. After `close` these are the messages
        that `close` could not deliver.
        """
        return () if self._core is None else self._core.buffer.messages()

    def flush_sync(self) -> list[DeliveryReport]:
        """Send all buffered messages, in order, and wait until they are stored.

        A message that librdkafka refuses for good (too large, or to a partition that
        does not exist) is reported, as an event and in the raised error, and leaves the
        buffer; the others are sent. If the flush fails, messages that were not handed
        over return to the front of the buffer, in order; the text of the error says how
        many. Messages that were handed over do not return: their handles report the
        outcome.

        Returns:
            The reports, in the order of the messages.

        Raises:
            ProduceManyError: Some messages were not sent or not delivered; `dispatched`
                holds the handles of those that were queued or refused for good. All of
                these are final, unless the cause is a `DeliveryTimeoutError`.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.

        Blocking:
            As `produce_many_sync`.
        """
        core = self._core or self._unconfigured()
        core.check_usable()
        began = _concurrency.monotonic()
        reports: list[DeliveryReport] = []
        with Flush(core.buffer) as flush:
            if batch := flush.take():
                reports = self._many_sync(core, batch, flush)
        self._tell("buffer.flushed_sync", began, messages=batch)
        return reports

    def flush_async(self) -> list[DeliveryHandle]:
        """Send all buffered messages, in order, without waiting for the broker.

        Returns:
            The handles, in the order of the messages.

        Raises:
            ProduceManyError: Some messages were refused, or not handed over and are in
                the buffer again. See `flush_sync` for this and other errors.

        Blocking:
            As `produce_many_async`.
        """
        core = self._core or self._unconfigured()
        core.check_usable()
        began = _concurrency.monotonic()
        handles: list[DeliveryHandle] = []
        with Flush(core.buffer) as flush:
            if batch := flush.take():
                handles = self._many_async(core, batch, flush)
        self._tell("buffer.flushed_async", began, messages=batch)
        return handles

    def flush(self, timeout: float | None = None) -> None:
        """Send all buffered messages, and wait for all messages that were sent before.

        It waits for all messages of this producer, from all greenlets, threads and
        variants, but not for messages that are sent meanwhile. The producer stays open.
        In a transaction block the messages are then stored, and visible to
        `read_committed` consumers after the commit.

        Failures of messages that were sent before are not raised here: their handles
        and `error.occurred` report them. Failures of buffered messages, which have no
        handles, are raised.

        Args:
            timeout: Seconds to wait for the delivery reports; `max_wait_timeout` if
                omitted.

        Raises:
            FlushTimeoutError: `count` messages have no delivery report yet. They may
                still be delivered.
            ProduceManyError: Some buffered messages were not sent or not delivered, as
                for `flush_sync`.
            IllegalWaitError: The caller is the hub, or a listener of this producer.
                Nothing was sent.
            ProducerClosedError: Nothing was sent.
            ProducerUsedInParentProcessError: Nothing was sent; see `reset`.

        Blocking:
            Lets other greenlets run where the thread has a hub, and blocks the thread
            elsewhere; for at most `timeout`, after the waits of `flush_async`.
        """
        core = self._core or self._unconfigured()
        timeout = self._max_wait_timeout if timeout is None else timeout
        _concurrency.check_timeout(timeout)
        core.check_usable()
        core.check_can_wait()
        failure: ProduceManyError | None = None
        try:
            handles = self.flush_async()
        except ProduceManyError as error:
            failure, handles = error, list(error.dispatched)
        core.wait_for_sent(timeout)
        if failure is not None:
            raise failure
        wait_reports(handles, 0.0, core.explain)

    # --- scopes ------------------------------------------------------------------

    def scope(self, timeout: float | None = None) -> DeliveryScope:
        """Return a block that waits at its end for the messages that were sent in it.

        `with producer.scope():` collects the messages that this greenlet or thread
        sends with this producer in the block, by any verb, and waits for these messages
        only. See docs/send/scopes.md.

        Args:
            timeout: Seconds to wait at the end of the block, for all messages together;
                `max_wait_timeout` if omitted.

        Raises:
            ValueError: The timeout is not a finite number of seconds.
            ProducerNotConfiguredError: The producer has no settings yet.
            ProducerClosedError: The producer is closed.
        """
        core = self._core or self._unconfigured()
        core.check_open()
        if timeout is None:
            timeout = core.settings.max_wait_timeout
        _concurrency.check_timeout(timeout)
        return DeliveryScope(core, timeout)

    # --- transactions ------------------------------------------------------------

    def transaction(self) -> Transaction[Self]:
        """Return a block whose messages become visible together, or not at all.

        `with producer.transaction() as tx:` begins a transaction. It is committed at
        the end of the block, also if the block is left by `return`, `break` or
        `continue`. Any exception rolls it back, and is raised. `tx.abort()` or `raise
        AbortTransaction` rolls it back without raising. A block inside another one of
        the same greenlet or thread joins that one. See docs/send/transactions.md.

        Raises:
            ProducerNotTransactionalError: There is no `transactional.id`.
            ProducerNotConfiguredError: The producer has no settings yet.
        """
        core = self._core or self._unconfigured()
        return Transaction(self, core.require_transactions(), self._max_wait_timeout)

    def run_in_transaction(
        self, function: Callable[[Transaction[Self]], _T]
    ) -> _T | None:
        """Call a function in a transaction.

        Args:
            function: Called with the transaction.

        Returns:
            The function's return value; None if it has aborted the transaction.

        Raises:
            ProducerNotTransactionalError: There is no `transactional.id`.
            TransactionError: As for entering and leaving a `Transaction`. Exceptions of
                the function are raised after the transaction was rolled back.

        Blocking:
            As entering and leaving a `Transaction`.
        """
        with self.transaction() as transaction:
            return function(transaction)
        return None

    @property
    def in_transaction(self) -> bool:
        """Whether the calling greenlet or thread has a transaction. Never blocks."""
        transactions = None if self._core is None else self._core.transactions
        return transactions is not None and transactions.held_by_me

    # --- looking -----------------------------------------------------------------

    @property
    def id(self) -> str | None:
        """The producer's name in events, logs and errors; None before `setup`."""
        return None if self._core is None else self._core.settings.id

    @property
    def status(self) -> Status:
        """The state of the producer.

        One of initial, configured, connected, disconnecting, disconnected, closing and
        closed.
        """
        return "initial" if self._core is None else self._core.status

    @property
    def current_variant(self) -> Producer:
        """In a middleware step the producer or variant that sends the message.

        Elsewhere the producer itself.
        """
        sender: Producer | None = self.middleware.current_sender()
        return self if sender is None else sender

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings by name, with secrets hidden; empty before `setup`. Read-only.

        `kafka` is librdkafka's configuration with greendrop's defaults. The changes of
        a variant are in its `max_wait_timeout` and `topic_config`.
        """
        core = self._core
        return MappingProxyType({} if core is None else core.settings.redacted())

    @property
    def topic_config(self) -> Mapping[str, str]:
        """The keys of librdkafka that this variant changes; empty if there are none."""
        return MappingProxyType({} if self._core is None else self._slot.topic_config)

    @property
    def max_wait_timeout(self) -> float | None:
        """Seconds that the sync verbs of this variant wait; None before `setup`."""
        return None if self._core is None else self._max_wait_timeout

    @property
    def idempotent(self) -> bool:
        """Whether `enable.idempotence` is on, as it is with a `transactional.id`."""
        return self._core is not None and self._core.settings.idempotent

    @property
    def transactional(self) -> bool:
        """Whether the producer has a `transactional.id`."""
        return self._core is not None and self._core.settings.transactional

    @property
    def disconnectable(self) -> bool:
        """Whether `disconnect` would start now. Never blocks.

        It would not while the producer is not connected, messages are buffered, a
        caller waits to send, or a transaction is open. Messages in flight don't prevent
        it: `disconnect` waits for them.
        """
        return self._core is not None and self._core.disconnect.is_possible()

    @property
    def in_flight(self) -> int:
        """Number of messages that were sent and have no outcome yet. Never connects.

        Without buffered messages. WaterDrop's name is `queue_size`.
        """
        return 0 if self._core is None else self._core.outstanding

    @property
    def polling(self) -> str | None:
        """The kind of poller: "fd" (in a hub), "thread", or None if unused."""
        client = None if self._core is None else self._slot.client
        return None if client is None else client.polling

    @property
    def queue_size(self) -> int:
        """Another name of `in_flight`."""
        return 0 if self._core is None else self._core.outstanding

    def partition_count(self, topic: str) -> int:
        """Return the number of partitions of a topic; -1 if it is unknown.

        A number is cached for 30 s. Then the brokers are asked again, and until the
        answer arrives the old number is used, for up to 5 minutes. -1 is cached for 1
        s, since the topic may be created at any time. The request may create the topic,
        if the brokers are configured so.

        Args:
            topic: The name of the topic.

        Raises:
            ValueError: The name is not valid for a topic.
            ProducerNotConfiguredError: The producer has no settings yet.
            ProducerClosedError: The producer is closed.
            ProducerUsedInParentProcessError: See `reset`.
            IllegalWaitError: The number is not cached, and the caller is the hub, or a
                listener of this producer, which must not wait.

        Blocking:
            Lets other greenlets run where the thread has a hub, and blocks the thread
            elsewhere; for at most about 5 s, and only without a cached number.
            Connects.
        """
        core = self._core or self._unconfigured()
        check_topic(topic)
        return core.partition_count(self._slot, topic)

    def __repr__(self) -> str:
        """Return id and state; never blocks or connects."""
        polling = f" polling={self.polling}" if self.polling else ""
        variants = f" topic_configs={count}" if (count := self._topic_configs) else ""
        transactions = None if self._core is None else self._core.transactions
        busy = " in_transaction" if transactions and transactions.in_use else ""
        count = 0 if self._core is None else len(self._core.buffer)
        buffered = f" buffered={count}" if count else ""
        return (
            f"<Producer id={self.id!r} {self.status}{polling}"
            f" queue_size={self.queue_size}{buffered}{variants}{busy}>"
        )

    @property
    def _topic_configs(self) -> int:
        return 0 if self._core is None else self._core.variants

    # --- ending ------------------------------------------------------------------

    def purge(self) -> None:
        """Drop all messages in flight and in the buffer; the producer stays open.

        The event `buffer.purged` has the buffered messages. The handles of the others
        fail with `MessagePurgedError`, whose text says whether a broker may have stored
        the message. A producer that is not connected has only its buffer to drop.

        Raises:
            ProducerUsedInParentProcessError: See `reset`.

        Blocking:
            Until the handles have failed: some milliseconds, 5 s at most. Lets other
            greenlets run. In a listener and in the hub itself it returns at once, and
            the handles fail soon after.
        """
        if self._core is not None:
            self._core.purge()

    def disconnect(self) -> bool:
        """Close the connections of a producer that is not needed for a while.

        The next message connects again; no message is lost or fails. A message that is
        sent while `disconnect` waits for deliveries cancels it.

        Returns:
            Whether the producer has disconnected. It has not, and stays connected, if
            messages are buffered, a caller waits to send, a message is sent meanwhile,
            or not all messages were delivered within `max_wait_timeout`; nor if it was
            not connected.

        Raises:
            ProducerUsedInParentProcessError: See `reset`.

        Blocking:
            Until all messages in flight are delivered, for at most `max_wait_timeout`.
            Lets other greenlets run. In a listener and in the hub itself it returns at
            once; True means that disconnecting goes on in the background.
        """
        return self._core is not None and self._core.disconnect.run()

    def close(self, timeout: float | None = None, *, force: bool = False) -> None:
        """Stop accepting messages, flush the buffer, await deliveries, and close.

        The producer always ends closed. Closing again, or closing an unused producer,
        does nothing; while another task closes the producer, it waits for that.

        Buffered messages that were not delivered can be read in `buffered` afterwards.

        Args:
            timeout: Seconds to wait for deliveries; `max_wait_timeout` if omitted. With
                `force` and no timeout there is no wait, and the buffer is not sent.
            force: Drop messages that are not delivered in time, and don't raise. Their
                handles fail with `MessagePurgedError`.

        Raises:
            MessagesAbandonedError: Some messages were not delivered: they failed, or
                were dropped at the end of the timeout. The producer is closed all the
                same. Failures that handles reported before `close` are not repeated.
                Not with `force`.

        Blocking:
            Lets other greenlets run. In a listener and in the hub itself it returns at
            once, and closing goes on in the background; losses are logged.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        if self._core is not None:
            self._core.shutdown.close(timeout, force=force)

    def reset(self) -> None:
        """Make a producer usable in a forked child, after use in the parent.

        The parent keeps its client and its messages. Does nothing in a process that may
        use the producer anyway. A closed producer stays closed.

        Raises:
            ConfigurationInvalidError: Another open producer of the child has the same
                `id` or `transactional.id`. This one is not changed.
        """
        if self._core is not None:
            self._core.reset()

    def __enter__(self) -> Self:
        """Return the producer itself.

        Raises:
            ProducerClosedError: The producer was closed before.
        """
        if self._core is not None:
            self._core.check_open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        """Close the producer; an exception from the block is not replaced.

        Raises:
            MessagesAbandonedError: As for `close`; also if the producer was closed
                before and `buffered` has messages.

        Blocking:
            As `close`. Interrupts (Ctrl-C, a `gevent.Timeout`, a killed greenlet) are
            delayed by at most `exit_timeout`.
        """
        timeout = None
        if error is not None and not isinstance(error, Exception) and self._core:
            settings = self._core.settings
            timeout = min(settings.exit_timeout, settings.max_wait_timeout)
        loss: MessagesAbandonedError | None = None
        try:
            self.close(timeout)
        except MessagesAbandonedError as abandoned:
            loss = abandoned
        unsent = self.buffered if self.status == "closed" else ()
        if unsent and loss is None:  # closed before, or by another task
            text = _wording.count_were(len(unsent), "buffered message")
            text = f"{text} not delivered, and can be read in `buffered`"
            text = f"producer {self.id!r} is closed; {text}"
            loss = MessagesAbandonedError(text, count=len(unsent), buffered=unsent)
        if loss is not None and error is None:
            raise loss
        if loss is not None:
            _log.write(ERROR, "producer.messages_abandoned", error=str(loss))

    if not TYPE_CHECKING:  # else every attribute would exist

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - raises
            """Raise AttributeError, with a hint for names of other clients."""
            raise attribute_error(self, name)

    # --- emitting ----------------------------------------------------------------

    def _unconfigured(self) -> Core:
        raise ProducerNotConfiguredError("call setup(kafka={...}) first")

    def _emit_process(self, name: EventName, **facts: object) -> None:
        facts = {"producer": self, "producer_id": self.id, **facts}
        events.monitor.emit(name, facts)

    def _tell(self, name: EventName, began: float, **facts: object) -> None:
        time = _concurrency.monotonic() - began
        self.monitor.emit(name, {"producer_id": self.id, **facts, "time": time})

    def _emit_batch_error(
        self, kind: str, error: ProduceManyError, batch: list[Message]
    ) -> None:
        self._emit_error(kind, error, messages=batch, dispatched=error.dispatched)

    def _emit_error(self, kind: str, error: ProduceError, **facts: object) -> None:
        if self.monitor.listens("error.occurred"):
            payload = {"producer_id": self.id, "error": error, "type": kind, **facts}
            self.monitor.emit("error.occurred", payload)


def _release(reference: weakref.ref[Core]) -> None:
    core = reference()
    if core is not None:
        core.shutdown.release()
