"""``s2m3 bench throughput``: what a site still answers in time when more is asked than it can do."""
