-- ARGV: 1 to pause, 0 to go on. While paused no batch is handed out or claimed; those under way end. The messages that
-- were refused meanwhile are gone, so whatever was sent is to do again.
if not get('state') then return 0 end
if ARGV[1] == '1' then
  redis.call('HSET', key('job'), 'paused', 1)
elseif redis.call('HDEL', key('job'), 'paused') == 1 then
  put_back_sent('+inf')
end
return 1
