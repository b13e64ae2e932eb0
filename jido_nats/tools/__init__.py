"""Programs for operators; they stand on the client."""
