"""The limits of what a sensor may send, in one place: topics.md states each, and a test holds the two equal.

Together they are a budget of one input: at most ``MAX_PICTURE_BYTES`` of memory beside a few copies of its own bytes,
and two seconds of one core of a server. ``docs/architecture.md`` says why no process of its own decodes.
"""

from __future__ import annotations

from broker.protocol import default_text

MAX_PIXELS = 50_000_000  # a 48-megapixel camera
# The longer side divided by the shorter. A network that scales the shorter side to its own size would make gigabytes
# of a very thin picture; one that scales the longer side would leave nothing of the shorter.
MAX_SIDES = 16
MAX_PICTURE_BYTES = 256 * 2**20  # of memory while a picture is decoded, turned upright and made RGB
# A progressive JPEG is decoded scan by scan, and each scan may visit each block of 8 x 8 numbers, some 50 ns each.
MAX_SCANS = 500
MAX_BLOCK_VISITS = 16_000_000
MAX_MARKERS = 4096  # of a JPEG: its metadata, tables and scans
MAX_ROW_BYTES = 200_000_000  # of all rows of a PNG, before they become pixels: 8 bits a channel at 50 megapixels
MAX_CHUNKS = 65_536  # of a PNG or a WebP
MAX_METADATA_BYTES = 2**20  # of one text of a PNG that may say how it is turned

MAX_TEXT_BYTES = 2**20
MAX_LINES = default_text.MAX_LINES
MAX_LINE_CHARACTERS = default_text.MAX_LINE_CHARACTERS
MAX_QUESTION_TOKENS = 2048  # of a language model: about one for each character of the longest line

SLOWEST_HZ = 8_000
FASTEST_HZ = 96_000
MAX_SOUND_CHUNKS = 256  # of a wav file, before its samples
MAX_SOUND_CHANNELS = 8
