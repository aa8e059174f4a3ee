"""What listens to producers and tells others: logs, metrics, traces."""
