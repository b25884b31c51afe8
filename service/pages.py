"""A small honest page at /: what is served, and which calls there are. It loads nothing from anywhere."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from html import escape
from typing import Any

from seisbind.index import GalleryInfo

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:3rem auto;padding:0 1rem;color:#1b2733}"
    "code,pre{font:14px/1.5 ui-monospace,monospace;background:#f2f5f8;border-radius:4px}"
    "code{padding:.1em .3em}pre{padding:.8rem;overflow-x:auto}"
    "table{border-collapse:collapse;width:100%}td{border-top:1px solid #dde4ea;padding:.35rem .8rem .35rem 0;"
    "vertical-align:top}td:first-child{white-space:nowrap}"
)

_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# of the page: its own style, known by its hash, and nothing else from anywhere
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def landing(info: GalleryInfo, api: dict[str, Any]) -> str:
    """The page, as HTML."""
    calls = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', '').splitlines()[0])}</td></tr>"
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    )
    families = ", ".join(f"{escape(name)} {count}" for name, count in info.families.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SeisBind</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>SeisBind {escape(api["info"]["version"])}</h1>
<p>Seismic shot gathers in; the velocity models that go with them, and the physics of the ground, out.</p>
<p>Serving the gallery <b>{escape(info.path.resolve().name)}</b> with {info.count} velocity models
({families or "without families"}), made with weights <code>{escape(info.fingerprint)}</code>.</p>
<pre>curl -F file=@gather.npy -F top_k=3 http://…/v1/retrieve</pre>
<table>{calls}</table>
<p>The description for programs: <a href="/openapi.json">/openapi.json</a>.</p>
</body></html>
"""
