"""``s2m3 plan``: where modules would go, without any device.

``inputs`` reads and checks the files, ``solve`` runs one of the three solvers, ``document`` is the JSON, ``command``
the command line and its tables.
"""
