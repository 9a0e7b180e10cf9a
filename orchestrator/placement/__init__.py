"""Keeping modules where they should be: reconcile, drain, rebalance, routes, and what is published of it."""
