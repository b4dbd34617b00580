"""A hub on loopback: what huggingface_hub asks of the real one, and files that have the shape of its data sets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq

REVISION = "0123456789abcdef0123456789abcdef01234567"


def verl_row(question: str, answer: str | None, **extra_info: Any) -> dict[str, Any]:
    """A row as DAPO-Math-17k and its like have it."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": question, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": extra_info or {"index": question},
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@dataclass
class Hub:
    """A running hub.

    Attributes:
        files: of its one repository, by name.
        break_after: the first download of each file ends without notice after so many bytes.
        ranges: of the requests for a part of a file.
        served: how often the content of each file was asked for.
    """

    endpoint: str
    files: dict[str, bytes]
    break_after: int | None = None
    ranges: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)


@contextmanager
def serve(repository: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve a repository while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            if urlparse(self.path).path.startswith(f"/api/datasets/{repository}"):
                self._info()
            else:
                self._file(body=True)

        def _info(self) -> None:
            siblings = [
                {"rfilename": name, "size": len(content), "blobId": "0",
                 "lfs": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 100}}
                for name, content in hub.files.items()
            ]  # fmt: skip
            body = json.dumps({"id": repository, "sha": REVISION, "tags": [], "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, *, body: bool) -> None:
            prefix = f"/datasets/{repository}/resolve/{REVISION}/"
            name = unquote(urlparse(self.path).path).removeprefix(prefix)
            content = hub.files.get(name)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if body and (wanted := self.headers.get("Range")):
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not body:
                return
            hub.served[name] = hub.served.get(name, 0) + 1
            breaks = hub.break_after is not None and hub.served[name] == 1
            self.wfile.write(content[start : hub.break_after if breaks else None])
            if breaks:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", dict(files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
