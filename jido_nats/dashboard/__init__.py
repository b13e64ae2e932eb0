"""The dashboard: a page and its server."""
