-- ARGV: the job's spec. Starts a run of a planned or an unfinished job: whatever was under way or failed is to do
-- again, with attempts counted anew, under a new epoch that leaves every message and process of an earlier run behind.
-- Returns the epoch, or 0 when the job was never planned.
if not get('survey') then return 0 end
for _, name in ipairs({'sent', 'claims', 'later'}) do
  for _, batch in ipairs(redis.call('ZRANGE', key(name), 0, -1)) do
    redis.call('ZADD', key('todo'), batch, batch)
  end
  redis.call('DEL', key(name))
end
for _, batch in ipairs(redis.call('HKEYS', key('failed'))) do
  redis.call('ZADD', key('todo'), batch, batch)
end
redis.call('DEL', key('failed'), key('owners'), key('progress'), key('attempts'), key('workers'))
redis.call('HSET', key('job'), 'spec', ARGV[1], 'state', 'copying', 'began', now,
  'already_done', get('done') or 0, 'copied', 0, 'again', 0, 'retries', 0, 'stalls', 0)
redis.call('HDEL', key('job'), 'ended', 'paused', 'planner')
touch()
return redis.call('HINCRBY', key('job'), 'epoch', 1)
