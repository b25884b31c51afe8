"""Every setting is documented, and nothing is read before it is asked for."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from seisbind.model.errors import InvalidConfig
from seisbind.service.settings import Settings, read_settings

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_docs_list_every_setting_with_its_default_and_sentence() -> None:
    documented = dict(re.findall(r"^\| `(SEISBIND_\w+)` \| (.+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{str(field.default).lower()}`"
        expected[f"SEISBIND_{name.upper()}"] = f"{default} | {field.description}"
    assert documented == expected


def test_environment_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEISBIND_PORT", "1234")
    monkeypatch.setenv("SEISBIND_WRITABLE", "true")
    settings = read_settings(host="::1", port=None)
    assert (settings.host, settings.port, settings.writable) == ("::1", 1234, True)


def test_a_bad_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEISBIND_PORT", "eighty")
    with pytest.raises(InvalidConfig, match="port"):
        read_settings()


def test_the_runtime_that_is_set_is_the_one_that_runs(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="seisbind"):
        assert serve(runtime="torch").serving.embedder.runtime == "torch"
    assert "Gathers are embedded by torch on cpu." in caplog.messages
    with pytest.raises(InvalidConfig, match="runtime 'fast'"):
        serve(runtime="fast")
