"""Bounds on each connection, and on all connections of a process; protocol.py enforces them."""

from __future__ import annotations

MAX_HEAD_BYTES = 65_536
"""Bound on request line and headers together; and on the trailers of a body."""
MAX_HEADERS = 200
"""Bound on the header fields of a request, trailers included. A field takes about 180 bytes of memory, and an idle
connection keeps the last head."""
MAX_QUERY_PARAMETERS = 2048
"""Bound on the parameters of a query: parsing 32,000 would hold the event loop. A search has up to a thousand
`exclude`."""
HEAD_SECONDS = 10.0
"""Bound on the time from opening a connection, or from the first byte of a later request, to the end of the headers."""
SPARE_HEAD_SECONDS = 1.0
"""HEAD_SECONDS of a spare connection: short, since callers holding all of them would block probes."""
BODY_SECONDS = 30.0
"""Bound on a pause within a body while the service waits for it."""
MIN_BODY_RATE = 64
"""Minimum rate of a body, in bytes a second: each byte that arrives moves the deadline by 1 / MIN_BODY_RATE seconds, to
at most BODY_SECONDS from now."""
IDLE_SECONDS = 65.0
"""Seconds that an idle connection is kept between two requests: longer than load balancers keep theirs, mostly 60 s."""
MAX_CONNECTIONS = 16_384
"""Bound on the connections of a process, 503 beyond; each takes about 10 KB. Lower if the system allows fewer open
files."""
SPARE_CONNECTIONS = 64
"""Connections beyond MAX_CONNECTIONS, for PATHS_WHEN_FULL: a request for another path is refused once its head has
arrived, and connections beyond the spare ones are refused at once. Each serves one request. Without them probes would
be refused, and the process restarted with all its connections."""
PATHS_WHEN_FULL = frozenset((b"/livez", b"/startupz", b"/readyz", b"/metrics"))
SPARE_FILES = 256 + SPARE_CONNECTIONS
"""Open files that are reserved for the store, snapshots, logs and spare connections if the system bounds open files."""
FILES_OF_TENANT = 5
"""Open files of an idle tenant: the two connections that wait for changes and for events, the lock of its snapshots,
and the file of its known position twice, since its memory mapping keeps a duplicate."""
MAX_EARLY_PER_ITERATION = 16
"""Maximum requests of a connection that are answered before they reach the app, in one iteration of the event loop. A
caller may send a thousand in one piece; the rest go through the app one after the other, which lets requests of other
callers run in between."""
MAX_PIPELINED = 32
"""Requests of a connection that may wait for the answer to an earlier one, in addition to those in the last PIECE_BYTES
parsed; what follows them is neither parsed nor read."""
PIECE_BYTES = 1024
"""Bytes that are parsed in one step. They may contain the heads of further requests, also after the end of a body."""
MAX_DISCARDED_BYTES = 2**24
"""Bound on the bytes read of a body whose request is answered already, or will be without it; beyond it the connection
is closed. Up to there the body is read, so that a caller who sends all of it before reading gets the answer; an answer
that has not been sent by then is lost with the connection."""
