"""Spoken sentences with their texts: for trying the speech tasks, and for tests.

Owns the list and the place: ``catalog/pocket/sounds/NAME.wav``, 16 kHz, 16 bits, one channel. They are synthetic
speech, made once with Debian's flite 2.2 and its voice slt (``apt-get install flite``), each by

    flite -voice slt -t "SENTENCE" -o edge_agent/catalog/pocket/sounds/NAME.wav

They are easy: one clear voice, no noise. Even so Whisper tiny.en misheard one sentence that was tried for this table,
"What vehicle is this?" ("What do you call is this?"), which was left out. It doesn't understand espeak-ng's voice. So
the table shows that the parts work together, not how well the network transcribes.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.protocol.codec import RawInput
from edge_agent import catalog

SENTENCES: Mapping[str, str] = {
    "pump": "The pump in the cellar is running hot.",
    "what-animal": "What animal is this?",
    "what-is-in-the-cup": "What is in the cup?",
    "what-is-taking-off": "What is taking off?",
    "window": "Please close the window before the storm arrives.",
}
"""Name -> text."""


def spoken(name: str) -> RawInput:
    """One sentence as a microphone would send it.

    Raises:
        KeyError: it is not in ``SENTENCES``.
    """
    if name not in SENTENCES:
        raise KeyError(name)
    return RawInput((catalog.DIRECTORY / "pocket" / "sounds" / f"{name}.wav").read_bytes(), "audio/wav")
