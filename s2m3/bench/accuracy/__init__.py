"""How right answers are, split and unsplit, on labelled data: ``s2m3 bench accuracy``.

``questions`` turns records into requests and answers into scores, ``reference`` is the unsplit model, ``run`` goes
through one benchmark, ``journal`` remembers where it was, ``command`` is the command line and the table.
"""
