"""A new task for the price of its head: a linear classifier on the features of an encoder that devices hold already.

``train`` fits a head for labelled data, writes its files and tries it; ``rollout`` deploys it into a running site and
watches what that costs.
"""
