"""The commands with their options. What each does is in the module of its name, imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot import __version__
from bot.cli.speech import say

app = typer.Typer(
    name="magpie",
    help=say(
        "Put an OpenAI model into the chat apps people already use.", "把 OpenAI 模型接入人们每天在用的聊天应用。"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and with them secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)


def example(*lines: str) -> str:
    """Return the end of a command's help."""
    return "\n\n".join([say("Example:", "示例："), *lines])


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help=say("Print the version.", "显示版本。"))] = False,
) -> None:
    if version:
        typer.echo(f"magpie {__version__}")
        raise typer.Exit


@app.command(
    help=say("Start the server.", "启动服务。"),
    epilog=example("magpie serve", "BOT_ADAPTERS=webchat,telegram magpie serve"),
)
def serve(
    open_browser: Annotated[
        bool,
        typer.Option("--open", help=say("Open the web chat in the browser.", "在浏览器中打开网页聊天。")),
    ] = False,
) -> None:
    from bot.cli import serve

    serve.run(open_browser)


@app.command(
    help=say("Talk to the bot in the terminal.", "在终端里和机器人聊天。"),
    epilog=example("magpie chat", 'echo "Who are you?" | magpie chat'),
)
def chat(
    user: Annotated[str, typer.Option(help=say("Whose conversation to go on with.", "继续谁的对话。"))] = "",
) -> None:
    from bot.cli import chat

    chat.run(user)


@app.command(
    help=say(
        "Ask for a platform's settings, try them, write them into .env, register the webhook.",
        "询问平台的各项设置，验证后写入 .env，并登记回调地址。",
    ),
    epilog=example(
        "magpie setup telegram", "magpie setup sales=telegram", "magpie setup telegram --set TELEGRAM_BOT_TOKEN=..."
    ),
)
def setup(
    name: Annotated[
        str, typer.Argument(help=say("An adapter, or instance=adapter.", "适配器名，或 实例名=适配器名。"))
    ],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="VARIABLE=VALUE", help=say("Answer beforehand; no questions.", "预先给出，不再提问。")
        ),
    ] = None,
) -> None:
    from bot.cli import setup

    setup.run(name, given or [])


@app.command(
    help=say(
        "Register the webhooks with their platforms, then call them through BOT_PUBLIC_URL.",
        "向各平台登记回调地址，并经 BOT_PUBLIC_URL 自测。",
    ),
    epilog=example("magpie register", "magpie register telegram"),
)
def register(
    name: Annotated[
        str, typer.Argument(help=say("One instance; without it, all.", "只处理一个实例；省略则全部。"))
    ] = "",
) -> None:
    from bot.cli import register

    register.run(name)


@app.command(
    help=say("Say what works and what does not, and what to do about it.", "逐项检查是否正常，并给出处理办法。"),
    epilog=example("magpie doctor", "magpie doctor telegram"),
)
def doctor(
    name: Annotated[
        str, typer.Argument(help=say("One instance; without it, all.", "只检查一个实例；省略则全部。"))
    ] = "",
) -> None:
    from bot.cli import doctor

    doctor.run(name)


@app.command(
    help=say("List the installed adapters and their variables.", "列出已安装的适配器及其变量。"),
    epilog=example("magpie adapters", "magpie adapters --json", "magpie adapters --env > .env.example"),
)
def adapters(
    as_json: Annotated[bool, typer.Option("--json", help=say("For machines.", "供程序读取。"))] = False,
    as_env: Annotated[
        bool, typer.Option("--env", help=say("As a commented .env file.", "输出带注释的 .env。"))
    ] = False,
) -> None:
    from bot.cli import adapters

    adapters.run(as_json, as_env)


@app.command(
    "new-adapter",
    help=say(
        "Write a new adapter with its test: in Magpie's own checkout, or as a package of your own.",
        "生成一个新的适配器及其测试：在 Magpie 源码中，或作为独立的包。",
    ),
    epilog=example("magpie new-adapter acme", "magpie new-adapter acme --into ~/projects"),
)
def new_adapter(
    name: Annotated[str, typer.Argument(help=say("Lower case, such as acme.", "小写，例如 acme。"))],
    into: Annotated[Path, typer.Option(help=say("Folder to write to.", "写入的目录。"))] = Path(),
) -> None:
    from bot.cli import new_adapter

    new_adapter.run(name, into)


@app.command(
    help=say("Copy a SQLite file's contents into PostgreSQL.", "把 SQLite 文件的内容复制到 PostgreSQL。"),
    epilog=example("magpie migrate data/magpie.db postgresql://user:password@host/name"),
)
def migrate(
    source: Annotated[
        str, typer.Argument(help=say("The file, or its sqlite:/// address.", "文件路径，或 sqlite:/// 地址。"))
    ],
    target: Annotated[str, typer.Argument(help=say("A postgresql:// address.", "postgresql:// 地址。"))],
) -> None:
    from bot.cli import migrate

    migrate.run(source, target)


inbox = typer.Typer(
    help=say("Messages that were given up: look at them, try again, drop them.", "查看、重试或丢弃已搁置的消息。"),
    no_args_is_help=True,
)
app.add_typer(inbox, name="inbox")

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help=say("As `list` shows them.", "`list` 所显示的编号。"))
]
All = Annotated[bool, typer.Option("--all", help=say("All of them.", "全部。"))]


@inbox.command(
    "list",
    help=say("List what was given up, and why.", "列出已搁置的消息及原因。"),
    epilog=example("magpie inbox list"),
)
def inbox_list() -> None:
    from bot.cli import inbox

    inbox.list_all()


@inbox.command(
    "show", help=say("Show one, with its text.", "显示一条及其内容。"), epilog=example("magpie inbox show 3f9a0c1d2e")
)
def inbox_show(
    identity: Annotated[str, typer.Argument(metavar="ID", help=say("As `list` shows it.", "`list` 所显示的编号。"))],
) -> None:
    from bot.cli import inbox

    inbox.show(identity)


@inbox.command(
    "retry",
    help=say("Try again. An answer that was written already is only delivered.", "重试。已写好的回答只会重新投递。"),
    epilog=example("magpie inbox retry 3f9a0c1d2e", "magpie inbox retry --all"),
)
def inbox_retry(ids: Ids = None, everything: All = False) -> None:
    from bot.cli import inbox

    inbox.retry(ids or [], everything)


@inbox.command(
    "drop",
    help=say("Give up for good; the text is deleted.", "彻底放弃，内容会被删除。"),
    epilog=example("magpie inbox drop 3f9a0c1d2e"),
)
def inbox_drop(ids: Ids = None, everything: All = False) -> None:
    from bot.cli import inbox

    inbox.drop(ids or [], everything)
