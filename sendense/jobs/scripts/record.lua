-- ARGV: batch, owner, record, copied, data, retries, then for a batch of which a part was not read: the packed extents
-- of what was stored, those of the rest, why it could not be read (empty: it just was not yet), and the seconds until
-- the rest is tried again (or -1).
-- Returns 1 when the batch is recorded, by this call or by an earlier one of the same owner; else 0.
local batch, owner = ARGV[1], ARGV[2]
if owner_of(batch) ~= owner then
  return redis.call('HGET', key('writers'), batch) == owner and 1 or 0
end
report(batch, tonumber(ARGV[4]))
redis.call('HDEL', key('progress'), batch)
unclaim(batch)
redis.call('HSET', key('done'), batch, ARGV[3])
redis.call('HSET', key('writers'), batch, owner)
tell(batch, string.match(owner, '^[^/]*'))
add('batches_done', 1)
add('done', ARGV[5])
add('retries', ARGV[6])
tally('retries', ARGV[6])
redis.call('HSET', 'sendense:moving', spec_now().site, now) -- also of a batch of zeroes, of which no byte is moved
if ARGV[7] then
  local rest = redis.call('HINCRBY', key('job'), 'batches', 1) - 1
  redis.call('HSET', key('plan'), batch, ARGV[7])
  redis.call('HSET', key('plan'), rest, ARGV[8])
  if ARGV[9] == '' then
    redis.call('ZADD', key('todo'), rest, rest)
  else
    redis.call('HSET', key('attempts'), rest, redis.call('HGET', key('attempts'), batch))
    try_again(rest, ARGV[9], tonumber(ARGV[10]))
  end
end
return 1
