"""What every command prints with: tables, and a bar that counts."""

__all__ = ["console", "options"]
