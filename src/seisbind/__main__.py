"""``python -m seisbind``: the command line."""

from seisbind.service.commands.main import main

if __name__ == "__main__":
    main()
