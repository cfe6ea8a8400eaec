-- KEYS: the job's record, the set of active jobs. ARGV: id, owner, number of locks, locks..., field, value, ...
-- Ends a job: its last fields, its locks, its place among the active ones go together. Returns 1, or 0 if not ours.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
local count = tonumber(ARGV[3])
for index = 4, 3 + count do
  if redis.call('GET', ARGV[index]) == ARGV[1] then redis.call('DEL', ARGV[index]) end
end
for index = 4 + count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('HSET', KEYS[1], 'owner', '')
redis.call('SREM', KEYS[2], ARGV[1])
return 1
