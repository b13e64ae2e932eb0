"""The live table of `jido-nats watch`."""
