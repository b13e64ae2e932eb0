"""The only code that talks to NATS; its errors stop here."""
