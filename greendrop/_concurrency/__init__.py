"""Concurrency: how greendrop waits, wakes, locks and survives forks.

The only package that imports gevent, greenlet and `_thread`. Waits are cooperative
where the calling thread has a gevent hub, and block the thread elsewhere; which one is
decided when the wait begins. Knows nothing of Kafka.
"""

from greendrop._concurrency.deadline import DAY, Deadline, check_timeout, monotonic
from greendrop._concurrency.event_loop import (
    EventLoopWaiter,
    NoWaits,
    check_waits_allowed,
    in_event_loop,
)
from greendrop._concurrency.fork import (
    ForkMarker,
    PidMarker,
    fork_marker,
    register_multiprocessing_exit,
    under_uwsgi,
    uwsgi_without_threads,
)
from greendrop._concurrency.hub import (
    CooperativeLoop,
    ThreadsafeCalls,
    call_soon_threadsafe,
    current_hub,
    current_task,
    ensure_threadsafe_calls,
    hub_getter,
    hub_is_dead,
    in_hub,
    is_current,
    spawn_in_hub,
    yield_to_hub,
)
from greendrop._concurrency.native import (
    allocate_lock,
    close_fd,
    get_ident,
    new_lock,
    start_new_thread,
)
from greendrop._concurrency.threads import (
    BackgroundTask,
    ThreadCall,
    batch_scheduling,
    run_apart,
    run_in_thread,
    spawn,
    spawn_thread,
    start_thread,
)
from greendrop._concurrency.wait_queue import WaitQueue
from greendrop._concurrency.waiters import (
    GreenletWaiter,
    RawLink,
    SharedTimer,
    ThreadWaiter,
    Waiter,
    link,
    new_waiter,
    waiter_in,
)
from greendrop._concurrency.watchdog import HubWatchdog
