"""Which orchestrator leads: epochs, the leader's own topic, and the standby's view of it."""
