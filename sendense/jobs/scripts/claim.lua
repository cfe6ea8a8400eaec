-- ARGV: batch, epoch, owner, seconds. Only a batch that was sent can be claimed; its sender's epoch must be the job's.
-- Returns {attempt, packed extents}, or {} for whoever does not get it.
local batch, owner = ARGV[1], ARGV[3]
if owner_of(batch) ~= owner then
  if get('state') ~= 'copying' or get('paused') or get('epoch') ~= ARGV[2] then return {} end
  if redis.call('ZREM', key('sent'), batch) == 0 then return {} end
  redis.call('HSET', key('owners'), batch, owner)
  redis.call('HINCRBY', key('attempts'), batch, 1)
end
redis.call('ZADD', key('claims'), now + tonumber(ARGV[4]), batch)
touch()
return {redis.call('HGET', key('attempts'), batch), redis.call('HGET', key('plan'), batch)}
