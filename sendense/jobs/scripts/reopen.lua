-- ARGV: batch, data, batch, data, ... Recorded batches whose stored content is wrong: they are to do again.
for index = 1, #ARGV, 2 do
  local batch = ARGV[index]
  if redis.call('HDEL', key('done'), batch) == 1 then
    redis.call('HDEL', key('writers'), batch)
    redis.call('ZADD', key('todo'), batch, batch)
    add('done', -tonumber(ARGV[index + 1]))
    add('batches_done', -1)
  end
end
return 1
