-- KEYS: the job's record, the set of active jobs, the outbox, the number of its last entry. ARGV: id, owner, number of
-- locks, locks..., entries kept, field, value, ... Ends a job: its last fields, its locks, its place among the active
-- ones and the notice of its end, which has its record, go together. Returns 1, or 0 if not ours.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
local count = tonumber(ARGV[3])
for index = 4, 3 + count do
  if redis.call('GET', ARGV[index]) == ARGV[1] then redis.call('DEL', ARGV[index]) end
end
for index = 5 + count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('HSET', KEYS[1], 'owner', '')
local request, state = unpack(redis.call('HMGET', KEYS[1], 'request', 'state'))
redis.call('HINCRBY', 'sendense:tally', string.format('jobs/%s/%s', cjson.decode(request).kind, state), 1)
redis.call('SREM', KEYS[2], ARGV[1])
local number = redis.call('INCR', KEYS[4])
local body = cjson.encode({job = ARGV[1], record = redis.call('HGETALL', KEYS[1])})
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[4 + count], '*', 'number', number, 'kind', 'job', 'body', body)
return 1
