"""A child of the sweep: interrupts one verb at one place after the other.

    python -m tests.sweep.child WORLD KIND VERB ACTION [START [STEP]]

Prints a line of JSON for each point that it begins, and for each broken rule.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if sys.argv[1] == "patched":
    from gevent import monkey

    monkey.patch_all()
elif sys.argv[1] == "hub":
    import gevent

    gevent.get_hub()

from greendrop import GreendropError
from greendrop._client import client as client_module
from greendrop._client import pollers
from greendrop.testing import MockCluster
from tests.resources import Open
from tests.sweep import verbs
from tests.sweep.verbs import PATIENCE, TOPIC, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

# These limits are for a machine with ten times as much work as it can do. What breaks a
# rule doesn't pass by waiting, and a standstill lasts for `PATIENCE`.
#: Seconds until a verb called by a handler must have sent the message, or raised.
AT_ONCE = 10.0
#: Seconds after which a point is abandoned, and with it this process.
_LONGEST = 120.0
#: Seconds that threads, and the cluster's ends of connections, may take to close.
_CLOSING = 20.0
_PACKAGE = str(Path(client_module.__file__).parent.parent)
_SIGNAL = signal.SIGUSR1
#: So many entries of each function are points, by what the handler does.
_TIMES = {"raise": 2, "async": 1, "sync": 1}
#: Signals at random moments.
_MOMENTS = 60
#: Before Python 3.11 an exception of a trace function at a resumed generator, such as
#: the end of a `with` block, ends the generator without its `finally`. No signal
#: handler can do that: 8,000 at random moments did not.
_SKIPS_RESUMED = sys.version_info < (3, 11)
#: librdkafka's mock cluster draws the ids of transactional producers at random out of
#: less than a million, and refuses a producer whose id another one has as well. An
#: abort then waits for a new id, which the cluster refuses too, until the time is over.
_COLLISION = "INVALID_PRODUCER_ID_MAPPING"
_LOGGED_COLLISION = "producer id which is not currently assigned"


class Point(NamedTuple):
    """A place of a verb: the n-th entry of a function."""

    function: str
    time: int

    def __str__(self) -> str:
        return f"{self.function} #{self.time}"


class Tracer:
    """Observes each entry of a function of greendrop in the main thread.

    Args:
        on_entry: Called with the function's name.
    """

    def __init__(self, on_entry: Callable[[str], None]) -> None:
        self._on_entry = on_entry
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Observe an event; Python calls this as its trace function."""
        if event != "call" or (_SKIPS_RESUMED and frame.f_lasti >= 0):
            return
        code = frame.f_code
        if code not in self._names:
            path = code.co_filename
            ours = path.startswith(_PACKAGE)
            name = f"{path[len(_PACKAGE) + 1 :]}:{code.co_name}" if ours else None
            self._names[code] = name
        name = self._names[code]
        if name is not None:
            self._on_entry(name)

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace the functions that run in the block."""
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(None)


class Sweep:
    """The points of one verb.

    Args:
        kind: "plain" or "transactional".
        verb: Its name.
        action: The action of the handler: "raise", "async" or "sync". "random" is
            to raise, and at random moments.
    """

    # How often the verb runs to find them.
    _rounds = 2

    def __init__(self, kind: str, verb: str, action: str, servers: str) -> None:
        self._transactional = kind == "transactional"
        self._name = verb
        self._verb = {**verbs.VERBS, **verbs.TRANSACTIONAL}[verb]
        self._action = action
        self._raises = action in ("raise", "random")
        self._servers = servers
        self._exceptions = itertools.cycle(_exceptions())
        #: The topic of each payload that must be stored.
        self.stored: dict[str, str] = {}
        #: Errors that only the hub, or only Python's hook, has seen.
        self._unhandled: list[object] = []
        self._watch_unhandled()
        #: Log lines about collisions of ids.
        self._collisions: list[str] = []
        log = logging.getLogger("greendrop.librdkafka")
        log.addFilter(self._note_collision)

    def _watch_unhandled(self) -> None:
        # In a destructor, as that of a generator that was not exhausted, Python itself
        # can do no more than to print an exception.
        sys.unraisablehook = lambda hook: self._unhandled.append(hook.exc_value)
        hub_class = getattr(sys.modules.get("gevent.hub"), "Hub", None)
        if hub_class is not None:
            hub_class.print_exception = lambda _, __, *error: self._unhandled.append(
                error[1]
            )

    def _note_collision(self, record: logging.LogRecord) -> bool:
        if _LOGGED_COLLISION in record.getMessage():
            self._collisions.append(record.getMessage())
        return True

    # --- the points --------------------------------------------------------------

    def points(self) -> list[Point]:
        """Find the points that the verb runs through, in order."""
        if self._action == "random":
            # What the verb makes once and keeps must not count as left open.
            program = self._program()
            self._verb(program)
            program.end()
            return [Point("microseconds", 37 * n) for n in range(1, _MOMENTS + 1)]
        entries: dict[str, int] = {}
        for _ in range(self._rounds):
            program = self._program()
            times: dict[str, int] = {}
            tracer = Tracer(
                lambda name, times=times: times.update({name: times.get(name, 0) + 1})
            )
            with tracer.tracing():
                self._verb(program)
                _pause(0.01)
            program.end()
            for name, count in times.items():
                entries[name] = max(entries.get(name, 0), count)
        return [
            Point(name, time)
            for name, count in entries.items()
            for time in range(1, min(count, _TIMES[self._action]) + 1)
        ]

    def _program(self) -> Program:
        program = Program(self._servers, transactional=self._transactional)
        if self._name == "offsets":
            verbs.make_consumer()
        if self._name not in verbs.FRESH:
            program.send()
        return program

    def run(self, point: Point) -> list[str]:
        """Interrupt the verb at a point, and return the broken rules."""
        self._collisions.clear()
        try:
            broken = self._run(point)
        except GreendropError as error:
            broken = [f"before the verb: {error!r}"]
        if any(_COLLISION in rule for rule in broken) or (broken and self._collisions):
            broken = self._run(point)
        return broken

    def _run(self, point: Point) -> list[str]:
        self._unhandled.clear()
        # An earlier point has reported its own leftovers; in a forked child, the
        # parent's resources belong to the parent.
        self._earlier = [*_pollers(), *client_module._clients]
        before = Open.now()
        program = self._program()
        broken = self._interrupt(program, point)
        broken += self._check(program)
        try:
            program.end()
        except BaseException as error:  # noqa: BLE001 - reported
            broken.append(f"close(force=True) raised {error!r}")
        if program.producer.status != "closed":
            broken.append(f"close(force=True) left it {program.producer.status}")
        broken += [f"left open: {each}" for each in before.left_open(_CLOSING)]
        for payload in program.stored:
            self.stored[payload.decode()] = str(point)
        return broken

    def _interrupt(self, program: Program, point: Point) -> list[str]:
        broken: list[str] = []
        exception = next(self._exceptions)
        handle = self._handler(program, exception, broken)
        number = signal.SIGALRM if self._action == "random" else _SIGNAL
        before = signal.signal(number, lambda *_: handle())
        times = itertools.count(1)
        reached = False

        def enter(name: str) -> None:
            nonlocal reached
            if name == point.function and next(times) == point.time:
                reached = True
                sys.settrace(None)
                signal.raise_signal(_SIGNAL)

        seen: list[BaseException] = []
        try:
            if self._action == "random":
                reached = True
                signal.setitimer(signal.ITIMER_REAL, point.time / 1e6)
                self._verb(program)
                _pause(0.02)
            else:
                with Tracer(enter).tracing():
                    self._verb(program)
                    _pause(0.01)
        except BaseException as error:  # noqa: BLE001 - judged
            seen.append(error)
        # A hub throws it into the main greenlet at its next wait.
        try:
            _pause(0.02)
        except BaseException as error:  # noqa: BLE001 - judged
            seen.append(error)
        signal.signal(number, before)
        # These objects refer to the interrupted frames.
        exception.__traceback__ = exception.__context__ = None
        if not reached:
            return []
        wanted = exception if self._raises else None
        return broken + self._judge(seen, wanted)

    def _judge(
        self, seen: list[BaseException], wanted: BaseException | None
    ) -> list[str]:
        broken = []
        for error in seen:
            if error is wanted:
                continue
            # Python 3.10 and 3.11: what comes out of a C call has lost its value.
            if type(error) is type(wanted) and not isinstance(error, SystemExit):
                wanted = error
            elif not isinstance(error, GreendropError):
                broken.append(f"the verb raised {error!r}")
            elif wanted is None:
                broken.append(f"the interrupted verb raised {error!r}")
        if wanted is not None and wanted not in seen and wanted not in self._unhandled:
            broken.append(f"{wanted!r} was swallowed; seen: {seen!r}")
        return broken

    def _handler(
        self, program: Program, exception: BaseException, broken: list[str]
    ) -> Callable[[], None]:
        def raise_it() -> None:
            raise exception

        def send() -> None:
            started_at = time.monotonic()
            try:
                program.send() if self._action == "sync" else program.send_async()
            except GreendropError:
                pass
            except BaseException as error:  # noqa: BLE001 - reported
                broken.append(f"the handler's call raised {error!r}")
            seconds = time.monotonic() - started_at
            if seconds > AT_ONCE:
                broken.append(f"the handler's call took {seconds:.1f} s")

        return raise_it if self._raises else send

    # --- the rules ---------------------------------------------------------------

    def _check(self, program: Program) -> list[str]:
        broken: list[str] = []

        def attempt(what: str, step: Callable[[], object]) -> None:
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - reported
                broken.append(f"{what}: {error!r}")

        self._check_handles(program, broken)
        if self._name in verbs.FORKED:
            attempt("the next reset", program.producer.reset)
        if self._name in verbs.ENDING:
            return broken
        for number in range(1, 4):
            attempt(f"send {number} after it", program.send)
        if self._transactional:
            commit = verbs.TRANSACTIONAL["commit"]
            attempt("the next transaction", lambda: commit(program))
            if program.producer.in_transaction:
                broken.append("it is still in a transaction")
        if program.buffered:
            attempt("the next flush", program.producer.flush_sync)
            if program.producer.buffered:
                broken.append("messages stay in the buffer")
            program.stored += program.buffered
        self._check_handles(program, broken)
        self._check_clients(program, broken)
        return broken

    def _check_handles(self, program: Program, broken: list[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        for handle in program.handles:
            while not handle.done and time.monotonic() < deadline:
                _pause(0.005)
            if not handle.done:
                broken.append(f"{handle!r} has no outcome")
            elif handle.report is not None:
                program.stored.append(handle.label)
        program.handles.clear()

    def _check_clients(self, program: Program, broken: list[str]) -> None:
        pool = program.pool
        producers = 1 if pool is None else 1 + pool.size
        deadline = time.monotonic() + _CLOSING
        while True:
            clients = [
                each
                for each in list(client_module._clients)
                if not each.kafka_handle.closed and each not in self._earlier
            ]
            alive = [each for each in _pollers() if each not in self._earlier]
            if len(clients) <= producers and len(alive) <= len(clients):
                return
            if time.monotonic() > deadline:
                break
            _pause(0.01)
        broken.append(f"{len(clients)} clients and {len(alive)} pollers are open")

    # --- in a forked child -------------------------------------------------------

    @staticmethod
    def in_child(function: Callable[..., Any], *arguments: object) -> Any:
        """Return a function's result from a forked child."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            # Not by faulthandler: its lock may be held by a thread of the parent.
            signal.alarm(int(_LONGEST))
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 - reported
                result = [f"in the forked child: {error!r}"]
            os.write(writer, json.dumps(result).encode())
            os._exit(0)
        os.close(writer)
        output = b""
        while select.select([reader], [], [], _LONGEST)[0]:
            part = os.read(reader, 65536)
            if not part:
                break
            output += part
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):  # gevent has reaped the child
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return json.loads(output) if output else ["the forked child did not end"]


class ForkedSweep(Sweep):
    """The points of a verb that a forked child of the producer's process runs."""

    _rounds = 1

    def points(self) -> list[Point]:
        """Find the points in a forked child."""
        self._shared = super()._program()
        return [Point(*each) for each in self.in_child(Sweep.points, self)]

    def _program(self) -> Program:
        return self._shared

    def run(self, point: Point) -> list[str]:
        """Run a point in a forked child."""
        broken: list[str] = self.in_child(Sweep.run, self, point)
        return broken


def _pollers() -> list[Any]:
    kinds = (pollers.GreenletPoller, pollers.ThreadPoller)
    return [
        each for each in gc.get_objects() if type(each) in kinds and _is_alive(each)
    ]


def _is_alive(poller: Any) -> bool:
    try:
        return bool(poller.alive)
    except AttributeError:  # not even made to the end
        return False


def _exceptions() -> list[BaseException]:
    exceptions: list[BaseException] = [KeyboardInterrupt("sweep"), SystemExit(3)]
    gevent = sys.modules.get("gevent")
    if gevent is not None:
        exceptions.append(gevent.Timeout(1))
    return exceptions


def _pause(seconds: float) -> None:
    module = sys.modules.get("gevent") or time
    module.sleep(seconds)


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main(kind: str, verb: str, action: str, start: int = 0, step: int = 1) -> None:
    """Run the points of a verb."""
    # A signal of a timer may end the thread of a cluster in this process.
    make = MockCluster.spawn if action == "random" else MockCluster
    with make() as cluster:
        sweep_class = ForkedSweep if verb in verbs.FORKED else Sweep
        sweep = sweep_class(kind, verb, action, cluster.bootstrap_servers)
        points = sweep.points()
        _tell(points=len(points))
        for number in range(start, len(points), step):
            _tell(begun=number, point=str(points[number]))
            faulthandler.dump_traceback_later(_LONGEST, exit=True)
            broken = sweep.run(points[number])
            faulthandler.cancel_dump_traceback_later()
            if broken:
                _tell(point=str(points[number]), broken=broken)
        stored = [record.payload for record in cluster.records(TOPIC, uncommitted=True)]
        for payload in set(sweep.stored) - {each.decode() for each in stored}:
            _tell(point=sweep.stored[payload], broken=[f"{payload} is not stored"])
    _tell(done=True)


if __name__ == "__main__":
    main(*sys.argv[2:5], *map(int, sys.argv[5:]))
