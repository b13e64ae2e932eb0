"""jido_nats: sessions whose every status change is an event on NATS."""
