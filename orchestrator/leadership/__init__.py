"""The leader's side of the election: its own topic, its files and the operators' orders (``broker.leader_watch``)."""
