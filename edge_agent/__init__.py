"""Does: loads modules, runs them, coordinates requests.

ONNX Runtime sends usage data to its maker, keeps a database of it in the home directory, and has a thread for that,
unless this variable is set before its first import. An agent talks to its broker only.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
