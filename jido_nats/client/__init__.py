"""The caller's side: commands, streams, watches."""
