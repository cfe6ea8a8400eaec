-- KEYS: the job's record. ARGV: owner, 1 to give the lease back, seconds until the next step may run, field, value, ...
-- Writes what a step found, if the lease is still the caller's. Returns 1, or 0.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
for index = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
local clock = redis.call('TIME')
redis.call('HSET', KEYS[1], 'due', tonumber(clock[1]) + tonumber(clock[2]) / 1000000 + tonumber(ARGV[3]))
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'owner', '') end
return 1
