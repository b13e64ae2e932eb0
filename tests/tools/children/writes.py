"""Writes the bytes of a file after its first line, and reports every line that it receives from then on."""

import json
import sys
from pathlib import Path

sys.stdin.readline()
sys.stdout.buffer.write(Path(sys.argv[1]).read_bytes())
sys.stdout.flush()
for text in sys.stdin:
    print(json.dumps({"type": "output", "name": "got", "data": text}), flush=True)
