-- KEYS: the job's record. ARGV: owner, seconds. Returns 0 when the lease is somebody else's, 2 when the job is to be
-- cancelled, else 1.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local clock = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', tonumber(clock[1]) + tonumber(clock[2]) / 1000000 + tonumber(ARGV[2]))
return redis.call('HGET', KEYS[1], 'cancel') == '1' and 2 or 1
