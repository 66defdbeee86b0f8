"""Repositories of a hub: in its cache on the disk, or behind a server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NETWORK = "test_byobnet"  # timm's own for tests: 64,000 weights with 3 classes


def write_repo(folder: Path, *, classes: int = 3, **model_args: Any) -> nn.Module:
    """``config.json`` and ``model.safetensors`` as timm itself writes them for the hub; returns their network."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(NETWORK, num_classes=classes, **model_args)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    timm.models._hub.save_config_for_hf(model, folder / "config.json", model_args=model_args)
    return model


def into_cache(cache: Path, repo: str, files: Path) -> Path:
    """Files in the hub's cache, as if they had been downloaded; the folder that they are in."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(files, place / "snapshots" / COMMIT)
    return place / "snapshots" / COMMIT


@contextmanager
def hub_server(repo: str, files: Path) -> Iterator[str]:
    """The address of a hub on this machine with one repository."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = f"/{repo}/resolve/main/"
            path = files / self.path.removeprefix(start)
            code = "" if path.is_file() else "EntryNotFound"
            code = code if self.path.startswith(start) else "RepoNotFound"
            body = path.read_bytes() if not code else b"{}"
            self.send_response(404 if code else 200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "ETag": _tag(body)}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _tag(body: bytes) -> str:
    return json.dumps(hashlib.sha256(body).hexdigest())
