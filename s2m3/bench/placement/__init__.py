"""How good placements are, and how long they take: ``s2m3 bench placement``.

``instances`` draws, writes and reads the instances, ``compare`` solves them, ``plot`` draws, ``scale`` measures large
fleets.
"""
