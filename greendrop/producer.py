"""The public verbs.

What a call means and what it promises; how it is done is `core`'s business. Each
verb reads the same: build and check the message, dispatch it, wait if it is a sync
verb, tell.
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
from greendrop._hints import attribute_error, call_error, hinted
from greendrop._logging.log import ERROR, Log
from greendrop._producer.batches import validate_all, wait_reports
from greendrop._producer.buffer import BufferedMessage, Flush
from greendrop._producer.core import Core
from greendrop.config.settings import build_settings
from greendrop.errors import (
    SENDING_ERRORS,
    MessagesAbandonedError,
    ProduceManyError,
    ProducerAlreadyConfiguredError,
    ProducerNotConfiguredError,
)
from greendrop.events import Monitor
from greendrop.message import (
    Message,
    all_validated,
    as_message,
    as_tombstone,
    check_topic,
    validate,
)
from greendrop.middleware import Middleware
from greendrop.scope import DeliveryScope
from greendrop.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType

    from typing_extensions import Never, Self, Unpack

    from greendrop._connections.connections import Status
    from greendrop.config.settings import Settings
    from greendrop.config.types import ProducerSettings
    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.errors import ProduceError
    from greendrop.interceptors import Interceptor
    from greendrop.message import Headers

_T = TypeVar("_T")

_log = Log("greendrop")

# Making a NamedTuple by its own constructor costs twice as much.
_new_message = tuple.__new__


class Producer(_pickling.PerProcess):
    """Sends messages to Kafka, and knows what became of each.

    One producer serves all greenlets and threads of a process. Constructing it opens
    nothing, so it may be made at module level and before a fork; it connects when the
    first message is sent. Use it as a context manager, or call `close`.

    Args:
        kafka: librdkafka's configuration, by its own keys and in its own units.
        **settings: See docs/reference/settings.md. Durations are seconds.

    Raises:
        ConfigurationInvalidError: Names every bad setting.
    """

    def __init__(
        self,
        kafka: Mapping[str, object] | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        #: Subscribe to events here, before the first message or at any time.
        self.monitor = Monitor()
        #: Steps that each message goes through before it is checked.
        self.middleware = Middleware()
        self._core: Core | None = None
        self._slot: ClientSlot  # there when `core` is
        self._max_wait_timeout: float
        # What a variant was made from: gone, it would close what they share.
        self._origin: Producer | None = None
        self._emit_process("producer.created")
        if kafka is not None or settings:
            self.setup(kafka, **settings)

    def setup(
        self,
        kafka: Mapping[str, object] | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        """Configure a producer that was made without settings; once.

        Raises:
            ProducerAlreadyConfiguredError: It was configured before.
            ConfigurationInvalidError: Names every bad setting; it may be tried again.
        """
        if self._core is not None:
            text = f"producer {self.id!r} is configured already"
            raise ProducerAlreadyConfiguredError(text)
        core = Core(build_settings(kafka, settings), self.monitor)
        # Weakly: the core leads to the listeners, and these often to the producer.
        weakref.finalize(self, _release, weakref.ref(core)).atexit = False
        self._slot = core.main
        self._max_wait_timeout = core.settings.max_wait_timeout
        self._core = core
        if events.monitor.listens("producer.configured"):
            config = core.settings.redacted()
            self._emit_process("producer.configured", config=config)

    def variant(
        self,
        *,
        max_wait_timeout: float | None = None,
        topic_config: Mapping[str, object] | None = None,
    ) -> Self:
        """Give a producer that shares everything with this one, but for two things.

        Cheap: make one where you need it, as with structlog's `bind`, or keep it. A
        variant of a variant keeps what it doesn't change, key by key. Events, state
        and `close` are those of the producer; that a variant is gone closes nothing.

        Args:
            max_wait_timeout: Seconds that its sync verbs wait.
            topic_config: Keys of librdkafka that hold for a topic: acks,
                request.timeout.ms, message.timeout.ms, partitioner, compression.codec,
                compression.level. Each distinct one gets a connection of its own, at
                first use; there may be 16. The order of messages is kept within one.

        Raises:
            VariantInvalidError: Names every bad key. Nothing was opened.
            ProducerNotConfiguredError, ProducerClosedError: Not yet, or no longer.

        Blocking:
            A `topic_config` that is used for the first time is tried out: one to three
            milliseconds.
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
        """Have all that is sent from now on pass an interceptor: for tracing.

        It sees messages last, after middleware and checks, and those of all variants.
        Each costs what the interceptor takes; without one nothing is paid. A second one
        sees what the first was given.

        Args:
            build: Makes the interceptor, given the producer's settings.

        Raises:
            ProducerNotConfiguredError: See `setup`.
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
        **unknown: Never,
    ) -> DeliveryReport:
        """Send one message and wait until the broker has it.

        The fields are those of `Message`.

        Raises:
            MessageInvalidError: Names every bad field. Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            QueueFullError: No room within `wait_timeout_on_queue_full`. Not sent.
            OAuthTokenError: Not sent: there was no token to log in with.
            DeliveryError: Not delivered, for good.
            DeliveryTimeoutError: No verdict within `max_wait_timeout`. It may still be
                delivered.
            ProducerClosedError: Not sent.
            ProducerUsedInParentProcessError: Not sent; see `reset`.
            IllegalWaitError: In the hub itself or in a listener of this producer,
                where the wait could never end. The message was queued, unless the
                text says that it was not: see `produce_async`.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread; for `max_wait_timeout` seconds at most, after what `produce_async`
            waits for.
        """
        if positional or unknown:
            raise call_error("produce_sync", positional, unknown, Message._fields)
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
        if self.middleware.steps:
            message = self.middleware.run(message, self)
        message = validate(message, core.size_limit)
        told = "message.produced_sync" in self.monitor.listeners
        began = _concurrency.monotonic() if told else 0.0
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
        if told:
            self._tell("message.produced_sync", began, message=message)
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
        **unknown: Never,
    ) -> DeliveryHandle:
        """Send one message without waiting for the broker.

        The fields are those of `Message`. What becomes of it is told by the handle,
        and by the events `message.acknowledged` and `error.occurred`.

        Raises:
            MessageInvalidError: Names every bad field. Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            QueueFullError: No room within `wait_timeout_on_queue_full`, or now, where
                nobody may wait. Not sent.
            OAuthTokenError: Not sent: there was no token to log in with.
            DeliveryError: librdkafka refused the message at once.
            TransactionError: A transactional producer makes a transaction of it, and
                that failed; see `transaction`.
            ProducerClosedError: Not sent.
            ProducerUsedInParentProcessError: Not sent; see `reset`.
            IllegalWaitError: Not sent: it has a `partition_key`, how many partitions
                the topic has is not known yet, and in the hub itself or in a listener
                of this producer nobody may wait for that; nor for a transaction.

        Blocking:
            While the queue is full, for `wait_timeout_on_queue_full` at most; with a
            `partition_key` also as `partition_count`; a transactional producer outside
            of a transaction as long as that takes. While it connects, if there is no
            OAuth token yet, for half a minute at most. Lets other greenlets run where
            the thread has a hub, else blocks the thread. Never in a running asyncio
            event loop, where it raises instead; the handle can be awaited there.
        """
        if positional or unknown:
            raise call_error("produce_async", positional, unknown, Message._fields)
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
        if self.middleware.steps:
            message = self.middleware.run(message, self)
        message = validate(message, core.size_limit)
        told = "message.produced_async" in self.monitor.listeners
        began = _concurrency.monotonic() if told else 0.0
        try:
            handle = core.send(
                self._slot, message, "produce_async", self._max_wait_timeout
            )
        except SENDING_ERRORS as error:
            self._emit_error("message.produce_async", error, message=message)
            raise
        if told:
            self._tell("message.produced_async", began, message=message)
        return handle

    # --- batches -----------------------------------------------------------------

    def produce_many_sync(
        self, messages: Iterable[Message | Mapping[str, Any]]
    ) -> list[DeliveryReport]:
        """Send a batch and wait until the broker has all of it.

        Args:
            messages: `Message`s, or mappings with its fields. All are checked before
                the first is sent.

        Returns:
            The reports, in the order of the messages.

        Raises:
            MessageInvalidError: Names every bad field of the first bad messages, as
                `messages[3].topic`. Nothing was sent.
            MiddlewareError: A step of `middleware` failed. Nothing was sent.
            ProduceManyError: Some were not sent or not delivered; `dispatched` holds
                the handles of those that were queued. All of these are final, unless
                the cause is a `DeliveryTimeoutError`.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was sent.
            IllegalWaitError: As for `produce_sync`. Of a batch with `partition_key`s
                perhaps only the first messages were queued.

        Blocking:
            As `produce_sync`, with one `max_wait_timeout` for the whole batch.
        """
        core = self._core or self._unconfigured()
        return self._many_sync(core, self._checked_batch(core, messages))

    def produce_many_async(
        self, messages: Iterable[Message | Mapping[str, Any]]
    ) -> list[DeliveryHandle]:
        """Send a batch without waiting for the broker.

        Args:
            messages: As for `produce_many_sync`.

        Returns:
            The handles, in the order of the messages.

        Raises:
            MessageInvalidError, MiddlewareError: As for `produce_many_sync`. Nothing
                was sent.
            ProduceManyError: A message was not queued, nor were those after it;
                `dispatched` holds the handles of those before.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was sent.
            IllegalWaitError: As for `produce_async`. Nothing was sent; if something
                was before, that is a `ProduceManyError`.

        Blocking:
            As `produce_async`, for each message anew, but only once for each topic's
            number of partitions. A long batch lets other greenlets run in between.
        """
        core = self._core or self._unconfigured()
        return self._many_async(core, self._checked_batch(core, messages))

    def _checked_batch(
        self, core: Core, messages: Iterable[Message | Mapping[str, Any]]
    ) -> list[Message]:
        limit = core.size_limit
        if self.middleware.steps:
            return validate_all(messages, lambda item: self._prepare(as_message(item)))
        return validate_all(
            messages,
            lambda item: validate(as_message(item), limit),
            lambda items: all_validated(items, limit),
        )

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
        **unknown: Never,
    ) -> DeliveryReport:
        """Send a message without payload, which deletes its key in a compacted topic.

        Both key and partition are required: one that went to another partition than
        the messages with its key would delete nothing.

        Args:
            topic: As the others one of the fields of `Message`.
            key: Not empty.
            partition: 0 or more.
            headers: As in `Message`.
            timestamp: As in `Message`.
            label: As in `Message`.

        Raises:
            MessageInvalidError: Names every bad field. Nothing was sent.
            ProduceError: And all else that `produce_sync` raises.

        Blocking:
            As `produce_sync`.
        """
        if positional or unknown:
            raise call_error("tombstone_sync", positional, unknown, Message._fields)
        fields = (topic, None, key, headers, partition, None, timestamp, label)
        message = self._tombstone(_new_message(Message, fields))
        return self.produce_sync(**message._asdict())

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
        **unknown: Never,
    ) -> DeliveryHandle:
        """Send a tombstone without waiting for the broker.

        The fields are those of `tombstone_sync`.

        Raises:
            MessageInvalidError: Names every bad field. Nothing was sent.
            ProduceError: And all else that `produce_async` raises.

        Blocking:
            As `produce_async`.
        """
        if positional or unknown:
            raise call_error("tombstone_async", positional, unknown, Message._fields)
        fields = (topic, None, key, headers, partition, None, timestamp, label)
        message = self._tombstone(_new_message(Message, fields))
        return self.produce_async(**message._asdict())

    def tombstone_many_sync(
        self, messages: Iterable[Message | Mapping[str, Any]]
    ) -> list[DeliveryReport]:
        """Send a batch of tombstones and wait until the broker has all of them.

        Args:
            messages: As for `produce_many_sync`. A payload is left out.

        Raises:
            MessageInvalidError: As for `produce_many_sync`; also for each message
                without key or partition. Nothing was sent.
            ProduceManyError: And all else that `produce_many_sync` raises.

        Blocking:
            As `produce_many_sync`.
        """
        return self.produce_many_sync(validate_all(messages, self._tombstone))

    def tombstone_many_async(
        self, messages: Iterable[Message | Mapping[str, Any]]
    ) -> list[DeliveryHandle]:
        """Send a batch of tombstones without waiting for the broker.

        Args:
            messages: As for `tombstone_many_sync`.

        Raises:
            MessageInvalidError: As for `tombstone_many_sync`. Nothing was sent.
            ProduceManyError: And all else that `produce_many_async` raises.

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
        **unknown: Never,
    ) -> None:
        """Keep one message until the next flush. Nothing is sent or connected.

        The fields are those of `Message`. The message passes the middleware and all
        checks now, so that a mistake is raised to the caller that made it.

        Raises:
            MessageInvalidError: Names every bad field. It was not kept.
            MiddlewareError: A step of `middleware` failed. It was not kept.
            ProducerClosedError, ProducerUsedInParentProcessError: It was not kept.
        """
        if positional or unknown:
            raise call_error("buffer", positional, unknown, Message._fields)
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

    def buffer_many(self, messages: Iterable[Message | Mapping[str, Any]]) -> None:
        """Keep several messages until the next flush, next to each other.

        All pass the middleware and the checks now; if one fails, none is kept.

        Args:
            messages: As for `produce_many_sync`.

        Raises:
            MessageInvalidError: Names every bad field of the first bad messages, as
                `messages[3].topic`. None was kept.
            MiddlewareError: A step of `middleware` failed. None was kept.
            ProducerClosedError, ProducerUsedInParentProcessError: None was kept.

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
        """The messages that wait for a flush, as they were buffered. Never blocks.

        Messages that are being flushed are not among them. On a closed producer: the
        messages that `close` could not deliver.
        """
        return () if self._core is None else self._core.buffer.messages()

    def flush_sync(self) -> list[DeliveryReport]:
        """Send all that is buffered, in order, and wait until the broker has it.

        A message that librdkafka refuses for good (too large, or to a partition that
        does not exist) is reported, as an event and in the raised error, and leaves the
        buffer; the others are sent. However the flush fails, the messages that were not
        handed over are in the buffer again, at the front and in order; the error's text
        says how many. What was handed over is not put back: its handle has the outcome.

        Returns:
            The reports, in the order of the messages.

        Raises:
            ProduceManyError: Some were not sent or not delivered; `dispatched` holds
                the handles of those that were queued or refused for good. All of these
                are final, unless the cause is a `DeliveryTimeoutError`.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was sent.

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
        """Send all that is buffered, in order, without waiting for the broker.

        Returns:
            The handles, in the order of the messages.

        Raises:
            ProduceManyError: Some were refused, or not handed over, which are in the
                buffer again. See `flush_sync` for this and the others.

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
        """Send all that is buffered, and wait for all messages that were sent before.

        For all messages of this producer, by whichever greenlet, thread or variant they
        were sent. Messages that others send meanwhile are not waited for. The producer
        stays open. In the block of a transaction the messages are then stored, and
        visible to `read_committed` consumers after the commit.

        Messages that were sent before and were not delivered are not raised here: their
        handles and `error.occurred` report them. Buffered messages have no other
        handles, so they are.

        Args:
            timeout: Seconds to wait for the delivery reports. None means
                `max_wait_timeout`.

        Raises:
            FlushTimeoutError: `count` messages have no delivery report yet. They may
                still be delivered.
            ProduceManyError: Some buffered messages were not sent or not delivered, as
                for `flush_sync`.
            IllegalWaitError: In the hub itself, or in a listener of this producer.
                Nothing was sent.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was sent.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the thread;
            for `timeout` seconds at most, after what `flush_async` waits for.
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
        """Make a block that ends when the messages sent in it are delivered.

        `with producer.scope():` collects what this greenlet or thread sends through
        this producer in the block, by any verb, and waits for it at the end: for these
        messages only, not for those of others. See docs/send/scopes.md.

        Args:
            timeout: Seconds to wait at the end of the block, for all messages
                together. None means `max_wait_timeout`.

        Raises:
            ValueError: The timeout is no finite number of seconds.
            ProducerNotConfiguredError: See `setup`.
            ProducerClosedError: Nothing can be sent in the block.
        """
        core = self._core or self._unconfigured()
        core.check_open()
        if timeout is None:
            timeout = core.settings.max_wait_timeout
        _concurrency.check_timeout(timeout)
        return DeliveryScope(core.scopes, timeout, core.check_can_wait)

    # --- transactions ------------------------------------------------------------

    def transaction(self) -> Transaction[Self]:
        """Make a block whose messages are all visible in the end, or none.

        `with producer.transaction() as tx:` begins a transaction. It is committed at
        the end of the block, also if that is left by `return`, `break` or `continue`;
        any exception rolls it back and goes on. `tx.abort()`, or an `AbortTransaction`,
        rolls it back and ends there. Inside of another block of the same greenlet or
        thread it joins that one. See docs/send/transactions.md.

        Raises:
            ProducerNotTransactionalError: There is no `transactional.id`.
            ProducerNotConfiguredError: See `setup`.
        """
        core = self._core or self._unconfigured()
        return Transaction(
            self, core.require_transactions(), self._max_wait_timeout, self._tell
        )

    def run_in_transaction(
        self, function: Callable[[Transaction[Self]], _T]
    ) -> _T | None:
        """Call a function in a transaction.

        Args:
            function: Is given the transaction, as `with` gives it.

        Returns:
            What it returns, or None if it has aborted the transaction.

        Raises:
            ProducerNotTransactionalError: There is no `transactional.id`.
            TransactionError: And all else that `Transaction` raises at its begin and
                end; and what the function raises, after it was rolled back.

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
        """initial, configured, connected, disconnecting, disconnected, closing, closed.

        One of them.
        """
        return "initial" if self._core is None else self._core.status

    @property
    def current_variant(self) -> Producer:
        """In a step of the middleware: the producer, or variant, that is sending.

        Elsewhere the producer itself.
        """
        sender: Producer | None = self.middleware.current_sender()
        return self if sender is None else sender

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings by name, secrets hidden; empty before `setup`. Read-only.

        `kafka` is librdkafka's configuration, with the defaults of greendrop. What a
        variant changes is in its `max_wait_timeout` and `topic_config`.
        """
        core = self._core
        return MappingProxyType({} if core is None else core.settings.redacted())

    @property
    def topic_config(self) -> Mapping[str, str]:
        """The keys of librdkafka that this variant changes; empty if it is none."""
        return MappingProxyType({} if self._core is None else self._slot.topic_config)

    @property
    def max_wait_timeout(self) -> float | None:
        """Seconds that sync verbs wait, of this variant; None before `setup`."""
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
        """Whether `disconnect` would begin now. Never blocks.

        Not while the producer is not connected, messages are buffered, a caller waits
        to send, or a transaction is open. Messages in flight don't keep it from
        disconnecting: it waits for them.
        """
        return self._core is not None and self._core.disconnectable

    @property
    def in_flight(self) -> int:
        """Messages that were taken and have no outcome yet. Never connects.

        Buffered messages are not among them. WaterDrop calls it `queue_size`.
        """
        return 0 if self._core is None else self._core.outstanding

    @property
    def polling(self) -> str | None:
        """How reports are served: "fd" (in the hub), "thread", or None if unused."""
        client = None if self._core is None else self._slot.client
        return None if client is None else client.polling

    @property
    def queue_size(self) -> int:
        """Another name of `in_flight`."""
        return 0 if self._core is None else self._core.outstanding

    def partition_count(self, topic: str) -> int:
        """Tell how many partitions a topic has; -1 if that is not known.

        What the brokers say holds for 30 s. After that it is asked for anew, and until
        the answer has come the last one is told, for 5 minutes. -1 holds for 1 s: the
        topic may be created at any time. Asking may create it, where brokers do that.

        Args:
            topic: Its name.

        Raises:
            ValueError: That is no legal name of a topic.
            ProducerNotConfiguredError, ProducerClosedError: No longer, or not yet.
            ProducerUsedInParentProcessError: See `reset`.
            IllegalWaitError: It is not known yet, and the caller can't wait: in the hub
                itself or in a listener of this producer. What is known is told there
                too.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread; for some 5 s at most, and only while nothing is known. Connects.
        """
        core = self._core or self._unconfigured()
        check_topic(topic)
        return core.partition_count(self._slot, topic)

    def __repr__(self) -> str:
        """Tell id and state; never blocks or connects."""
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
        """Drop all that is on its way; the producer goes on taking messages.

        What is buffered, too: the event `buffer.purged` has these messages. The handles
        of the others fail with `MessagePurgedError`, whose text says whether a
        broker may have stored the message. A producer that is not connected has only
        its buffer to drop.

        Raises:
            ProducerUsedInParentProcessError: See `reset`.

        Blocking:
            Until the handles have their verdict, some milliseconds, 5 s at most. Lets
            other greenlets run. In a listener, or in the hub itself, where nobody may
            wait, it returns at once and they have it soon.
        """
        if self._core is not None:
            self._core.purge()

    def disconnect(self) -> bool:
        """Close the connections of a producer that is not needed for a while.

        The next message connects anew; no message is lost, and none fails. One that is
        sent while this waits for deliveries calls it off.

        Returns:
            Whether it has disconnected. Not when it is not connected, when messages are
            buffered, when somebody waits to send (for room, or for the number of
            partitions), when a message is sent meanwhile, or when not all were
            delivered within `max_wait_timeout`. It stays connected then.

        Raises:
            ProducerUsedInParentProcessError: See `reset`.

        Blocking:
            Until all that is on its way is delivered, for `max_wait_timeout` seconds at
            most. Lets other greenlets run. In a listener, or in the hub itself, where
            nobody may wait, it returns at once, True if disconnecting goes on by
            itself.
        """
        return self._core is not None and self._core.disconnect()

    def close(self, timeout: float | None = None, *, force: bool = False) -> None:
        """Stop taking messages, send what is buffered, await the deliveries, and end.

        It always ends closed. Closing again, or closing what was never used, does
        nothing; while another task closes the producer, it waits for that.

        Buffered messages that were not delivered, for whatever reason, can be read in
        `buffered` afterwards.

        Args:
            timeout: Seconds to wait for deliveries. None means `max_wait_timeout`;
                with `force`, no wait at all: what is buffered is not sent then.
            force: Drop what isn't delivered in time, and don't raise. The handles
                fail with `MessagePurgedError`.

        Raises:
            MessagesAbandonedError: Some messages were not delivered: they failed, or
                were dropped since the time was over. The producer is closed all the
                same. Failures that handles reported before `close` began are not
                repeated. Not with `force`.

        Blocking:
            Lets other greenlets run. In a listener, or in the hub itself, where nobody
            may wait, it returns at once and closing goes on by itself; what it could
            not deliver is logged.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        if self._core is not None:
            self._core.close(timeout, force=force)

    def reset(self) -> None:
        """Make a producer usable in a forked child, after use in the parent.

        The parent's client and its messages stay the parent's. Does nothing in a
        process that may use the producer anyway; a closed producer stays closed.

        Raises:
            ConfigurationInvalidError: Another producer was made in the child with the
                same `id` or `transactional.id`, and is not closed. This one stays as
                it was.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; an error that is on its way is not hidden by a second one.

        Raises:
            MessagesAbandonedError: As `close`; also if the producer was closed before
                and `buffered` has messages.

        Blocking:
            As `close`. What interrupts (Ctrl-C, a `gevent.Timeout`, the end of a
            greenlet) is held up for `exit_timeout` at most.
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
            """Raise for a missing attribute, with ours if another client has it."""
            raise attribute_error(self, name)

    # --- telling -----------------------------------------------------------------

    def _unconfigured(self) -> Core:
        raise ProducerNotConfiguredError("call setup(kafka={...}) first")

    def _emit_process(self, name: str, **facts: object) -> None:
        facts = {"producer": self, "producer_id": self.id, **facts}
        events.monitor.emit(name, facts)

    def _tell(self, name: str, began: float, **facts: object) -> None:
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
        core.release()
