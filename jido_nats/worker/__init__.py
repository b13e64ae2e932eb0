"""What runs in a session: its worker, its inbox, programs and their protocol."""
