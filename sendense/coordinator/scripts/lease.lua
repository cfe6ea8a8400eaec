-- KEYS: the job's record, the set of active jobs. ARGV: id, owner, seconds. Gives the right to run the job's step to
-- one process at a time. Returns 1 and the owner whose lease lapsed, if any, or 0.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return {0, ''} end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local fields = redis.call('HMGET', KEYS[1], 'owner', 'until', 'due')
local owner = fields[1] or ''
if owner ~= '' and owner ~= ARGV[2] and tonumber(fields[2] or 0) > now then return {0, ''} end
if tonumber(fields[3] or 0) > now then return {0, ''} end
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'until', now + tonumber(ARGV[3]))
return {1, owner ~= ARGV[2] and owner or ''}
