"""What `register`, `doctor` and `setup` print: headings, ✓ and ✗ lines with advice; whether all is well."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

import typer

from bot.adapter import Finding
from bot.cli.speech import say
from bot.errors import PlatformError
from bot.log import redact


class Report:
    """Prints findings as they come. `ok` until one of them is not."""

    def __init__(self) -> None:
        self.ok = True

    def heading(self, text: str) -> None:
        """Begin a section."""
        typer.secho(f"\n{text}", bold=True)

    def note(self, text: str) -> None:
        """Say something that is neither good nor bad."""
        typer.echo(f"  · {redact(text)}")

    def add(self, findings: Iterable[Finding]) -> None:
        """Print findings and remember whether one is bad."""
        for finding in findings:
            self.ok &= finding.ok
            mark, colour = ("✓", typer.colors.GREEN) if finding.ok else ("✗", typer.colors.RED)
            typer.echo(f"  {typer.style(mark, fg=colour)} {redact(finding.what)}")
            if finding.advice and not finding.ok:
                typer.echo(f"    → {redact(finding.advice)}")

    def end(self) -> None:
        """Leave with exit code 1 when something was wrong."""
        if not self.ok:
            raise typer.Exit(1)


async def asked(findings: Awaitable[list[Finding]]) -> list[Finding]:
    """Return what an adapter found; that its platform cannot be reached is a finding, too."""
    try:
        return await findings
    except PlatformError as error:
        advice = say("see the platform's status page and the settings", "请查看平台状态页与各项设置")
        return [Finding(False, str(error), advice)]


def fail(problems: Iterable[str], code: int = 2) -> typer.Exit:
    """Print problems to standard error; the returned exception ends the program."""
    for problem in problems:
        typer.echo(f"{typer.style('✗', fg=typer.colors.RED)} {redact(problem)}", err=True)
    return typer.Exit(code)
