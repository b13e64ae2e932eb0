"""What people look at; stands on the client."""
