"""Writes as lines what its messages contain, and reports every line that it receives."""

import json
import sys

print('{"type":"ready"}', flush=True)
for text in sys.stdin:
    line = json.loads(text)
    if line["type"] == "message" and isinstance(line["content"], dict):
        content = line["content"]
        said = {content.get("field", "data"): "x" * content.get("times", 0), **content}
        print(json.dumps(said), flush=True)
    else:
        print(json.dumps({"type": "output", "name": "got", "data": line}), flush=True)
