"""What an operator types: `commands.py` lists it, a module beside it does it."""


def main() -> None:
    """Run the command line."""
    from bot.cli.commands import app

    app()
