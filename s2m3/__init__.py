"""The face of S2M3: the command line and the client, over a testbed, benchmarks and reference models."""
