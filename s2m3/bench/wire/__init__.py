"""``s2m3 bench wire``: what the agents' code adds to a message's way through the broker.

Owns nothing. ``ends`` are the two ends of a hop, each a process: of paho alone, and of an agent's code. ``agents`` are
three agents whose modules cost nothing, and ``relays`` what forwards as many messages as they do. ``measure`` is the
measurement.
"""
