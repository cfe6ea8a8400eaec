-- ARGV: batch, owner, seconds, bytes copied so far by this attempt. Returns 1, or 0 when the claim is somebody else's
-- or the job was stopped.
local batch = ARGV[1]
if owner_of(batch) ~= ARGV[2] or get('state') ~= 'copying' then return 0 end
redis.call('ZADD', key('claims'), now + tonumber(ARGV[3]), batch)
report(batch, tonumber(ARGV[4]))
return 1
