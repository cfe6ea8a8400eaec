-- Replace how a schedule stands, if it stands as the caller knows it.
-- KEYS: the standings. ARGV: name, what it was, what it is. Returns 1, or 0 when it is another by now.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
