"""The planner's process: it solves the orchestrator's problems, and the orchestrator's loop goes on meanwhile."""
