"""A real S3 server on this machine, that fails when it is told to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["BUCKET", "S3Server"]

BUCKET = "tokens"


class S3Server:
    """Moto's server on a free port, with a bucket; faults are put in front of it.

    ``fault(method, path)`` is asked before each request: a status is answered in its place, a
    float is waited for before the server is asked, None is none.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.fault: Callable[[str, str], int | float | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        inner = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, Any], start: Any) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.requests.append((method, path))
            fault = self.fault(method, path)
            if isinstance(fault, float):
                time.sleep(fault)
            elif fault is not None:
                start(f"{fault} injected", [("Content-Type", "application/xml")])
                code = {403: "AccessDenied", 500: "InternalError"}.get(fault, "ServiceUnavailable")
                return [f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()]
            return inner(environ, start)

        self._server = make_server("127.0.0.1", 0, application, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.options = {
            "key": "any",
            "secret": "any",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        self.options["endpoint_url"] = self.endpoint

    def clear(self) -> None:
        """Forget everything but an empty bucket."""
        from urllib.request import Request, urlopen

        self.fault = lambda method, path: None
        for method, path in (("POST", "moto-api/reset"), ("PUT", BUCKET)):
            urlopen(Request(f"{self.endpoint}/{path}", method=method)).close()
        self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
