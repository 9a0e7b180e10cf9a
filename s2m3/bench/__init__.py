"""Measurements: accuracy, latency, memory, placement, throughput, and flatness of processes."""
