"""Servers that speak as vLLM does.

One has a hash for a model, for faults that a real one cannot be made to show; one computes a small base, for whole
turns.
"""

import hashlib
import json
import math
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VOCABULARY = 40  # tokens 0 to 39 of whatever tokenizer
BASE = "base-model"


class Fake:
    """State of the server, and knobs that break it."""

    def __init__(self):
        self.adapters = {}
        self.loads = []
        self.unloads = []
        self.open = 0  # streams
        self.lock = threading.Lock()
        self.requests = []
        self.status = 200
        self.break_after = None  # tokens, of the next stream
        self.always_breaks = False
        self.unknown_is_base = False  # as a router that knows only bases
        self.says_asked_name = False
        self.raw = False
        self.garbage = False
        self.other_weights = ""
        self.hold = threading.Event()  # streams wait for it behind their second token
        self.hold.set()
        self.load = threading.Event()  # loads wait for it
        self.load.set()
        self.max_loras = 16  # None: no metrics
        self.answered = False  # since its start; before that its metrics do not have the number
        self.address = ""

    def restart(self, max_loras=16):
        self.adapters, self.answered, self.max_loras = {}, False, max_loras

    def metrics(self):
        if self.max_loras is None:
            return None
        series = [f'max_lora="{self.max_loras}",running_lora_adapters="{names}"' for names in ("", "one,two")]
        lines = [
            "# TYPE vllm:lora_requests_info gauge",
            *(f"vllm:lora_requests_info{{{each}}} 1.7e9" for each in series),
        ]
        return "\n".join([*(lines if self.answered else lines[:1]), 'other{max_lora="2"} 1', ""])

    def weights(self, name):
        if name == BASE or (name not in self.adapters and self.unknown_is_base):
            return self.other_weights
        return hashlib.sha256((Path(self.adapters[name]) / "adapter_model.safetensors").read_bytes()).hexdigest()

    def logits(self, name, last):
        drawn = random.Random(f"{self.weights(name)}/{last}")
        return [3 * drawn.random() for _ in range(VOCABULARY)]

    def logprobs(self, name, last, temperature=1.0):
        scaled = [each / temperature for each in self.logits(name, last)]
        total = math.log(math.fsum(map(math.exp, scaled)))
        return [each - total for each in scaled]

    def row(self, name, tokens, temperature):
        """Log-probs of the next token behind some."""
        return self.logprobs(name, tokens[-1], temperature)


class Computing(Fake):
    """Computes a base in float32, and adapters on it."""

    def __init__(self, folder):
        from plaudit.engine.base import Base

        super().__init__()
        self._base = Base.load(folder, device="cpu", dtype="float32")

    def row(self, name, tokens, temperature):
        """As Fake.row; one at a time, as adapters are switched."""
        import torch
        from plaudit.engine import adapters

        base, own = self._base, None if name == BASE else name
        with self.lock, torch.no_grad():
            for gone in set(adapters.names(base)) - set(self.adapters):
                adapters.remove(base, gone)
            if own is not None and own not in adapters.names(base):
                adapters.load(base, own, Path(self.adapters[own]))
            with adapters.active(base, own):
                hidden = base.upper(base.trunk(torch.tensor([tokens]), 0), 0)
                return torch.log_softmax(base.logits(hidden[0, -1:])[0] / temperature, 0).tolist()


def _handler(fake):  # noqa: C901 - every call of a server
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _answer(self, status, body):
            self._send(status, json.dumps(body).encode())

        def _send(self, status, data):
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            if fake.status != 200:
                return self._answer(fake.status, {})
            if self.path == "/metrics":
                said = fake.metrics()
                return self._send(404 if said is None else 200, (said or "").encode())
            cards = [{"id": BASE, "parent": None, "max_model_len": 4096}]
            cards += [{"id": name, "parent": BASE} for name in fake.adapters]
            return self._answer(200, {"data": cards})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if fake.status != 200:
                return self._answer(fake.status, {"error": {"message": "broken"}})
            if self.path == "/v1/load_lora_adapter":
                fake.loads.append(body["lora_name"])
                fake.load.wait(600)
                fake.adapters[body["lora_name"]] = body["lora_path"]
                return self._answer(200, {})
            if self.path == "/v1/unload_lora_adapter":
                fake.unloads.append(body["lora_name"])
                fake.adapters.pop(body["lora_name"], None)
                return self._answer(200, {})
            fake.requests.append(body)
            fake.answered = True
            name = body["model"]
            known = name == BASE or name in fake.adapters
            if not known and not fake.unknown_is_base:
                return self._answer(404, {"error": {"message": "unknown"}})
            says = name if known or fake.says_asked_name else BASE
            return self._stream(body, says) if body.get("stream") else self._whole(body, says)

        def _whole(self, body, says):
            name = body["model"]
            temperature = 1.0 if fake.raw else body["temperature"]
            choices = []
            for index, prefix in enumerate(body["prompt"]):
                row = fake.row(name, prefix, temperature)
                top = {f"token_id:{t}": row[t] if t < len(row) else -9.0 for t in body["logprob_token_ids"]}
                choices.append({"index": index, "logprobs": {"top_logprobs": [top]}})
            return self._answer(200, {"model": says, "choices": choices})

        def _stream(self, body, says):
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            if fake.garbage:
                self.wfile.write(b'data: {"object": "something else"}\n\n')
                return
            with fake.lock:
                fake.open += 1
            breaks, fake.break_after = fake.break_after, None
            drawn, tokens = random.Random(body["seed"]), list(body["prompt"])
            greedy = body["temperature"] == 0
            try:
                for at in range(body["max_tokens"]):
                    if at == 2:
                        fake.hold.wait(600)
                    if at == breaks or fake.always_breaks:
                        return
                    row = fake.row(body["model"], tokens, 1.0 if greedy else body["temperature"])
                    weights = [math.exp(each) for each in row]
                    last = row.index(max(row)) if greedy else drawn.choices(range(len(row)), weights)[0]
                    tokens.append(last)
                    finish = "length" if at == body["max_tokens"] - 1 else None
                    choice = {"index": 0, "token_ids": [last], "logprobs": {"token_logprobs": [row[last]]}}
                    piece = {"model": says, "choices": [{**choice, "finish_reason": finish}]}
                    self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:  # the engine has gone
                pass
            finally:
                with fake.lock:
                    fake.open -= 1

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # a turn's requests come all at once


@contextmanager
def fake_server(port=0, fake=None):
    """A running Fake; its `address` is where it listens."""
    fake = fake or Fake()
    server = _Server(("127.0.0.1", port), _handler(fake))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    fake.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        fake.hold.set()
        fake.load.set()
        server.shutdown()
        server.server_close()
        thread.join()
