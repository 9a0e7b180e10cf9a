"""Modules as ONNX files: written from torch, run again, and compared with it.

An export is a directory of one module. ``export.json`` describes it; beside it lies an ``.onnx`` file for each use, and
what the steps of a request need, such as a tokenizer. ``write`` has the order of the work, ``graph`` torch's exporter.
"""
