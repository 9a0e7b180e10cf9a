"""Ray Serve's model composition: the two encoders and the head as deployments of one replica each.

    python benchmarks/peers/ray_serve.py --port PORT

As its documentation shows: an ingress deployment calls the encoders through handles, both at once, and the head. The
body of a POST is that of ``unsplit.py``. No dashboard, no statistics of use; a replica claims no whole processor, so
that all fit on two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ray
from functions import Head, Image, Tensors, Text
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

SHARE = {"num_cpus": 0.2}


@serve.deployment(ray_actor_options=SHARE)
class ImageEncoder:
    """One replica with the picture's modules."""

    def __init__(self) -> None:
        self._image = Image("torch", None)

    def run(self, picture: bytes) -> Tensors:
        """A picture's class probabilities."""
        return self._image.run(picture)


@serve.deployment(ray_actor_options=SHARE)
class TextEncoder:
    """One replica with the text encoder."""

    def __init__(self) -> None:
        self._text = Text("torch", None)

    def run(self, captions: bytes) -> Tensors:
        """Captions' embeddings."""
        return self._text.run(captions)


@serve.deployment(ray_actor_options=SHARE)
class Ingress:
    """The front door, with the head, which costs next to nothing."""

    def __init__(self, image: DeploymentHandle, text: DeploymentHandle) -> None:
        self._image, self._text, self._head = image, text, Head("torch", None)

    async def __call__(self, request: Request) -> object:
        """Answer a POST."""
        captions, _, picture = (await request.body()).partition(b"\n\n")
        seen, told = await asyncio.gather(self._image.run.remote(picture), self._text.run.remote(captions))
        return json.loads(json.dumps(self._head.run(seen, told, captions)))


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    path = str(Path(__file__).parent)
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join([path, *sys.path])}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    serve.run(Ingress.bind(ImageEncoder.bind(), TextEncoder.bind()))
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
