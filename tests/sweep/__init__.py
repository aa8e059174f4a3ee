"""The sweep: an interruption at the entry of every function that a verb runs.

A signal handler may raise, or send, at any moment. For each public verb, in each world
and on each kind of producer, `child` raises a signal at the entry of each function of
greendrop that the verb runs, one after the other, and checks the producer afterwards.
`test_sweep` starts the children.
"""
