"""What measures: accuracy, latency, memory, placement, throughput, and campaigns of replays."""
