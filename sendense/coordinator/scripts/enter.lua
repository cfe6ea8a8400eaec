-- KEYS: the outbox, the number of its last entry, the marks. ARGV: entries kept, kind, body, then name, before, after of
-- each mark; empty: not set. Sets the marks and enters a notice together. Returns 1, or 0 if a mark is not as before.
for index = 4, #ARGV, 3 do
  if (redis.call('HGET', KEYS[3], ARGV[index]) or '') ~= ARGV[index + 1] then return 0 end
end
for index = 4, #ARGV, 3 do
  if ARGV[index + 2] == '' then
    redis.call('HDEL', KEYS[3], ARGV[index])
  else
    redis.call('HSET', KEYS[3], ARGV[index], ARGV[index + 2])
  end
end
if ARGV[2] ~= '' then
  local number = redis.call('INCR', KEYS[2])
  redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[1], '*', 'number', number, 'kind', ARGV[2], 'body', ARGV[3])
end
return 1
