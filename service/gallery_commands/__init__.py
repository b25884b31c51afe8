"""Commands of ``seisbind gallery`` on whole galleries; `service/commands` puts them beside the others."""

__all__ = ["copies", "elsewhere", "export"]
