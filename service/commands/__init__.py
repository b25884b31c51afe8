"""The command line: `seisbind …`, a module for each group of commands.

Each command is thin: it reads options, calls what does the work, and prints a table or JSON.
"""

__all__ = ["main"]
