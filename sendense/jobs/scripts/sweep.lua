-- ARGV: epoch, most attempts, seconds that a sent batch may wait, the same while nothing at all is claimed, seconds
-- until a batch whose claim lapsed is sent again: its former owner is killed meanwhile, so that no two ever write it.
-- Puts back what lapsed, what is due, and what was sent and never claimed (its message is lost; a second message does
-- no harm). Returns {batch, owner, batch, owner, ...} of the claims that lapsed.
if get('state') ~= 'copying' or get('epoch') ~= ARGV[1] then return {} end
local answer = {}
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', key('claims'), '-inf', now)) do
  local owner = owner_of(batch)
  local attempt = tonumber(redis.call('HGET', key('attempts'), batch))
  local failure = cjson.encode({
    batch = tonumber(batch), attempt = attempt, error = 'ClaimLapsed', worker = owner,
    message = string.format('batch %d: its worker %s stopped renewing its claim (killed, stopped or cut off)',
      batch + 1, owner),
    hint = 'Look at that worker and its machine.'})
  unclaim(batch)
  try_again(batch, failure, attempt >= tonumber(ARGV[2]) and -1 or tonumber(ARGV[5]))
  add('stalls', 1)
  tally('stalls/claim-lapsed', 1)
  answer[#answer + 1] = batch
  answer[#answer + 1] = owner
end
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', key('later'), '-inf', now)) do
  redis.call('ZREM', key('later'), batch)
  redis.call('ZADD', key('todo'), batch, batch)
end
local patience = tonumber(ARGV[3])
if redis.call('ZCARD', key('claims')) == 0 and now - tonumber(get('active') or 0) > tonumber(ARGV[4]) then patience = 0 end
put_back_sent(now - patience)
return answer
