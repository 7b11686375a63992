"""PausableFlow: keeps a connection from being read while what was read waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from service.api.protocol import BoundedProtocol


class PausableFlow(FlowControl):
    """Flow control that does not resume reading while bytes that were read wait to be parsed, or enough of a body waits
    for an earlier answer. uvicorn resumes with each answer, and whenever the app asks whether its caller is still
    connected."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        if not self._protocol.has_read_ahead:
            super().resume_reading()
