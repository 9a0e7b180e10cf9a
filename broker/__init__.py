"""What two processes must agree on, and the way to reach the broker."""
