"""`python -m bot` is `magpie`."""

from bot.cli import main

if __name__ == "__main__":
    main()
