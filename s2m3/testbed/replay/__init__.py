"""Failures replayed: a site of real processes, a load, faults, and a report of what the requests felt."""
