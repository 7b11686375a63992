"""QuotaStore on Redis: one hash a key, shared by all replicas.

    {access}:quota:<prefix>  hash  minute; requests and tokens of it, and of the minute before it

It expires two minutes after its last use, or once the tokens beyond the quota have left the window (quota.py).
"""

from __future__ import annotations

from service.access.principal import Quota
from service.access.quota import WINDOW_SECONDS, Usage, WindowCount
from service.store.connection import Connection
from service.store.scripts import FIRST_WRITE

QUOTA = "{access}:quota:"

# KEYS quota; ARGV bound on requests or "", bound on tokens or "", requests and tokens to count, seconds of a window, 1
# if the requests can use tokens, else 0. The script uses the server's clock: those of replicas may differ. Tokens are
# counted when they are used, whatever the bound, and those beyond it are carried over (`carry_over` of quota.py);
# requests only where the bounds leave room for all of them, and at least for one. Counts are not written to the
# append-only file, which a server with appendfsync always would sync for each request: after a restart they begin again
# at 0, or at their values in the last rewrite of the file. Quotas must hold where memory is full, too: otherwise a
# caller that fills it would have no quota (FIRST_WRITE).
COUNT = (
    "redis.set_repl(redis.REPL_NONE)\n"
    + FIRST_WRITE
    + """
local time, window = redis.call('TIME'), tonumber(ARGV[5])
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local minute = math.floor(now / window)
local elapsed = now - minute * window
local row = redis.call('HMGET', KEYS[1], 'minute', 'requests', 'tokens', 'requests_before', 'tokens_before')
local requests, tokens = tonumber(row[2]) or 0, tonumber(row[3]) or 0
local requests_before, tokens_before = tonumber(row[4]) or 0, tonumber(row[5]) or 0
local most_requests, most_tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local minutes = minute - (tonumber(row[1]) or minute)
if minutes > 0 then
  requests_before, requests = minutes == 1 and requests or 0, 0
  local drained = most_tokens or tokens
  local left = math.max(0, tokens - minutes * drained)
  tokens_before, tokens = math.max(0, tokens - (minutes - 1) * drained) - left, left
end
local share = 1 - elapsed / window
local taken = tonumber(ARGV[3])
local allowed = (not most_requests or requests_before * share + requests + math.max(1, taken) <= most_requests)
  and (ARGV[6] == '0' or not most_tokens or tokens_before * share + tokens + 1 <= most_tokens)
if allowed then requests = requests + taken end
tokens = tokens + tonumber(ARGV[4])
redis.call('HSET', KEYS[1], 'minute', minute, 'requests', requests, 'tokens', tokens,
  'requests_before', requests_before, 'tokens_before', tokens_before)
redis.call('EXPIRE', KEYS[1], window * (1 + math.max(1, most_tokens and math.ceil(tokens / most_tokens) or 1)))
return {allowed and 1 or 0, requests_before, requests, tokens_before, tokens, math.floor(elapsed * 1000)}
"""
)


class RedisQuotaStore:
    """QuotaStore on Redis."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def count(self, key: str, quota: Quota, requests: int, tokens: int, *, spends_tokens: bool = True) -> Usage:
        bounds = ("" if bound is None else bound for bound in (quota.requests_per_minute, quota.tokens_per_minute))
        arguments = (*bounds, requests, tokens, WINDOW_SECONDS, int(spends_tokens))
        async with self._connection.call("count"):
            answer = await self._connection.redis.eval(COUNT, 1, QUOTA + key, *arguments)
        allowed, requests_before, requests_now, tokens_before, tokens_now, milliseconds = answer
        elapsed = milliseconds / 1000
        return Usage(
            bool(allowed),
            WindowCount(requests_before, requests_now, elapsed),
            WindowCount(tokens_before, tokens_now, elapsed, quota.tokens_per_minute),
        )
