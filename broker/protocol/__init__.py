"""The protocol: specs, messages, topics, and their bytes. Pure: no I/O."""
