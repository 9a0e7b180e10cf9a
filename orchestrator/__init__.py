"""Decides: who is alive, what goes where, which way a request may go."""
