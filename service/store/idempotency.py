"""Records of idempotent writes, by their idempotency keys: scripts, and parts of the scripts that write.

A record is a hash: fingerprint; token while the write is claimed; answer, revision, position once it is made.

A claim expires, so that the death of its process does not block the key for ever. A write is made only under a claim
that still holds: each script of a write checks it, makes the write, and finishes the record, in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.errors import KeyInUse, KeyReused
from service.records import Claim, EarlierWrite, Remembered

LOST = b"lost"
"""Answer of a script whose claim has expired. Nothing was written."""
REMOVED = b"removed"
"""Answer of a script whose store was removed, or emptied. Nothing was written."""

# KEYS records; ARGV token, lease in ms, fingerprints. Claims all writes that were not made before, or none. Begins with
# a write that takes no memory and changes nothing, like FIRST_WRITE of scripts.py, so that removals work where memory
# is full.
CLAIM = """
redis.call('HDEL', KEYS[1], '')
local made = {}
for i, key in ipairs(KEYS) do
  local fingerprint, answer, revision, position =
    unpack(redis.call('HMGET', key, 'fingerprint', 'answer', 'revision', 'position'))
  if fingerprint and fingerprint ~= ARGV[i + 2] then return 'other' end
  if fingerprint and not answer then return redis.call('PTTL', key) end
  made[i] = answer and {answer, revision, position} or false
end
for i, key in ipairs(KEYS) do
  if not made[i] then
    redis.call('HSET', key, 'token', ARGV[1], 'fingerprint', ARGV[i + 2])
    redis.call('PEXPIRE', key, ARGV[2])
  end
end
return made
"""
# KEYS records; ARGV token.
RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'token') == ARGV[1] then redis.call('DEL', key) end
end
"""
# Beginning of a write's script. KEYS[3] is the store's identity. KEYS[5] is the record, and missing where nothing is
# remembered. The last arguments are token, answer, time to keep in ms, and the identity that the store must have, or
# "". `claim_lost` must come before the first write.
FUNCTIONS = """
local token, answer, kept, identity = unpack(ARGV, #ARGV - 3)
if identity ~= '' and redis.call('GET', KEYS[3]) ~= identity then return 'removed' end
local function claim_lost()
  return KEYS[5] and redis.call('HGET', KEYS[5], 'token') ~= token
end
local function remember(revision, position)
  if not KEYS[5] then return end
  redis.call('HDEL', KEYS[5], 'token')
  redis.call('HSET', KEYS[5], 'answer', answer, 'revision', revision, 'position', position)
  redis.call('PEXPIRE', KEYS[5], kept)
end
"""
# KEYS note, log, identity, events, record; ARGV revision, position, then as FUNCTIONS has it. For a write that changes
# nothing.
REMEMBER = (
    FUNCTIONS
    + """
if claim_lost() then return 'lost' end
remember(ARGV[1], ARGV[2])
return true
"""
)


def decode_claims(answer: Any, keys: Sequence[str], token: str, seconds: float) -> list[Claim]:
    """Decode the answer of CLAIM. Raises KeyReused, KeyInUse."""
    if answer == b"other":
        raise KeyReused
    if isinstance(answer, int):
        raise KeyInUse(answer / 1000)
    return [
        Claim(key, token, seconds, EarlierWrite(row[0], int(row[1]), row[2].decode()) if row else None)
        for key, row in zip(keys, answer, strict=True)
    ]


def record_arguments(remembered: Remembered | None) -> tuple[Any, ...]:
    """Return the arguments of a write's script that concern its record."""
    if remembered is None:
        return "", "", ""
    return remembered.claim.token, remembered.answer, int(remembered.claim.seconds * 1000)
