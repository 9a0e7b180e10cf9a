"""Sources: what a site already publishes becomes requests, and the answers stand where others look.

A source is a rule: a topic filter, a task, and where the answer goes. One process runs all sources of a site; a second
one waits as a spare.
"""
