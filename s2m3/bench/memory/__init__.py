"""The memory that splitting and sharing save, counted exactly and measured on real processes: ``s2m3 bench memory``.

``counts`` has the mixes of tasks, and counts weights. ``processes`` reads a process's memory, ``unsplit`` is a process
that holds one task's whole model, and ``measure`` runs such processes and a site, and compares the two.
"""
