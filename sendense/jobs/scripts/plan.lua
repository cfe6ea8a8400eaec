-- ARGV: act, planner, then by act:
--   'anew':  nothing. Empties the plan of a job that is still being prepared, for this planner alone to write.
--   'amend': nothing. From here on this planner alone changes the plan; whoever did so before has lost it.
--   'enter': batch, packed extents, batch, ... These batches are so, and to do, also those that are done.
--   'close': field, value, ... What the job's record says of the whole plan.
-- Returns 1, or 0 when the plan is not the planner's: another one has it, a run of the job has begun,
-- or the job was stopped or entered again.
local act, planner = ARGV[1], ARGV[2]
if act == 'anew' or act == 'amend' then
  if act == 'anew' then
    if get('state') ~= 'preparing' then return 0 end
    redis.call('DEL', key('plan'), key('todo'))
  end
  redis.call('HSET', key('job'), 'planner', planner)
  return 1
end
if get('planner') ~= planner then return 0 end
for index = 3, #ARGV, 2 do
  local name, value = ARGV[index], ARGV[index + 1]
  if act == 'close' then
    redis.call('HSET', key('job'), name, value)
  else
    local stored = redis.call('HGET', key('done'), name)
    if stored then
      redis.call('HDEL', key('done'), name)
      redis.call('HDEL', key('writers'), name)
      tell(name, '')
      add('done', 0 - cjson.decode(stored).data)
      add('batches_done', -1)
    end
    redis.call('HSET', key('plan'), name, value)
    redis.call('ZADD', key('todo'), name, name)
  end
end
return 1
