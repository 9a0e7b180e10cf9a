"""The door for HTTP: tasks are asked by ``POST``, and answered, by a process that is a client of the broker.

Owns HTTP: its bodies, status codes, tokens and limits. Doesn't know devices or modules: requests and answers are those
of ``broker.client``, and a payload is read by the agent, as one of any sensor.
"""
