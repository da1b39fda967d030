"""`make bench`: Magpie beside minimal bots on aiogram, python-telegram-bot and slack_bolt, interleaved in one run.

Each bot has one core, the world around it (platform, model, people) another. Medians of several rounds and the ratio
to the best peer are printed as Markdown tables and drawn as docs/benchmarks.png. Machines are noisy: believe ratios.

    python -m benchmarks.run [--rounds 3] [--seconds 6] [--only talk,streams,...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS = ROOT / ".venv-peers"
BOTS = ["magpie", "aiogram", "ptb", "bolt"]
SCRIPTS = {"aiogram": "aiogram_bot.py", "ptb": "ptb_bot.py", "bolt": "bolt_bot.py"}
Result = dict[str, float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peers_python() -> str:
    """Return the interpreter of the peers' own environment, installed at the first use."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        print(f"installing the peers into {PEERS.name} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        requirements = str(HERE / "peers" / "requirements.txt")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", requirements], check=True)
    return str(python)


def pinned(core: int) -> Any:
    """Return what makes a child process stay on one core."""
    cores = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {cores[core % len(cores)]})


class Bench:
    """One measurement: a bot on one core, the world on another."""

    def __init__(self, bot: str, directory: str, history: int = 0, env: dict[str, str] | None = None) -> None:
        self.bot = bot
        self.ports = [free_port() for _ in range(3)]
        self.directory = directory
        self.history = history
        self.extra = env or {}

    def command(self) -> list[str]:
        if self.bot == "magpie":
            return [sys.executable, "-m", self.extra.get("MODULE", "bot"), "serve"]
        return [peers_python(), str(HERE / "peers" / SCRIPTS[self.bot])]

    def env(self) -> dict[str, str]:
        port, platform, model = self.ports
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PORT": str(port),
            "HISTORY": str(self.history),
            "MODEL_URL": f"http://127.0.0.1:{model}/v1",
            "PLATFORM_URL": f"http://127.0.0.1:{platform}",
            "BOT_PORT": str(port),
            "BOT_ADAPTERS": "telegram",
            "BOT_LOG": "json",
            "BOT_DATABASE_URL": f"sqlite:///{self.directory}/magpie.db",
            "BOT_SYSTEM_PROMPT": "-",
            "BOT_HISTORY_TOKENS": str(max(4000, self.history * 40)),
            "BOT_USER_MESSAGES_PER_MINUTE": "0",
            "BOT_USER_TOKENS_PER_DAY": "0",
            "BOT_TOKENS_PER_DAY": "0",
            "BOT_MAX_CONCURRENT": "2000",
            "TELEGRAM_BOT_TOKEN": "1:AAbench_token",
            "TELEGRAM_WEBHOOK_SECRET": "bench-secret",
            "TELEGRAM_API_BASE": f"http://127.0.0.1:{platform}",
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{model}/v1",
            "OPENAI_MODEL": "m",
            **self.extra,
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the bot and wait until it listens."""
        log = open(f"{self.directory}/{self.bot}.log", "wb")  # noqa: SIM115
        bot = subprocess.Popen(
            self.command(), env=self.env(), cwd=self.directory, stdout=log, stderr=log, preexec_fn=pinned(0)
        )
        try:
            deadline = time.time() + 60
            while not _listens(self.ports[0]):
                if bot.poll() is not None or time.time() > deadline:
                    raise RuntimeError(Path(log.name).read_text()[-2000:])
                time.sleep(0.02)
            yield bot
        finally:
            bot.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                bot.wait(10)
            bot.kill()
            bot.wait()
            log.close()

    def measure(self, **plan: Any) -> Result:
        """Run a plan of benchmarks/world.py against the bot."""
        plan |= {"port": self.ports[0], "platform_port": self.ports[1], "model_port": self.ports[2]}
        plan["platform"] = "slack" if self.bot == "bolt" else "telegram"
        with self._world(plan) as (world, tell), self.running() as bot:
            time.sleep(1.5)  # imports that go on beside the first requests
            tell(bot.pid)
            line = world.stdout.readline() if world.stdout else b""
            if not line:
                raise RuntimeError(f"the world ended: {Path(self.directory, f'{self.bot}.log').read_text()[-1500:]}")
            return json.loads(line)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _world(self, plan: dict[str, Any]) -> Iterator[Any]:
        world = subprocess.Popen(
            [sys.executable, str(HERE / "world.py"), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=pinned(1),
        )
        assert world.stdout is not None
        assert world.stdin is not None
        world.stdout.readline()

        def tell(pid: int) -> None:
            world.stdin.write(f"{pid}\n".encode())  # type: ignore[union-attr]
            world.stdin.flush()  # type: ignore[union-attr]

        try:
            yield world, tell
        finally:
            world.kill()
            world.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def one(bot: str, *, history: int = 0, stored: int = 0, env: dict[str, str] | None = None, **plan: Any) -> Result:
    """Measure a bot once, from a fresh directory. `stored`: messages already in Magpie's database."""
    with TemporaryDirectory(prefix="bench-") as directory:
        bench = Bench(bot, directory, history, env)
        if bot == "magpie" and (history or stored):
            seed = [sys.executable, str(HERE / "seed.py"), f"{directory}/magpie.db", str(history), str(stored)]
            subprocess.run(seed, check=True, env=bench.env())
        return bench.measure(**plan)


# -- the figures ------------------------------------------------------------------------------------------------------


def talk(seconds: float) -> dict[str, Result]:
    """Webhook to posted reply, the model at once, 50 people."""
    return {bot: one(bot, kind="talk", people=50, seconds=seconds, warm=1) for bot in BOTS}


def history(seconds: float) -> dict[str, Result]:
    """The same with 100 messages of history in the prompt."""
    return {bot: one(bot, history=100, kind="talk", people=50, seconds=seconds, warm=1) for bot in BOTS}


def crowd(seconds: float) -> dict[str, Result]:
    """1,000 people at once, a model that takes a second."""
    return {bot: one(bot, kind="talk", people=1000, seconds=seconds * 2, delay=1.0) for bot in BOTS}


def ack(seconds: float) -> dict[str, Result]:
    """The acknowledgement alone: stored with fsync, and the same handler storing nothing."""
    env = {"BOT_MAX_CONCURRENT": "1"}
    plan: dict[str, Any] = {"kind": "acks", "people": 64, "seconds": seconds, "delay": 1000}
    return {
        "magpie": one("magpie", env=env, **plan),
        "storing nothing": one("magpie", env=env | {"MODULE": "benchmarks.unstored"}, **plan),
    }


def streams(seconds: float) -> dict[str, Result]:
    """Many answers at 50 tokens a second: are they late?"""
    plan: dict[str, Any] = {"kind": "streams", "rate": 50, "tokens": int(50 * max(seconds, 6)), "delay": 0.2}
    results = {f"magpie, {count}": one("magpie", people=count, **plan) for count in (200, 400, 800)}
    for count in (50, 100, 200):
        results[f"aiogram, {count}"] = one("aiogram", env={"STREAM": "1"}, people=count, **plan)
    return results


def waiting(seconds: float) -> dict[str, Result]:
    """20,000 messages arrive while the model is slow: the wait is in the inbox."""
    env = {"BOT_MAX_CONCURRENT": "64"}
    return {"magpie": one("magpie", env=env, kind="fill", people=50, count=20_000, delay=1000)}


def stored(seconds: float) -> dict[str, Result]:
    """A million messages are stored already."""
    plan: dict[str, Any] = {"kind": "talk", "people": 50, "seconds": seconds, "warm": 1}
    return {"empty": one("magpie", **plan), "a million": one("magpie", stored=1_000_000, **plan)}


def start(seconds: float) -> dict[str, Result]:
    """From the process's start to the first acknowledgement; memory when nothing happens."""
    with TemporaryDirectory(prefix="bench-") as directory:
        bench = Bench("magpie", directory)
        begun = time.perf_counter()
        with bench.running() as bot:
            request = urllib.request.Request(
                f"http://127.0.0.1:{bench.ports[0]}/webhooks/telegram",
                data=b'{"update_id": 1}',
                headers={"X-Telegram-Bot-Api-Secret-Token": "bench-secret"},
            )
            with urllib.request.urlopen(request):
                first = time.perf_counter() - begun
            time.sleep(3)
            status = Path(f"/proc/{bot.pid}/status").read_text()
            memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return {"magpie": {"first_ack": first, "memory_mb": memory}}


FIGURES = {f.__name__: f for f in (talk, history, crowd, ack, streams, waiting, stored, start)}
COLUMNS = {
    "rate": ("messages/s", 1, "{:.0f}"),
    "cpu_us": ("CPU/message (µs)", 1, "{:.0f}"),
    "wait_p50": ("wait p50 (ms)", 1000, "{:.1f}"),
    "wait_p99": ("wait p99 (ms)", 1000, "{:.1f}"),
    "ack_p50": ("ack p50 (ms)", 1000, "{:.1f}"),
    "ack_p99": ("ack p99 (ms)", 1000, "{:.1f}"),
    "first_p50": ("first words p50 (ms)", 1000, "{:.1f}"),
    "first_p99": ("first words p99 (ms)", 1000, "{:.1f}"),
    "late_p99": ("end late by p99 (ms)", 1000, "{:.0f}"),
    "cpu_share": ("core used", 100, "{:.0f} %"),
    "answered": ("answered", 1, "{:.0f}"),
    "lost": ("lost", 1, "{:.0f}"),
    "memory_mb": ("memory (MB)", 1, "{:.0f}"),
    "grown_mb": ("grown (MB)", 1, "{:.1f}"),
    "first_ack": ("first ack (s)", 1, "{:.2f}"),
}
SHOWN = {
    "talk": ["rate", "cpu_us", "wait_p50", "wait_p99", "ack_p99"],
    "history": ["rate", "cpu_us", "wait_p50", "ack_p99"],
    "crowd": ["rate", "wait_p50", "wait_p99", "ack_p50", "ack_p99", "lost"],
    "ack": ["rate", "cpu_us", "ack_p50", "ack_p99"],
    "streams": ["answered", "first_p50", "first_p99", "late_p99", "cpu_share"],
    "waiting": ["rate", "ack_p99", "memory_mb", "grown_mb"],
    "stored": ["rate", "cpu_us", "wait_p50"],
    "start": ["first_ack", "memory_mb"],
}


def median(rounds: list[dict[str, Result]]) -> dict[str, Result]:
    gathered: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for results in rounds:
        for bot, result in results.items():
            for name, value in result.items():
                gathered[bot][name].append(value)
    return {bot: {name: statistics.median(values) for name, values in of.items()} for bot, of in gathered.items()}


def table(name: str, results: dict[str, Result]) -> str:
    shown = SHOWN[name]
    lines = [f"### {name}: {(FIGURES[name].__doc__ or '').strip()}", ""]
    lines.append("| | " + " | ".join(COLUMNS[column][0] for column in shown) + " |")
    lines.append("|---|" + "---:|" * len(shown))
    for bot, result in results.items():
        cells = [COLUMNS[column][2].format(result.get(column, float("nan")) * COLUMNS[column][1]) for column in shown]
        lines.append(f"| {bot} | " + " | ".join(cells) + " |")
    peers = [result for bot, result in results.items() if bot in SCRIPTS]
    if peers and "magpie" in results:
        best_rate = max(peer["rate"] for peer in peers)
        least_cpu = min(peer["cpu_us"] for peer in peers)
        least_ack = min(peer["ack_p99"] for peer in peers)
        mine = results["magpie"]
        ratios = [
            f"{mine['rate'] / best_rate:.1f} x the messages of the fastest peer",
            f"{mine['cpu_us'] / least_cpu:.2f} of its CPU a message",
            f"{mine['ack_p99'] / least_ack:.2f} of the best ack p99",
        ]
        lines += ["", "Magpie: " + ", ".join(ratios) + "."]
    if name == "ack":
        mine, bare = results["magpie"], results["storing nothing"]
        lines += ["", f"Durable: {mine['rate'] / bare['rate']:.2f} of the rate, "
                  f"{bare['cpu_us'] / mine['cpu_us']:.2f} as bare CPU over durable CPU."]  # fmt: skip
    if name == "stored":
        ratio = results["a million"]["cpu_us"] / results["empty"]["cpu_us"]
        lines += ["", f"{ratio:.2f} x the CPU per message with a million stored."]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, Result]], file: Path) -> None:
    """Draw messages a second and CPU per message side by side, with the peers' own matplotlib."""
    names = [name for name in ("talk", "history") if name in results]
    if not names:
        return
    script = HERE / "plot.py"
    data = json.dumps({name: results[name] for name in names})
    subprocess.run([peers_python(), str(script), str(file)], input=data.encode(), check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default=",".join(FIGURES))
    parser.add_argument("--plot", default=str(ROOT / "docs" / "benchmarks.png"))
    options = parser.parse_args()
    rounds: defaultdict[str, list[dict[str, Result]]] = defaultdict(list)
    for number in range(options.rounds):
        for name in options.only.split(","):
            if number and name in ("stored", "start", "waiting"):
                continue
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            rounds[name].append(FIGURES[name](options.seconds))
    results = {name: median(found) for name, found in rounds.items()}
    for name, result in results.items():
        print(table(name, result), flush=True)
    plot(results, Path(options.plot))


if __name__ == "__main__":
    main()
