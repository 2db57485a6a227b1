"""Models on a hub: a server on the loopback that speaks as much of its protocol as uploads and downloads need."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import openjepa
from openjepa.data.preprocess import Preprocess
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture

pytest.importorskip("huggingface_hub")


def small() -> IJEPA:
    architecture = Architecture(
        image_size=(16, 16), patch_size=(4, 4), in_channels=3, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.0,
        predictor_dim=8, predictor_depth=1, predictor_heads=2,
    )  # fmt: skip
    model = build_ijepa(architecture, seed=3)
    model.preprocess = Preprocess((16, 16), 3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    return model.eval()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_to_a_folder_and_back(tmp_path: Path) -> None:
    model = openjepa.HubModel.of(small())
    model.save_pretrained(tmp_path / "mine")
    back = openjepa.HubModel.from_pretrained(tmp_path / "mine")
    assert isinstance(back, IJEPA)
    assert same(back.target_encoder, model.target_encoder)
    assert same(back.predictor, model.predictor)
    assert back.preprocess == model.preprocess
    assert "README.md" in {path.name for path in (tmp_path / "mine").iterdir()}
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(back.target_encoder(images), model.target_encoder(images))


class Hub(ThreadingHTTPServer):
    """One repository, in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: Any, status: int = 200) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            self._json({"url": f"http://127.0.0.1:{self.server.server_port}/me/photos"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": told})
        elif "/commit/" in self.path:
            import base64

            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json({"commitUrl": f"http://127.0.0.1/me/photos/commit/{'a' * 40}", "commitOid": "a" * 40,
                        "hookOutput": "", "success": True})  # fmt: skip
        else:
            self._json({"exists": True})

    def do_GET(self) -> None:
        if found := re.match(r"/me/photos/resolve/[^/]+/(.+)", self.path):
            self._file(found[1].partition("?")[0], body=True)
        elif self.path.startswith("/api/models/me/photos"):
            names = [{"rfilename": name} for name in self.server.files]
            if "/tree/" in self.path:
                self._json([{"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                            for name, raw in self.server.files.items()])  # fmt: skip
            else:
                self._json({"id": "me/photos", "modelId": "me/photos", "sha": "a" * 40, "siblings": names,
                            "private": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        else:
            self._json({"error": "not found"}, 404)

    def do_HEAD(self) -> None:
        if found := re.match(r"/me/photos/resolve/[^/]+/(.+)", self.path):
            self._file(found[1].partition("?")[0], body=False)
        else:
            self._json({"error": "not found"}, 404)

    def _file(self, name: str, *, body: bool) -> None:
        if name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        raw = self.server.files[name]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def python(code: str, hub: Hub, home: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, for huggingface_hub reads HF_ENDPOINT once."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home),
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "hf_none"}  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_pushed_and_fetched(hub: Hub, tmp_path: Path) -> None:
    model = small()
    openjepa.HubModel.of(model).save_pretrained(tmp_path / "mine")
    done = python(
        f"import openjepa; openjepa.HubModel.from_pretrained({str(tmp_path / 'mine')!r}).push_to_hub('me/photos')",
        hub, tmp_path / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {
        "config.json",
        "model.safetensors",
        "openjepa.json",
        "predictor.safetensors",
        "preprocessor_config.json",
    }
    assert names <= hub.files.keys()
    done = python(
        "import openjepa; a = openjepa.load('hf://me/photos'); b = openjepa.HubModel.from_pretrained('me/photos'); "
        f"[m.save_pretrained({str(tmp_path)!r} + '/' + n) for m, n in ((openjepa.HubModel.of(a), 'a'), (b, 'b'))]",
        hub, tmp_path / "home2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        back = openjepa.load(tmp_path / name)
        assert same(back.target_encoder, model.target_encoder)
        assert same(back.predictor, model.predictor)
        assert back.preprocess == model.preprocess
    done = python("import openjepa; openjepa.load('hf://me/none')", hub, tmp_path / "home3")
    assert "CheckpointError: hf://me/none: can't be fetched" in done.stderr


def test_a_folder_of_transformers_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the hub has the authors' models: no predictor, and statistics that they were not trained with."""
    model = openjepa.HubModel.of(small())
    model.save_pretrained(tmp_path / "mine")
    for name in ("openjepa.json", "predictor.safetensors"):
        (tmp_path / "mine" / name).unlink()
    file = tmp_path / "mine" / "preprocessor_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    back = openjepa.load(tmp_path / "mine")
    assert same(back.target_encoder, model.target_encoder)
    assert back.preprocess is not None
    assert back.preprocess.mean == (0.485, 0.456, 0.406)
    assert "no predictor in it" in caplog.text
    assert "ImageNet's mean" in caplog.text
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    again = openjepa.load(tmp_path / "mine").preprocess
    assert again is not None
    assert again.mean == (0.1, 0.2, 0.3)
