"""Bounds on each connection, and on all connections of a process: see protocol.py, which keeps them."""

from __future__ import annotations

MAX_HEAD_BYTES = 65_536
"""Bound on request line and headers together; and on the trailers of a body."""
HEAD_SECONDS = 10.0
"""Bound on the time from a connection, or from the first byte of a later request, to the end of the headers."""
SPARE_HEAD_SECONDS = 1.0
"""HEAD_SECONDS for spare connections: a caller who held all of them would keep probes away."""
BODY_SECONDS = 30.0
"""Bound on a pause within a body while the service waits for it."""
MIN_BODY_RATE = 64
"""Bytes a second that a body must reach: each byte that arrives moves the deadline by 1 / MIN_BODY_RATE seconds, to at
most BODY_SECONDS from now."""
IDLE_SECONDS = 65.0
"""How long a connection is kept between two requests: longer than balancers keep theirs, mostly 60 s."""
MAX_CONNECTIONS = 16_384
"""Bound on the connections of a process, 503 beyond; each takes about 10 KB. Fewer where the system allows fewer."""
SPARE_CONNECTIONS = 64
"""Connections beyond that bound for PATHS_WHEN_FULL: on them a request for another path is refused once its head has
come; connections beyond the spare ones are refused at once. Each is for one request. A process whose probes were
refused would be restarted, with all connections."""
PATHS_WHEN_FULL = frozenset((b"/livez", b"/startupz", b"/readyz", b"/metrics"))
SPARE_FILES = 256 + SPARE_CONNECTIONS
"""Open files that are left for the store, snapshots, logs and spare connections where the system bounds them."""
FILES_OF_TENANT = 5
"""Open files of a tenant at rest: the connections that wait for changes and for events, the lock of its snapshots, and
twice the file of its known position, of which the mapping keeps a duplicate."""
EARLY_IN_TURN = 16
"""Bound on the requests of a connection that are answered before the app has them in one turn of the event loop. A
caller may send a thousand in one piece; the others of it come one after the other, and leave others' requests room."""
MAX_PIPELINED = 32
"""Requests of a connection that may wait for the answer to an earlier one, beside those that PIECE_BYTES hold; what
follows them is neither parsed nor read."""
PIECE_BYTES = 1024
"""Bytes that are parsed together: heads of further requests may begin in them, behind a body too."""
MAX_DISCARDED_BYTES = 2**24
"""Bound on what is read of a body whose request is answered already, or will be without it; its connection ends beyond.
Up to there it is read, so that a caller who sends before reading gets the answer; an answer that was not sent by then
is lost with the connection."""
