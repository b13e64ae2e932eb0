"""The floor: what a session costs in bare nats-py calls, with nothing of ours in between."""
