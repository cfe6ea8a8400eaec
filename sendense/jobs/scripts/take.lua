-- ARGV: epoch, window. Moves the next window of batches to sent, when no more than one window is out.
-- Returns {state, 1 if nothing else of the job is out, batch, ...}. Ends the job's copying when no batch is anywhere
-- but in done or failed; a paused job does not end.
local state = get('state')
if state ~= 'copying' or get('paused') or get('epoch') ~= ARGV[1] then return {state, 0} end
local window = tonumber(ARGV[2])
local out = redis.call('ZCARD', key('sent')) + redis.call('ZCARD', key('claims'))
local answer = {state, out == 0 and 1 or 0}
if out > window then return answer end
local taken = redis.call('ZPOPMIN', key('todo'), window)
for index = 1, #taken, 2 do
  redis.call('ZADD', key('sent'), now, taken[index])
  answer[#answer + 1] = taken[index]
end
if #taken > 0 then
  touch()
elseif out == 0 and redis.call('ZCARD', key('later')) == 0 then
  state = redis.call('HLEN', key('failed')) > 0 and 'failed' or 'copied'
  redis.call('HSET', key('job'), 'state', state, 'ended', now)
  answer[1] = state
end
return answer
