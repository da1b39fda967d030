"""What the model is shown of a conversation: a window that moves in big steps.

The whole history stays in the store. The window's start moves only when the window is full, and then by half of it,
so that the beginning of the prompt stays the same for many turns and the vendors' prompt caches hit.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from bot.store import Lane, Remembered, Store

CONVERSATIONS = 2000  # windows kept in memory


class Window(msgspec.Struct):
    """The turns from seq `start` to `seq`."""

    start: int
    seq: int
    turns: list[Remembered]

    @property
    def tokens(self) -> int:
        """Size of the whole window."""
        return sum(kept.tokens for kept in self.turns)


class History:
    """The windows of conversations, those in use kept in memory."""

    def __init__(self, store: Store, budget: int) -> None:
        self._store = store
        self._budget = budget
        self._windows: OrderedDict[str, Window] = OrderedDict()

    async def window(self, lane: Lane) -> Window:
        """Return the window of a lane, as the lane's row describes it."""
        known = self._windows.pop(lane.conversation, None)
        if known is not None and (known.start, known.seq) == (lane.window_start, lane.seq):
            return known
        fresh = lane.window_start > lane.seq
        turns = [] if fresh else await self._store.history(lane.conversation, lane.window_start)
        return Window(lane.window_start, lane.seq, turns)

    def fit(self, lane: Lane, window: Window, coming: int) -> None:
        """Move the start when `coming` more tokens would not fit: to half of the budget, at a person's turn."""
        if window.tokens + coming > self._budget:
            self.shrink(lane, window, max(0, self._budget // 2 - coming))

    def shrink(self, lane: Lane, window: Window, tokens: int) -> None:
        """Move the start until at most `tokens` are left."""
        drop, left = 0, window.tokens
        while drop < len(window.turns) and (left > tokens or window.turns[drop].turn.role == "assistant"):
            left -= window.turns[drop].tokens
            drop += 1
        del window.turns[:drop]
        window.start = lane.window_start = window.turns[0].seq if window.turns else lane.seq + 1

    def remember(self, lane: Lane, window: Window) -> None:
        """Keep the window for the next question."""
        window.seq = lane.seq
        self._windows[lane.conversation] = window
        if len(self._windows) > CONVERSATIONS:
            self._windows.popitem(last=False)
