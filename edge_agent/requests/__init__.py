"""The life of a request on a device: coordinate, execute, back up, route, queue."""
