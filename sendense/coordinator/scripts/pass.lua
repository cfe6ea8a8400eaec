-- KEYS: a receiver's standing, what became of its notices, the tally. ARGV: the entry that it had passed, told kept, a line to
-- tell or none, what is counted or nothing, field, value, ... Enters what came of an attempt. Returns 1, or 0 if another
-- process was at it.
if (redis.call('HGET', KEYS[1], 'passed') or '') ~= ARGV[1] then return 0 end
for index = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
if ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[3])
  redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[2]) - 1)
end
if ARGV[4] ~= '' then redis.call('HINCRBY', KEYS[3], ARGV[4], 1) end
return 1
