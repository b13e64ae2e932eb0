"""What runs in a session: workers, their inboxes, programs and their protocol."""
