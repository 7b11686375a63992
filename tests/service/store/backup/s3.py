"""A server with the part of S3 that a backup needs, without authentication. Its objects are kept in memory."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

NOT_FOUND = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"


class Objects(ThreadingHTTPServer):
    """The server. `objects`: content by path, /bucket/key. `parts`: of multipart uploads, by upload and number."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Objects

    def setup(self) -> None:
        super().setup()
        self.close_connection = True

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path)

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in pairs.items()}

    def do_PUT(self) -> None:
        body = self._body()
        if "partNumber" in self.query:
            self.server.parts[self.query["uploadId"], int(self.query["partNumber"])] = body
        elif self.key.strip("/").count("/"):
            self.server.objects[self.key] = body
        self._answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def do_POST(self) -> None:
        self._body()
        if "uploads" in self.query:
            self._answer(
                200, f"<InitiateMultipartUploadResult><UploadId>{self.key}</UploadId></InitiateMultipartUploadResult>"
            )
            return
        numbers = sorted(number for upload, number in self.server.parts if upload == self.query["uploadId"])
        parts = [self.server.parts[self.query["uploadId"], number] for number in numbers]
        self.server.objects[self.key] = b"".join(parts)
        self._answer(200, '<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self.query:
            self._list()
            return
        content = self.server.objects.get(self.key)
        if content is None:
            self._answer(404, NOT_FOUND)
            return
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, _, last = wanted.partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self._answer(206, part, {"Content-Range": span})
            return
        self._answer(200, content)

    def _list(self) -> None:
        prefix, delimiter = f"{self.key.rstrip('/')}/{self.query.get('prefix', '')}", self.query.get("delimiter", "")
        bucket = self.key.strip("/")
        found = sorted(key for key in self.server.objects if key.startswith(prefix))
        folders = {key[: key.index("/", len(prefix)) + 1] for key in found if delimiter and "/" in key[len(prefix) :]}
        files = [key for key in found if not any(key.startswith(folder) for folder in folders)]
        names = [
            f"<Contents><Key>{escape(key[len(bucket) + 2 :])}</Key><Size>{len(self.server.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for key in files
        ]
        names += [f"<CommonPrefixes><Prefix>{escape(f[len(bucket) + 2 :])}</Prefix></CommonPrefixes>" for f in folders]
        self._answer(
            200,
            f"<ListBucketResult><KeyCount>{len(names)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(names)}</ListBucketResult>",
        )

    def _body(self) -> bytes:
        """Read the body; the client may send it in signed chunks, whose headers are removed."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raw = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return raw
        body = b""
        while raw:
            head, _, raw = raw.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            body, raw = body + raw[:size], raw[size + 2 :]
        return body

    def _answer(self, status: int, content: str | bytes = b"", headers: dict[str, str] | None = None) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


@contextlib.contextmanager
def serving_s3() -> Iterator[Objects]:
    """Run the server while the block lasts."""
    with Objects() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
