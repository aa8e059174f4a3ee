"""The connections of one producer: clients, recovery and OAuth tokens."""
