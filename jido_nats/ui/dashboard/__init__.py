"""A dashboard in the browser: what NATS says, kept in memory, told by Server-Sent Events."""
