"""Everything between the processes: the protocol, the transport, the client, and starting a broker."""
