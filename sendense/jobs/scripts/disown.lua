-- ARGV: worker. Puts back at once what the processes of a worker that ended had claimed. Returns how many batches.
local start, count = ARGV[1] .. '/', 0
local claims = redis.call('HGETALL', key('owners'))
for index = 1, #claims, 2 do
  local batch = claims[index]
  if string.sub(claims[index + 1], 1, #start) == start then
    hand_back(batch)
    redis.call('ZADD', key('todo'), batch, batch)
    count = count + 1
  end
end
return count
