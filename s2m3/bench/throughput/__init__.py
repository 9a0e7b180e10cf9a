"""The answers in time of a site under more load than its capacity: ``s2m3 bench throughput``."""
