"""Runs the brokers of `MockCluster.spawn()`, in a process of its own."""

import sys

from greendrop.testing import _serve

if __name__ == "__main__":
    _serve(int(sys.argv[1]))
