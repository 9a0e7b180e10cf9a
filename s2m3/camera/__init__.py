"""``s2m3 camera``: frames of a camera, a video or a folder as requests for tasks, and their answers.

Owns the way from a source of pictures to requests. It is a client of the broker like any other, and knows no device and
no module. PyAV and Pillow are imported when a source is opened.
"""
