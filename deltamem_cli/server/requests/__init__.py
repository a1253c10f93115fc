"""What requests of all interfaces have in common."""
