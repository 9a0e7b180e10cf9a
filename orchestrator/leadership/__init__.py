"""Which orchestrator leads: epochs, the leader's own topic, and a standby orchestrator's view of it."""
