"""Runs the brokers of `MockCluster.spawn()`, in a process of its own."""

import sys

from greendrop.testing._mock_cluster import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
