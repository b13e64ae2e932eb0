"""One manager of sessions: commands, changes, takeover, background tasks, metrics."""
