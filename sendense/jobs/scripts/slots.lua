-- The open disks of a VMware site, over all nodes. KEYS: where the site's are counted, and where its host's are, if
-- that is known: a slot is had in both or in none. ARGV: what to do, the holder (WORKER/PID/JOB), its job, the seconds
-- that a slot lasts, the seconds that a wish lasts, and for each key its limit. At each key:
--   held     holders, by the time at which their slot lapses
--   leaving  those of them that were told to close their disk, by the time at which that is forgotten
--   asked    jobs that found no slot, by the time of their last wish
--   since    those of them that have none at all, by the time of their first wish: they are served in that order
-- The clock is Redis's own.
local act, holder, job = ARGV[1], ARGV[2], ARGV[3]
local lasts, patience = tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local life = math.ceil(lasts + patience)  -- of a key: whatever it holds has lapsed by then
local function limit(number) return tonumber(ARGV[5 + number]) end
local function count(name) return redis.call('ZCARD', name) end

for _, at in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', at .. ':leaving', '-inf', now)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', at .. ':held', '-inf', now)) do
    if other ~= holder then redis.call('ZREM', at .. ':held', other) end
  end
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', at .. ':asked', '-inf', now - patience)) do
    redis.call('ZREM', at .. ':asked', other)
    redis.call('ZREM', at .. ':since', other)
  end
end

if act == 'leave' then
  for _, at in ipairs(KEYS) do
    redis.call('ZREM', at .. ':held', holder)
    redis.call('ZREM', at .. ':leaving', holder)
  end
  return 0
end

-- yield, spare: 1 when somebody waits for a slot for whom nobody else is leaving. Who is busy yields to jobs that have
-- none; who is idle can spare his for any, also for another process at the same job.
if act == 'yield' or act == 'spare' then
  local wishes = act == 'yield' and ':since' or ':asked'
  for number, at in ipairs(KEYS) do
    if redis.call('ZSCORE', at .. ':leaving', holder) then return 1 end
    local free = limit(number) - count(at .. ':held') + count(at .. ':leaving')
    if count(at .. wishes) > free then
      for _, each in ipairs(KEYS) do
        redis.call('ZADD', each .. ':leaving', now + lasts, holder)
        redis.call('EXPIRE', each .. ':leaving', life)
      end
      return 1
    end
  end
  return 0
end

-- take: a slot, or else a wish for one. keep: a slot, also one that lapsed when there is still room.
-- Returns 0, or the number of the key that has no room.
local mine = true
for _, at in ipairs(KEYS) do
  mine = mine and redis.call('ZSCORE', at .. ':held', holder)
end
local full, at_limit = 0, {}
if not mine then
  for number, at in ipairs(KEYS) do
    redis.call('ZREM', at .. ':held', holder)
    local ahead = 0
    if act == 'take' then
      local first = redis.call('ZSCORE', at .. ':since', job)
      ahead = first and redis.call('ZCOUNT', at .. ':since', '-inf', '(' .. first) or count(at .. ':since')
    end
    at_limit[number] = count(at .. ':held') + ahead >= limit(number)
    if at_limit[number] then full = number end
  end
end
local has_one = false
for _, other in ipairs(redis.call('ZRANGE', KEYS[1] .. ':held', 0, -1)) do
  has_one = has_one or string.sub(other, -#job - 1) == '/' .. job
end
for number, at in ipairs(KEYS) do
  if full == 0 then redis.call('ZADD', at .. ':held', now + lasts, holder) end
  if act == 'take' then
    redis.call('ZREM', at .. ':asked', job)
    if at_limit[number] then redis.call('ZADD', at .. ':asked', now, job) end
    if at_limit[number] and not has_one then
      redis.call('ZADD', at .. ':since', 'NX', now, job)
    else
      redis.call('ZREM', at .. ':since', job)
    end
  end
  for _, name in ipairs({'held', 'since', 'asked'}) do
    redis.call('EXPIRE', at .. ':' .. name, life)
  end
end
return full
