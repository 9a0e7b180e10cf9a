"""A new task for the price of its head: a linear classifier on the features of an encoder that devices hold already.

``fit`` fits a head and writes its files, ``train`` does all of it for labelled data and tries the result, ``rollout``
deploys it into a running site and watches what that costs.
"""
