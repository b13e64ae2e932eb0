"""Measures of a deployment, beside the same writes in bare nats-py (`baseline`)."""
