"""Names of the Redis keys of one tenant's notes.

    <prefix>note:<id>   hash    document, vector, space, revision, position: see document.py
    <prefix>log         stream  position -> id, op (put, delete, purge, restore), by (process and number of a put)
    <prefix>samples     string  "loading" from before the first sample note is added, "1" once no more are to be
    <prefix>identity    string  random; of the default tenant made when it is first asked for, else with the tenant
    <prefix>snapshots   hash    replica -> log position of its snapshot, and the time it was made
    <prefix>list:<id>   list    a ranked list that is kept for its pages
    <prefix>lists       zset    key of a list -> when it ends: see ranked_lists.py
    <prefix>once:<key>  hash    a write that takes place once: see idempotency.py
    <prefix>events      stream  what readers did with notes: see events.py
    <prefix>events:ids, <prefix>events:ids:old
                        set     digests of the ids of events that were accepted; the older one ends by itself
    <prefix>events:salt string  random; the readers' names are digests under it

The prefix is {notes}: for the default tenant, and {notes}:tenant:<name>: for another one. All keys share the hash tag
{notes}: one slot on Redis Cluster, so that a script may touch note and log together. tenants.py has what concerns all
tenants; connection.py says what {notes}:touched (TOUCHED) is for.
"""

from __future__ import annotations

from service.access.principal import DEFAULT_TENANT, TENANT

HASH_TAG = "{notes}:"
TOUCHED = f"{HASH_TAG}touched"
"""Key of a write that is made only to wait for the disk; it expires at once."""
TENANT_PATTERN = rb"(?:tenant:[^:]*:)?"
"""Pattern of the rest of a prefix, after the hash tag: empty for the default tenant."""


class RedisKeys:
    """Names of the keys of one tenant. Raises ValueError for a name that is none of a tenant."""

    def __init__(self, tenant: str = DEFAULT_TENANT) -> None:
        if not TENANT.fullmatch(tenant):
            raise ValueError(f"{tenant!r} is not a valid name of a tenant")
        self.tenant = tenant
        self.prefix = HASH_TAG if tenant == DEFAULT_TENANT else f"{HASH_TAG}tenant:{tenant}:"
        self.note = f"{self.prefix}note:"
        self.log = f"{self.prefix}log"
        self.samples = f"{self.prefix}samples"
        self.identity = f"{self.prefix}identity"
        self.snapshots = f"{self.prefix}snapshots"
        self.record = f"{self.prefix}once:"
        self.events = f"{self.prefix}events"
        self.event_ids = f"{self.prefix}events:ids"
        self.old_event_ids = f"{self.prefix}events:ids:old"
        self.event_salt = f"{self.prefix}events:salt"
        self.list = f"{self.prefix}list:"
        self.lists = f"{self.prefix}lists"


DEFAULT_KEYS = RedisKeys()
NOTE, LOG, IDENTITY, SNAPSHOTS, RECORD = (
    DEFAULT_KEYS.note,
    DEFAULT_KEYS.log,
    DEFAULT_KEYS.identity,
    DEFAULT_KEYS.snapshots,
    DEFAULT_KEYS.record,
)
"""Keys of the default tenant, for tests and measurements that look into Redis."""
