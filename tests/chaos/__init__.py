"""Chaos: programs that send while brokers and networks fail, and a judge.

`faults` breaks and repairs the cluster, `loads` are the programs, `records` is their
account of each message, `reading` reads the topics, `judge` compares both, `report`
shows the figures and keeps them for docs/reliability.md. `__main__` is the command::

    python -m tests.chaos --duration 600 --seed 7 --load greenlets,transactions
"""
