"""The orchestrator: decides which devices are alive, which device has which module, and each task's route."""
