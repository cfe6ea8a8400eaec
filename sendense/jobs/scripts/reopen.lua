-- ARGV: batch, data, batch, data, ... What is stored of these batches is wrong: those that are done are to do again.
for index = 1, #ARGV, 2 do
  local batch = ARGV[index]
  if redis.call('HDEL', key('done'), batch) == 1 then
    redis.call('HDEL', key('writers'), batch)
    tell(batch, '')
    redis.call('ZADD', key('todo'), batch, batch)
    add('done', 0 - tonumber(ARGV[index + 1]))  -- a minus alone would make '-0' of nothing
    add('batches_done', -1)
  end
end
return 1
