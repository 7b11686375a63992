"""Lua scripts of the store, for reads and writes that must be atomic. redis_store.py passes their keys."""

from __future__ import annotations

from service.store.idempotency import FUNCTIONS

# First command of a script that must write also where the server is out of memory, as those that remove do. Such a
# server refuses a script whose first write takes memory, and lets later writes pass. PERSIST changes nothing
# where the key has no time to live.
FIRST_WRITE = "redis.call('PERSIST', KEYS[1])\n"
# The last position ever written to the log in KEYS[1].
LOG_END = """
local info, last = redis.pcall('XINFO', 'STREAM', KEYS[1]), '0-0'
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then last = info[i + 1] end end
"""
# KEYS log, notes; ARGV "vectors" or "lengths", and the maximum number of bytes, beyond which rows after the first are
# left out. Answers the end of the log, then a row for each note. A pipeline with one command for each note would take
# the client three times as long. A key that is not a hash gives an empty row; an error would fail the whole call.
GET = (
    LOG_END
    + """
local rows, lengths, max, bytes = {last}, ARGV[1] == 'lengths', tonumber(ARGV[2]), 0
for i = 2, #KEYS do
  local row = redis.pcall('HMGET', KEYS[i], 'document', 'space', 'revision', 'position', 'vector')
  if row.err then row = {} elseif lengths and row[5] then row[5] = #row[5] end
  for _, value in ipairs(row) do bytes = bytes + (type(value) == 'string' and #value or 0) end
  if bytes > max and i > 2 then break end
  rows[i] = row
end
return rows
"""
)
# KEYS log; ARGV position, count. Answers the last position ever written, the time, and up to `count` entries from the
# position on; none where it is the last.
LOG_TAIL = (
    LOG_END
    + """
local time, entries = redis.call('TIME'), {}
if last ~= ARGV[1] and last ~= '0-0' then
  entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
end
return {last, time[1], time[2], entries}
"""
)
# KEYS log, identity; ARGV position. Answers the identity, then, where there is a log, the first entry's position, the
# last position ever written, whether entries were trimmed, and the given position where there is an entry at it. Redis
# before 7 does not say how many entries were added; then some may have been trimmed. Entries after that of a restore
# were lost: a follower at its position lacks nothing, one beyond it has read entries that are gone.
LOG_BOUNDS = """
local store = redis.call('GET', KEYS[2])
if redis.call('EXISTS', KEYS[1]) == 0 then return {store} end
local reply, info = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for i = 1, #reply, 2 do info[reply[i]] = reply[i + 1] end
local first, added = info['first-entry'], info['entries-added']
if first and first[2][4] == 'restore' then
  first = redis.call('XRANGE', KEYS[1], '(' .. first[1], '+', 'COUNT', 1)[1] or false
end
local kept = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
local cut = not added or added > info.length
return {store, first and first[1], info['last-generated-id'], cut and 1 or 0, kept and kept[1] or false}
"""
# Whether a condition (_condition) holds for the note in KEYS[1], of the type `kind`, at the position `at`.
HOLDS = """
local function holds(condition, kind, at)
  if condition == '' then return true end
  local negated = string.sub(condition, 1, 1) == '!'
  local positions = negated and string.sub(condition, 2) or condition
  local matches = kind ~= 'none'
    and (positions == '*' or string.find(' ' .. positions .. ' ', ' ' .. (at or '?') .. ' ', 1, true) ~= nil)
  return matches ~= negated
end
"""
# KEYS note, log, identity, events, record; ARGV condition or "", id, document, vector, space, expiry in ms or "", log
# length, by, and those of FUNCTIONS (idempotency.py).
# Damaged values are overwritten: a malformed revision restarts at 1, a key that is not a hash is removed. XADD comes
# first: a server out of memory refuses a script's first write, and lets those after it pass.
PUT = (
    FUNCTIONS
    + HOLDS
    + """
if claim_lost() then return 'lost' end
local kind = redis.call('TYPE', KEYS[1]).ok
local at, was
if kind == 'hash' then at, was = unpack(redis.call('HMGET', KEYS[1], 'position', 'revision')) end
if not holds(ARGV[1], kind, at) then return false end
local count = string.match(was or '', '^%d+$') or '0'
local revision = (#count > 15 and 0 or tonumber(count)) + 1
local position = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'id', ARGV[2], 'op', 'put',
  'by', ARGV[8])
if kind ~= 'hash' then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'document', ARGV[3], 'vector', ARGV[4], 'space', ARGV[5],
  'revision', revision, 'position', position)
if ARGV[6] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[6]) else redis.call('PERSIST', KEYS[1]) end
remember(revision, position)
return {revision, position}
"""
)
# KEYS note, log, identity, events, record; ARGV condition or "", id, log length, and those of FUNCTIONS. The removal is
# also appended to the stream of events, in the same step: a follower that reads the stream from its beginning must not
# count events before the removal.
DELETE = (
    FUNCTIONS
    + HOLDS
    + """
if claim_lost() then return 'lost' end
local kind = redis.call('TYPE', KEYS[1]).ok
local at = kind == 'hash' and redis.call('HGET', KEYS[1], 'position')
if kind == 'none' then return false end
if not holds(ARGV[1], kind, at) then return 'refused' end
redis.call('DEL', KEYS[1])
local position = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'id', ARGV[2], 'op', 'delete')
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('XADD', KEYS[4], '*', 'type', '-note', 'note', ARGV[2], 'reader', '', 'at', '0', 'more', '')
end
remember(0, position)
return position
"""
)
# KEYS samples, log; ARGV LOADING, LOADED, the ids of all samples. Answers whether samples are to be added. The log's
# key exists from the first write on, even when all entries are trimmed. An interrupted loading does not go on if the
# log has an entry of anything but a sample, or has lost entries: the store may be in use.
BEGIN_SAMPLES = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then redis.call('SET', KEYS[1], ARGV[1]) end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local samples = {}
for i = 3, #ARGV do samples[ARGV[i]] = true end
if redis.call('EXISTS', KEYS[2]) == 0 then return 1 end
local reply, info = redis.call('XINFO', 'STREAM', KEYS[2]), {}
for i = 1, #reply, 2 do info[reply[i]] = reply[i + 1] end
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 10000)
local used = #entries == 10000 or (info['entries-added'] or info.length) > info.length
for _, entry in ipairs(entries) do used = used or not samples[entry[2][2]] or entry[2][4] ~= 'put' end
if used then redis.call('SET', KEYS[1], ARGV[2]) end
return used and 0 or 1
"""
# KEYS snapshots, identity; ARGV replica, position and time, and the identity that the store must have, or "".
KEEP_LOG = (
    FIRST_WRITE
    + """
if ARGV[3] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[3] then return 'removed' end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
)
