"""The pure core: no await, clock, randomness, logging or NATS."""
