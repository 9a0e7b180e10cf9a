"""How good placements are, and how long they take: ``s2m3 bench placement``.

``classes`` says what kinds of device there are, ``instances`` draws, writes and reads the instances, ``compare`` solves
them, ``plot`` draws, ``scale`` measures large fleets, ``command`` is the command line.
"""
