-- What may be read at a VMware site, over all its nodes. KEYS: the site's throttle. At it:
--   rate   bytes a second, 0 for no limit; since: the time at which that was set, which names this limit
--   next   when the next chunk may be read: each is promised at the end of those before it, so processes take turns
--   seen   the latest time at which this was looked at: a clock that was put back must not hold anybody
--   held   when somebody was last told to wait
-- and beside it :asking, the processes that read, by the time at which they last said so, and :read, bytes that they
-- read, by the second. ARGV: what to do, and then
--   set   rate: begins anew when it is not what it was: nobody owes anything for what another rate promised
--   ask   process, bytes read since it last asked, bytes that it needs, bytes that it can use, seconds of a chunk,
--         `since` of a promise that it waits for (else empty), seconds after which a promise is of no use to it.
--         Returns {rate, since, processes, bytes promised, microseconds until they may be read}; no bytes are promised
--         without a limit, while the process waits for a promise that still stands, or later than is of use
--   look  Returns {rate, microseconds since somebody was told to wait, bytes read in the last ten whole seconds}
-- The clock is Redis's own.
local act, at = ARGV[1], KEYS[1]
local clock = redis.call('TIME')
local second, now = tonumber(clock[1]), tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local ASKING, KEPT, MEASURED = 3, 15, 10  -- seconds: a process says so every second; what is read is kept; is measured

local function number(field) return tonumber(redis.call('HGET', at, field) or 0) end

if act == 'set' then
  local rate = tonumber(ARGV[2])
  if number('rate') ~= rate then
    redis.call('HSET', at, 'rate', ARGV[2], 'since', clock[1] .. '.' .. clock[2], 'next', now, 'seen', now)
  end
  return 0
end

if act == 'look' then
  local read = 0
  for back = 1, MEASURED do
    read = read + tonumber(redis.call('HGET', at .. ':read', second - back) or 0)
  end
  return {number('rate'), math.max(0, now - number('held')) * 1000000, read}
end

local process, read, needed, useful = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local chunk_seconds, waits_for = tonumber(ARGV[6]), ARGV[7]
if read > 0 then
  redis.call('HINCRBY', at .. ':read', second, read)
  for _, each in ipairs(redis.call('HKEYS', at .. ':read')) do
    if math.abs(second - tonumber(each)) > KEPT then redis.call('HDEL', at .. ':read', each) end
  end
  redis.call('EXPIRE', at .. ':read', KEPT)
end
redis.call('ZADD', at .. ':asking', now, process)
redis.call('ZREMRANGEBYSCORE', at .. ':asking', '-inf', now - ASKING)
redis.call('ZREMRANGEBYSCORE', at .. ':asking', now + ASKING, '+inf')
redis.call('EXPIRE', at .. ':asking', ASKING)
local rate, since = number('rate'), redis.call('HGET', at, 'since') or ''
local processes = redis.call('ZCARD', at .. ':asking')
if rate == 0 then return {0, since, processes, 0, 0} end
if waits_for == since then
  redis.call('HSET', at, 'held', now)
  return {rate, since, processes, 0, 0}
end
local chunk = math.max(needed, math.min(useful, math.floor(rate * chunk_seconds / processes)))
local from = number('next')
if now < number('seen') then from = now end
from = math.max(from, now - 2 * chunk_seconds)  -- what nobody reads is lost, but for what a busy machine misses
if from - now > tonumber(ARGV[8]) then
  redis.call('HSET', at, 'held', now)
  return {rate, since, processes, 0, 0}
end
redis.call('HSET', at, 'next', from + chunk / rate, 'seen', now)
if from - now > chunk_seconds / 10 then redis.call('HSET', at, 'held', now) end
return {rate, since, processes, chunk, math.max(0, from - now) * 1000000}
