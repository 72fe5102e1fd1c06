"""A client of Peregrine's HTTP API: the standard library alone, one kept-alive connection per thread."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any, Mapping, Sequence
from urllib.parse import quote, urlsplit

from peregrine_types import (
    EventsAnswer,
    EventsRequest,
    ModelList,
    PrefetchAnswer,
    PrefetchRequest,
    RankAnswer,
    RankRequest,
    RetrieveAnswer,
    RetrieveRequest,
    UserAnswer,
)


class PeregrineError(Exception):
    """What the server refused; branch on `code`."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: str | None):
        self.code = str(problem.get("code"))
        self.status = status
        self.path = problem.get("path")
        self.retry_after_sec = None if retry_after is None else float(retry_after)
        super().__init__(f"{self.code}: {self.path or ''} {problem.get('message')}")


class Client:
    """`url` such as http://127.0.0.1:8080. Every method raises PeregrineError, or OSError."""

    def __init__(self, url: str, api_key: str | None = None, timeout_sec: float = 10):
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connect = lambda: kind(parts.netloc, timeout=timeout_sec)
        self._base = parts.path.rstrip("/")
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._local = threading.local()

    def rank(self, request: RankRequest) -> RankAnswer:
        return self._call("POST", "/v1/rank", request)

    def retrieve(self, request: RetrieveRequest) -> RetrieveAnswer:
        return self._call("POST", "/v1/retrieve", request)

    def rank_batch(self, requests: Sequence[RankRequest]) -> Sequence[Mapping[str, Any]]:
        """In the order of the requests; one that failed is an `error` in its place."""
        return self._call("POST", "/v1/rank/batch", {"requests": requests})["results"]

    def prefetch(self, request: PrefetchRequest) -> PrefetchAnswer:
        return self._call("POST", "/v1/prefetch", request)

    def append_events(self, user_id: str, request: EventsRequest) -> EventsAnswer:
        return self._call("POST", f"/v1/users/{quote(user_id, safe='')}/events", request)

    def user(self, user_id: str) -> UserAnswer:
        return self._call("GET", f"/v1/users/{quote(user_id, safe='')}")

    def forget(self, user_id: str) -> None:
        self._call("DELETE", f"/v1/users/{quote(user_id, safe='')}")

    def models(self) -> ModelList:
        return self._call("GET", "/v1/models")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = dict(self._headers)
        if data is not None:
            headers["content-type"] = "application/json"
        connection = getattr(self._local, "connection", None)
        is_new = connection is None
        if is_new:
            connection = self._local.connection = self._connect()
        try:
            connection.request(method, self._base + path, data, headers)
            response = connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            self._local.connection = None
            # A kept-alive connection that the server closed meanwhile; every call may be repeated.
            if is_new or isinstance(error, TimeoutError):
                raise
            return self._call(method, path, body)
        if response.status < 400:
            return None if text == b"" else json.loads(text)
        raise PeregrineError(response.status, _problem(text), response.getheader("retry-after"))


def _problem(text: bytes) -> Mapping[str, Any]:
    """A proxy in between may answer anything."""
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return problem
    message = text[:200].decode(errors="replace")
    return {"code": "UNREADABLE", "message": f"no answer of Peregrine's: {message}"}
