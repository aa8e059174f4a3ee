"""Has one librdkafka producer served, for as long as it lives.

Which task does that, a hub's or a thread, what that does at each turn, where messages
are gathered meanwhile, and how one waits for it. Knows the tasks (`_serving`), the
producer (`_native`) and who tells what came (`_settling`). How messages get to
librdkafka is passed in: `_client` knows that.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

from greendrop import _process, _threads, _waiting
from greendrop._gather import Gatherer
from greendrop._native import Native
from greendrop._serving import HubTask, LeadWaiter, ThreadTask
from greendrop._settling import Settler
from greendrop._stalls import Alarm
from greendrop.delivery import ReportQueue
from greendrop.errors import IllegalWaitError, ProducerUsedInParentProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greendrop._gather import HandOver
    from greendrop._outstanding import Outstanding
    from greendrop._serving import Pulse
    from greendrop.config import Settings
    from greendrop.events import Monitor

_Wire = TypeVar("_Wire")

#: One in so many messages that a thread task serves has a look whether there is a hub
#: by now that could.
_ATTEND_EVERY = 16


class Attendant(Generic[_Wire]):
    """Sees to it that somebody serves, from the first use on, as well as can be.

    Args:
        settings: What the producer is built from.
        monitor: Who is told what happens.
        mark: `mark[0]` is false in a process forked from the one that built it.
        outstanding: Counts; told of each verdict.
        pulse: What the serving task does beside.
        hand_over: Gives gathered messages to librdkafka.
        give_all: Does so when their gatherer is no more; may wait.
        may_gather: Whether messages may be gathered, from the next attachment on.
        on_lost: Told after a turn in which reports may have been lost.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    __slots__ = (
        "_attaching",
        "_ending",
        "_give_all",
        "_hand_over",
        "_mark",
        "_may_gather",
        "_on_lost",
        "_outstanding",
        "_pulse",
        "_serving_threads",
        "_settings",
        "_settled_elsewhere",
        "_tellers",
        "gather",
        "native",
        "reports",
        "settler",
        "task",
    )

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        mark: _process.Mark,
        outstanding: Outstanding,
        *,
        pulse: Pulse,
        hand_over: HandOver[_Wire],
        give_all: Callable[[list[_Wire]], None],
        may_gather: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._mark = mark
        self._outstanding = outstanding
        self._pulse = pulse
        self._hand_over = hand_over
        self._give_all = give_all
        self._may_gather = may_gather
        self._on_lost = on_lost
        statistics = (
            monitor.listens("statistics.emitted")
            and int(settings.kafka["statistics.interval.ms"]) > 0
        )
        monitor.freeze_statistics(not statistics)
        #: Handles that were filled and are not settled yet.
        self.reports = ReportQueue(self, self._on_limit)
        #: What is served.
        self.native = Native(settings, self.reports, statistics=statistics)
        #: Tells what came.
        self.settler = Settler(
            reports=self.reports,
            notices=self.native.notices,
            pending=outstanding.pending,
            settings=settings,
            monitor=monitor,
            verdicts=self.native.verdicts,
            on_settled=self._on_settled,
            pause=self._pause,
        )
        self._settled_elsewhere = 0
        self._attaching = _threads.new_lock()
        # No new task: one that starts after the last was stopped would go on for ever.
        self._ending = False
        # Threads without a hub that are serving: the task's, or those that wait.
        self._serving_threads: set[int] = set()
        # Other tasks whose listeners must not wait for it.
        self._tellers: set[object] = set()
        #: Who serves; None before the first use.
        self.task: HubTask | ThreadTask | None = None
        #: Where a hub's messages are gathered, if a hub serves.
        self.gather: Gatherer[_Wire] | None = None

    # --- who serves --------------------------------------------------------------

    def attend(self) -> None:
        """See to it that somebody serves, as well as can be.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        if not self._mark[0]:
            text = "this producer was used before the fork; call reset() in the child"
            raise ProducerUsedInParentProcessError(text)
        task = self.task
        hub = _waiting.current_hub() if self.native.signals else None
        if task is not None and task.alive and (task.polling == "fd" or hub is None):
            return
        with self._attaching:
            if self._ending or task is not self.task:
                return  # another thread was quicker
            gather, self.gather = self.gather, None
            orphans = gather.take() if gather is not None else []
            if task is not None:
                task.stop()
            if hub is None:
                self.task = ThreadTask(
                    self._turn, self.native.interrupt_poll, self._pulse
                )
            else:
                self.task = HubTask(
                    hub,
                    self.native.signal,
                    self._turn,
                    self._count_outstanding,
                    pulse=self._pulse,
                    alarm=Alarm(self._settings.stall_alarm, self.native.note_stall),
                )
                if self._may_gather():
                    self.gather = Gatherer(hub, self._hand_over)
        try:
            self._give_all(orphans)
        except BaseException:
            # A signal handler raised: the messages that are left have no other way.
            if orphans:
                _waiting.start(lambda: self._give_all(orphans))
            raise

    def gatherer(self) -> Gatherer[_Wire] | None:
        """Give that of the caller's hub, if messages are gathered there.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        task = self.task
        if (
            isinstance(task, ThreadTask)
            and task.alive
            and len(self._outstanding.pending) % _ATTEND_EVERY
        ):
            return None  # looking for a better one takes as long as sending
        self.attend()
        gather = self.gather
        return gather if gather is not None and gather.is_here() else None

    def guard(self) -> None:
        """Have what librdkafka was just given looked after."""
        if self.task is not None:
            self.task.guard()

    def look_after(self) -> None:
        """See to it that somebody serves; for one who waits for long.

        A hub whose thread stands still in a native call serves nobody: a waiting thread
        then does it itself.
        """
        self.attend()
        task = self.task
        if isinstance(task, HubTask) and _waiting.current_hub() is None:
            self._turn(0)

    def stop(self, seconds: float) -> bool:
        """End the task, not from within, and have no other; False if it goes on.

        Blocking:
            Until it has ended. Lets other greenlets run.
        """
        with self._attaching:
            self._ending = True
            task = self.task
            if task is not None:
                task.stop()
        return task is None or task.join(seconds)

    # --- waiting for it ----------------------------------------------------------

    def waiter(self, done: Callable[[], bool] | None = None) -> _waiting.Waiter:
        """Make a waiter for the caller, who is going to wait for what is served.

        Args:
            done: Whether that is there what it waits for. A thread then polls for it.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub
                itself or the serving task (in a listener).
        """
        # The task first: of what is looked at later another thread may have made a new
        # one, and that gatherer is not of our hub.
        task, gather = self.task, self.gather
        if (
            isinstance(task, HubTask)
            and gather is not None
            and gather.current_hub() is gather.hub
            and not gather.hub.dead
            and not self._tellers
        ):
            # The common case, spelled out for speed as in `Client.send`.
            waiter = _waiting.waiter_in(gather.hub, task.room)
            if waiter.greenlet is not task.greenlet:
                return waiter
        else:
            self.attend()
        if self.in_serving_task():
            text = (
                "can't wait in a listener of the same producer: the task that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        task = self.task
        if (
            isinstance(task, ThreadTask)
            and (done or task.threadless)
            and _waiting.current_hub() is None
            # Stopped while it polls, it would keep all others from polling.
            and not _process.signals_may_stop_threads()
        ):
            return LeadWaiter(task.lead, done)
        return _waiting.new_waiter()

    def in_serving_task(self) -> bool:
        """Tell whether the caller is a listener that must not wait for it."""
        task = self.task
        return (
            (task is not None and task.is_current())
            or _threads.get_ident() in self._serving_threads
            or (bool(self._tellers) and _waiting.current_task() in self._tellers)
        )

    @contextlib.contextmanager
    def none_waits(self) -> Iterator[None]:
        """Treat what the caller tells listeners as what the serving task tells.

        For one who does afterwards what these would wait for.
        """
        me = _waiting.current_task()
        self._tellers.add(me)
        try:
            yield
        finally:
            self._tellers.discard(me)

    def last_broker_error(self) -> str | None:
        """Tell what librdkafka last complained of, since the last good report."""
        return self.native.verdicts.last_error

    # --- one turn ----------------------------------------------------------------

    def _turn(self, seconds: float) -> BaseException | None:
        if not self._mark[0]:
            # The copy of the task that a forked child has.
            if self.task is not None:
                self.task.stop()
            return None
        # A signal handler may run inside the poll, a listener after it: neither may
        # wait for this thread. (In a hub the task's greenlet tells that.)
        me = _threads.get_ident() if _waiting.current_hub() is None else 0
        self._serving_threads.add(me)
        try:
            interrupt = self.native.poll(seconds)
            try:
                self.settler.settle()
                if self.native.interrupted:
                    self._on_lost()
            except BaseException as error:  # noqa: BLE001
                self.native.interrupted = True
                interrupt = error
        finally:
            self._serving_threads.discard(me)
        return interrupt

    def _count_outstanding(self) -> int:
        # What a forked child has inherited is the parent's to look after.
        return self._outstanding.count if self._mark[0] else 0

    def _on_limit(self) -> None:
        self.native.on_limit()

    def _on_settled(self, count: int, latency: float) -> None:
        if latency >= 0:
            self.native.verdicts.all_is_well()
        gather = self.gather
        if gather is not None and not gather.is_here():
            self._settled_elsewhere += count  # told when its own thread is at it
        elif gather is not None:
            gather.reported(count + self._settled_elsewhere, latency)
            self._settled_elsewhere = 0
        self._outstanding.settle(count)
        if self.task is not None and not self._outstanding.pending:
            self.task.release()

    def _pause(self) -> None:
        if self.task is not None and self.task.is_current():
            self.task.pause()
