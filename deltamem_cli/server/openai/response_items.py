"""A reply as the items of OpenAI's Responses interface, and as the events that tell of them one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deltamem_cli.session.thinking import Thought
from deltamem_cli.session.tools.calls import Call
from deltamem_cli.store.ids import new_id

Item = dict[str, Any]


class Items:
    """What was thought, said and called, as it comes. Every method yields events to be sent; whole ones are in `done`."""

    def __init__(self) -> None:
        self.done: list[Item] = []
        self._open: Item | None = None
        self._number = -1

    def event(self, kind: str, **more: Any) -> str:
        """A server-sent event, with the next number."""
        self._number += 1
        data = {"type": kind, "sequence_number": self._number, **more}
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

    def add(self, piece: str | Call) -> Iterator[str]:
        """The next piece of the reply."""
        if isinstance(piece, Call):
            yield from self.close()
            yield from self._call(piece)
            return
        kind = "reasoning" if isinstance(piece, Thought) else "message"
        if self._open is None or self._open["type"] != kind:
            yield from self.close()
            yield from self._begin(kind)
        assert self._open
        self._part["text"] += piece
        yield self._told("delta", delta=str(piece))

    def finish(self) -> Iterator[str]:
        """The reply is over; one that says nothing is an empty message."""
        if self._open is None and not self.done:
            yield from self._begin("message")
        yield from self.close()

    def close(self) -> Iterator[str]:
        """The item is over."""
        if self._open is None:
            return
        item, part, where = self._open, self._part, self._where
        yield self._told("done", text=part["text"])
        yield self.event("response.content_part.done", **where, part=part)
        item["status"] = "completed"
        yield self.event("response.output_item.done", output_index=where["output_index"], item=item)
        self.done.append(item)
        self._open = None

    def _begin(self, kind: str) -> Iterator[str]:
        item: Item = {"id": f"{'rs' if kind == 'reasoning' else 'msg'}_{new_id()}", "type": kind}
        if kind == "reasoning":
            item["summary"] = []
        else:
            item["role"] = "assistant"
        item.update(status="in_progress", content=[])
        yield self.event("response.output_item.added", output_index=len(self.done), item=item)
        part: Item = {"type": "reasoning_text", "text": ""}
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"].append(part)
        self._open = item
        yield self.event("response.content_part.added", **self._where, part=part)

    def _call(self, call: Call) -> Iterator[str]:
        item = {"id": f"fc_{new_id()}", "type": "function_call", "call_id": f"call_{new_id()}", "name": call.name}
        index, where = len(self.done), {"item_id": item["id"], "output_index": len(self.done)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        whole = {**item, "arguments": call.arguments, "status": "completed"}
        yield self.event("response.output_item.added", output_index=index, item=begun)
        yield self.event("response.function_call_arguments.delta", **where, delta=call.arguments)
        yield self.event("response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments)
        yield self.event("response.output_item.done", output_index=index, item=whole)
        self.done.append(whole)

    def _told(self, what: str, **more: Any) -> str:
        assert self._open
        if self._open["type"] == "message":
            return self.event(f"response.output_text.{what}", **self._where, **more, logprobs=[])
        return self.event(f"response.reasoning_text.{what}", **self._where, **more)

    @property
    def _part(self) -> dict[str, Any]:
        assert self._open
        part: dict[str, Any] = self._open["content"][0]
        return part

    @property
    def _where(self) -> Mapping[str, Any]:
        assert self._open
        return {"item_id": self._open["id"], "output_index": len(self.done), "content_index": 0}
