"""``s2m3 bench fleet``: a simulated fleet on real MQTT sessions, against a real broker and a real orchestrator.

Owns nothing. ``packets`` are MQTT 5's bytes, ``device`` is one simulated device, ``schedule`` says when heartbeats are
due and whether they were late, ``sessions`` runs all of them in one loop, ``watch`` records the orchestrator's
messages, ``site`` draws the devices and tasks, ``processes`` starts and measures the processes, ``measure`` is the
measurement.
"""
