-- The ledger's scripts. KEYS[1] is the job's prefix. A batch is in exactly one of these places, and a script moves it:
--   todo (by number) -> sent (by time sent) -> claims (by expiry) -> done
--   claims -> later (by time due) -> todo, when an attempt failed; claims -> failed, when it was the last
--   claims -> todo or later, when nothing failed and it cannot be done now
-- The clock is Redis's own, so machines need not agree on the time.
local prefix = KEYS[1]
local function key(name) return prefix .. name end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function add(field, amount) redis.call('HINCRBY', key('job'), field, amount) end
local function get(field) return redis.call('HGET', key('job'), field) end
local function touch() redis.call('HSET', key('job'), 'active', now) end
local function tally(name, amount) redis.call('HINCRBY', 'sendense:tally', name, amount) end -- for good: jobs.tally
local function spec_now() return cjson.decode(get('spec')) end
local function owner_of(batch) return redis.call('HGET', key('owners'), batch) end
local function tell(batch, worker) -- of a batch that is stored from now on; without a worker: not any more
  redis.call('XADD', key('changes'), 'MAXLEN', '~', 4000, '*', 'batch', batch, 'worker', worker)
end
local function unclaim(batch) -- what was moved of it, unless it is recorded, has to be moved again
  add('again', redis.call('HGET', key('progress'), batch) or 0)
  redis.call('ZREM', key('claims'), batch)
  redis.call('HDEL', key('owners'), batch)
  redis.call('HDEL', key('progress'), batch)
  touch()
end
local function report(batch, copied)
  local before = tonumber(redis.call('HGET', key('progress'), batch) or 0)
  if copied > before then
    local worker = string.match(owner_of(batch), '^[^/]*')
    add('copied', copied - before)
    redis.call('HINCRBY', key('workers'), worker, copied - before)
    local spec = spec_now()
    tally(string.format('bytes/%s/%s/%s', spec.kind, spec.site, worker), copied - before)
    redis.call('HSET', 'sendense:moving', spec.site, now)
    redis.call('HSET', key('progress'), batch, copied)
  end
end
local function hand_back(batch) -- with its attempt not counted
  unclaim(batch)
  redis.call('HINCRBY', key('attempts'), batch, -1)
end
local function put_back_sent(since)
  for _, batch in ipairs(redis.call('ZRANGEBYSCORE', key('sent'), '-inf', since)) do
    redis.call('ZREM', key('sent'), batch)
    redis.call('ZADD', key('todo'), batch, batch)
  end
end
local function try_again(batch, failure, delay) -- after so many seconds, or never when that is negative
  redis.call('RPUSH', key('failures'), failure)
  if delay < 0 then
    redis.call('HSET', key('failed'), batch, failure)
  else
    redis.call('ZADD', key('later'), now + delay, batch)
    add('retries', 1)
    tally('retries', 1)
  end
end
