"""The connections of one producer: its clients, their recovery and their OAuth tokens."""
