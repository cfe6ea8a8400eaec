-- ARGV: batch, owner, copied. Gives a claim back without a failure: the job was stopped. Returns 1, or 0 if not ours.
local batch = ARGV[1]
if owner_of(batch) ~= ARGV[2] then return 0 end
report(batch, tonumber(ARGV[3]))
unclaim(batch)
redis.call('ZADD', key('todo'), batch, batch)
return 1
