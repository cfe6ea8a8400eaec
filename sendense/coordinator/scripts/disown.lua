-- KEYS: the job's record. ARGV: worker. Gives a lease back whose owner was a process of this worker. Returns 1, or 0.
local owner = redis.call('HGET', KEYS[1], 'owner')
local start = ARGV[1] .. '/'
if not owner or string.sub(owner, 1, #start) ~= start then return 0 end
redis.call('HSET', KEYS[1], 'owner', '')
return 1
