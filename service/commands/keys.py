"""``seisbind key …``: make the keys that callers of a server send."""

from __future__ import annotations

from typing import Annotated

import typer

from seisbind.service.transport.keys import Scope, make_key

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make API keys."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; logs say it.")],
    scope: Annotated[Scope, typer.Option(help="read, or write: also change the gallery.")] = Scope.READ,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a new key, which is kept nowhere, and the line that makes a server know it."""
    import json

    secret, key = make_key(name, scope)
    if as_json:
        print(json.dumps({"key": secret, "line": key.line}))
        return
    print(f"Key, shown this once; the caller sends 'Authorization: Bearer KEY':\n{secret}")
    print(f"Line for SEISBIND_API_KEYS or the file of SEISBIND_API_KEYS_FILE:\n{key.line}")
