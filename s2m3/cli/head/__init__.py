"""A new task for the price of its head: a linear classifier on the features of an encoder that devices hold already.

``fit`` trains and writes it, ``rollout`` deploys it into a running site and watches what that costs, ``command`` is
``s2m3 head train``.
"""
