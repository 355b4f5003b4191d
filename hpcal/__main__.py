"""``python -m hpcal``."""

from hpcal.cli.main import main

if __name__ == "__main__":
    main()
