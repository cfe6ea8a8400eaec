-- KEYS: the job's record, jobs by when they were last begun, the set of active jobs. ARGV: id, 1 if it is new, number of
-- locks, locks..., then field, value, ... of the record. Takes all locks and enters the job, or returns the id of the
-- active job that has one.
local id, count = ARGV[1], tonumber(ARGV[3])
if redis.call('SISMEMBER', KEYS[3], id) == 1 then return '' end  -- handed in again: its answer was lost
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then return '' end  -- the same, and it has ended by now
for index = 4, 3 + count do
  local holder = redis.call('GET', ARGV[index])
  if holder and holder ~= id and redis.call('SISMEMBER', KEYS[3], holder) == 1 then return holder end
end
for index = 4, 3 + count do redis.call('SET', ARGV[index], id) end
for index = 4 + count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], tonumber(clock[1]) + tonumber(clock[2]) / 1000000, id)
redis.call('SADD', KEYS[3], id)
return ''
