"""The dashboard: a page that shows a site, from the messages that the site publishes for people.

A client of the broker in a process of its own. It may only read, but for the requests of its playground.
"""
