"""API keys: made at random, kept as hashes, compared in constant time.

A key is 256 random bits, so its SHA-256 cannot be turned back by trying keys, and needs no salt: no two are alike. The
slow hashes (scrypt, Argon2) are for passwords, which people choose from a few million; here they would cost each
request 50 ms of a core, which anybody could spend by sending wrong keys.

A key is sent as ``Authorization: Bearer KEY`` (RFC 6750) and in no other way: proxies, caches and log filters know
that header for a secret, and every client and scraper can set it. ``X-API-Key`` is a header like any other to them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from seisbind.model.errors import InvalidConfig, KeyRequired, KeyUnknown

if TYPE_CHECKING:  # making a key needs no settings
    from seisbind.service.settings import Settings

PREFIX = "seisbind_"  # by which scanners for leaked secrets know one
SECRET_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")
FORM = "NAME:read:HASH or NAME:write:HASH, as 'seisbind key new' prints it"


class Scope(StrEnum):
    """What a key may do; WRITE includes READ."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call. ``digest``: the key's SHA-256, 64 hexadecimal digits."""

    name: str
    scope: Scope
    digest: str

    @property
    def line(self) -> str:
        """As ``SEISBIND_API_KEYS`` and the file hold it."""
        return f"{self.name}:{self.scope}:{self.digest}"


class Keys:
    """The keys of a server. An empty one means that everybody may call."""

    def __init__(self, keys: tuple[ApiKey, ...] = ()) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: list[bytes]) -> ApiKey:
        """The key in a request's ``Authorization`` headers. Every key is compared, whichever it is.

        Raises:
            KeyRequired: there is not exactly one, with a Bearer key.
            KeyUnknown: this server has no such key.
        """
        scheme, _, secret = (authorization[0] if len(authorization) == 1 else b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secret.strip():
            raise KeyRequired("This call needs an API key: send it once, as 'Authorization: Bearer KEY'.")
        digest = _digest(secret.strip())
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise KeyUnknown("This server does not know the API key that was sent. Ask its operator for one.")
        return found[0]


def make_key(name: str, scope: Scope) -> tuple[str, ApiKey]:
    """A new key, and what is kept of it.

    Raises:
        InvalidConfig: a name that is no name.
    """
    if not NAME.fullmatch(name):
        raise InvalidConfig(f"A key's name has 1 to 64 letters, digits and . _ - (it goes into logs); got {name!r}.")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    return secret, ApiKey(name, scope, _digest(secret.encode()))


def read_keys(settings: Settings) -> Keys:
    """The keys of ``SEISBIND_API_KEYS`` and of the file that ``SEISBIND_API_KEYS_FILE`` names.

    Raises:
        InvalidConfig: one that cannot be read, or a place for keys without any: that opens no server. What is written
            there is not repeated, as it may be a key.
    """
    keys: list[ApiKey] = []
    if settings.api_keys is not None:
        keys += _parse(settings.api_keys.get_secret_value().replace(",", "\n"), "SEISBIND_API_KEYS")
    if settings.api_keys_file is not None:
        try:
            text = settings.api_keys_file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise InvalidConfig(f"SEISBIND_API_KEYS_FILE {settings.api_keys_file} cannot be read: {reason}.") from error
        keys += _parse(text, f"SEISBIND_API_KEYS_FILE {settings.api_keys_file}")
    return Keys(_distinct(keys))


def _parse(text: str, where: str) -> list[ApiKey]:
    keys = []
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        name, _, rest = line.partition(":")
        scope, _, digest = rest.partition(":")
        if not NAME.fullmatch(name) or scope not in list(Scope) or not DIGEST.fullmatch(digest):
            raise InvalidConfig(f"{where}: entry {number} is no key; expected {FORM}.")
        keys.append(ApiKey(name, Scope(scope), digest))
    if not keys:
        raise InvalidConfig(f"{where} is set and holds no key. Unset it to serve everybody, or add {FORM}.")
    return keys


def _distinct(keys: list[ApiKey]) -> tuple[ApiKey, ...]:
    names = [key.name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidConfig(f"Two API keys are called {twice!r}; logs could not tell them apart.")
    return tuple(keys)


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
