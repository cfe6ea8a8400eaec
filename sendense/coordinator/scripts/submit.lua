-- KEYS: the job's record, jobs by age, the set of active jobs. ARGV: id, time, number of locks, locks..., then field,
-- value, ... of a new record. Takes all locks and enters the job, or returns the id of the active job that has one.
local id, count = ARGV[1], tonumber(ARGV[3])
if redis.call('SISMEMBER', KEYS[3], id) == 1 then return '' end  -- handed in again: its answer was lost
for index = 4, 3 + count do
  local holder = redis.call('GET', ARGV[index])
  if holder and holder ~= id and redis.call('SISMEMBER', KEYS[3], holder) == 1 then return holder end
end
for index = 4, 3 + count do redis.call('SET', ARGV[index], id) end
for index = 4 + count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('ZADD', KEYS[2], 'NX', ARGV[2], id)
redis.call('SADD', KEYS[3], id)
return ''
