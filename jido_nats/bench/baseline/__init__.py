"""The baseline: what bare nats-py needs for the same writes and reads."""
