-- ARGV: batch, owner, copied, seconds until it is due again, what it waits for. Gives a batch back that cannot be
-- copied now, though nothing failed. Returns 1, or 0 when the claim was somebody else's.
local batch = ARGV[1]
if owner_of(batch) ~= ARGV[2] then return 0 end
report(batch, tonumber(ARGV[3]))
hand_back(batch)
redis.call('ZADD', key('later'), now + tonumber(ARGV[4]), batch)
redis.call('HSET', key('job'), 'short', ARGV[5], 'short_at', now)
return 1
