"""What one answer costs the bot: CPU per request and per chunk, our reading beside the SDK's stream objects.

    python -m benchmarks.model_stream [--rounds 7] [--at-once 50] [--chunks 100] [--every 0.02]

A server in a process of its own streams the same chunks to both, one every 20 ms; the two sides take turns, so a busy
machine slows both. Only this process's CPU time is counted. "request" is an answer of one chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection

import openai
import uvloop
from openai.types.chat import ChatCompletionMessageParam

from bot.adapter import Turn
from bot.config import ModelSettings
from bot.model import Model, create

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAME = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp",'
    b'"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}],"usage":null}\n\n'
)
WORD = FRAME % (b'{"content":"word "}', b"null")
LAST = FRAME % (b"{}", b'"stop"') + b"data: [DONE]\n\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, every: float) -> None:
    """Answer every request of a connection with as many chunks as its model's name says."""
    while await reader.readline():
        size = 0
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.lower().partition(b":")
            size = int(value) if name == b"content-length" else size
        body = await reader.readexactly(size)
        chunks = int(body.partition(b'"model":"')[2].partition(b'"')[0])
        writer.write(HEAD)
        for data in [*[WORD] * chunks, LAST]:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await asyncio.sleep(every)
        writer.write(b"0\r\n\r\n")


def serve(port: Connection, every: float) -> None:
    """Run the server and tell its port."""

    async def main() -> None:
        server = await asyncio.start_server(partial(answer, every=every), "127.0.0.1", 0, limit=1 << 20)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


Side = Callable[[Sequence[Turn], int], Awaitable[int]]


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Side]:
    """Read answers our way; each is `chunks` long."""
    models: dict[int, Model] = {}

    async def ask(turns: Sequence[Turn], chunks: int) -> int:
        if chunks not in models:
            settings = {"api_key": ("sk-x",), "base_url": url, "model": str(chunks)}
            models[chunks] = create(ModelSettings.model_validate(settings))
        return sum([len(text) async for text in models[chunks].ask(turns)])

    yield ask
    for model in models.values():
        await model.close()


@asynccontextmanager
async def sdk(url: str) -> AsyncIterator[Side]:
    """Read answers by the SDK's own stream objects, on the same HTTP library."""
    http = openai.DefaultAioHttpClient(timeout=60)
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=url, max_retries=0, http_client=http) as client:

        async def ask(turns: Sequence[Turn], chunks: int) -> int:
            messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": turn.content} for turn in turns]
            stream = await client.chat.completions.create(
                model=str(chunks), messages=messages, stream=True, stream_options={"include_usage": True}
            )
            return sum([len(chunk.choices[0].delta.content or "") async for chunk in stream if chunk.choices])

        yield ask


async def cpu(side: Side, turns: Sequence[Turn], chunks: int, at_once: int) -> float:
    """Return the CPU time of one answer in microseconds."""
    before = time.process_time()
    lengths = await asyncio.gather(*(side(turns, chunks) for _ in range(at_once)))
    assert set(lengths) == {5 * chunks}
    return (time.process_time() - before) / at_once * 1e6


async def compare(sides: Sequence[Side], history: int, chunks: int, options: argparse.Namespace) -> list[float]:
    """Let the sides take turns and return the median of each."""
    turns = [Turn("user", "What did the magpie say to the owl? " * 4)] * history
    times = [[await cpu(side, turns, chunks, options.at_once) for side in sides] for _ in range(options.rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]  # the first warms up


async def measure(url: str, options: argparse.Namespace) -> None:
    """Print what both sides cost."""
    print(f"{'CPU, microseconds':24}{'ours':>10}{'SDK':>10}")
    async with ours(url) as our, sdk(url) as their:
        for history in (101, 11):
            one = await compare([our, their], history, 1, options)
            print(f"{f'request, history {history}':24}{one[0]:10.0f}{one[1]:10.0f}")
        many = await compare([our, their], 11, options.chunks, options)
        each = [(long - short) / (options.chunks - 1) for long, short in zip(many, one, strict=True)]
        print(f"{'chunk':24}{each[0]:10.1f}{each[1]:10.1f}")


def main() -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--at-once", type=int, default=50, help="answers read at the same time")
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.02, help="seconds between chunks")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, options.every), daemon=True)
    process.start()
    uvloop.run(measure(f"http://127.0.0.1:{here.recv()}/v1", options))
    process.terminate()


if __name__ == "__main__":
    main()
