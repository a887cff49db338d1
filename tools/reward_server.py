#!/usr/bin/env python3
"""A reward for engine over HTTP, to be copied and changed: how red a picture is. Needs Pillow (pip install pillow).

    tools/reward_server.py 8000
    engine train --config CONFIG --set 'rewards={http={url="http://127.0.0.1:8000"}}'

engine asks GET /health when it starts, then POST /score; the format: engine's src/rewards/http/json.rs.
"""
import base64, io, json, sys, traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from PIL import Image, ImageStat

def score(picture, prompt, record):
    """The score of one picture, and numbers to report beside it. `record` is the prompt's line of a .jsonl file."""
    red, green, blue = ImageStat.Stat(picture).mean
    return (red - (green + blue) / 2) / 255, {"brightness": (red + green + blue) / 765}

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pictures = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in asked["images"]]
            judged = [score(*one) for one in zip(pictures, asked["prompts"], asked["records"])]
            extra = {name: [extra[name] for _, extra in judged] for name in judged[0][1]}
            self.answer(200, {"scores": [value for value, _ in judged], "extra": extra})
        except Exception:
            self.answer(500, {"error": traceback.format_exc(limit=0).strip().splitlines()[-1]})

    def answer(self, status, body):
        body = json.dumps(body, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
