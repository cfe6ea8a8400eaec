-- ARGV: batch, owner, failure, copied, seconds until the next attempt (-1: none), the verdict if it stalled, else empty,
-- 1 if the job must end.
-- Gives a failed attempt back. Returns 1, or 0 when the claim was somebody else's.
local batch = ARGV[1]
if owner_of(batch) ~= ARGV[2] then return 0 end
report(batch, tonumber(ARGV[4]))
unclaim(batch)
if ARGV[6] ~= '' then
  add('stalls', 1)
  tally('stalls/' .. ARGV[6], 1)
end
try_again(batch, ARGV[3], tonumber(ARGV[5]))
if ARGV[7] == '1' and get('state') == 'copying' then
  redis.call('HSET', key('job'), 'state', 'failed', 'ended', now)
end
return 1
