"""Measurements of a deployment, next to the same writes with bare nats-py (`baseline`)."""
