-- Counts calls against limits. The definition is the head of limit_service.proto.
--
-- ARGV[1]: JSON {run, at, hold, scopes, ops}
--   run     Redis' run_id: totals that an earlier process of Redis knew may be stale
--   at      false; tests give {second, microsecond}
--   hold    seconds that a reservation lasts
--   scopes  {id, requests/min, tokens/min, concurrent, tokens/day, nano-USD/month, percents}; -1 is
--           no limit
--   ops     {what, …}, done in order; scopes are named by their place in `scopes`, from 1
--     1 admit      id, tokens, nano-USD, scopes
--     2 charge     id, tokens, nano-USD, scopes, second: without asking, where the id is not known
--     3 release    id, how: 0 reached no node, 1 reached one, 2 and the caller left it
--     4 settle     id, tokens (-1: not known)
--     5 total      period, scope id, date, value, version, limit (-1: none), percents
--     6 state      scope
--     7 heartbeat  replica, seconds to remember it
--     8 farewell   replica
-- Returns second, microsecond, and for each op the length of its result and the result, all as
-- 64-bit integers, little-endian, in one string: Redis makes a system call for each table that it
-- answers with. Where there are texts, it returns a table with that string first and then the texts;
-- a result with texts has their number, negative, and its first number in the string, and alerts
-- follow, {op, scope, period, percentage, date} each. A result is
--   {0, 0, 0, 0, counters of each scope}               admitted
--   {1, scope, limit, ms to wait (-1: for ever), counters…}   refused; limit 1 to 5 as in `scopes`
--   {2, period, scope, date, period, scope, date…}     totals are missing
--   {3, 0, 0, 0, counters…}                            admitted before
-- counters are requests, tokens, concurrent, day, month, with reservations; -1 is not counted.
--
-- Keys, all under infermesh:limits:, the first three without expiry, since Redis may evict what has
-- one; `idle` says when they may go.
--   m:scope   ring of a minute: s last second, R T sums, r0…r59 t0…t59 slots
--   f:scope   in flight: b e oldest and newest bucket, c t u sums, c<n> t<n> u<n> by the minute n
--             in which they lapse
--   clock     the last second, so that a clock that is set back does not bring a minute back
--   r:id      a call: {second, bucket, tokens, nano-USD, has a place, has a reservation, is
--             settled (1, or 2: its tokens are not known), {second, tokens, …} as counted,
--             {scope, …}, {kind, …}, whether its caller left, {day, month} of l}; a kind is 1 where
--             the call counts in the ring, and 2 more in flight, or 4 more there without a place
--   d:run:scope:date, u:run:scope:date   n total, v version, p<limit> percentage told
--   l:scope   what calls had reserved whose callers left, so that nobody knows what they took: by
--             period and date
--   a:scope   percentages told, by period and limit
--   idle      scopes by the second from which they may be forgotten
--   replicas  replicas by their last heartbeat

local P = 'infermesh:limits:'
local run, at, hold, scopes, ops = unpack(cjson.decode(ARGV[1]))
local call, floor, max = redis.call, math.floor, math.max

local SETTLED_S, TOTAL_S, TOLD_S, SLACK_S = 120, 172800, 3456000, 300
-- Scopes that are forgotten in a second at most.
local SWEEP = 64

-- Time ------------------------------------------------------------------------------------------

local now, micros
if at then
  now, micros = at[1], at[2]
else
  local time = call('TIME')
  now, micros = tonumber(time[1]), tonumber(time[2])
end
local seen = tonumber(call('GET', P .. 'clock') or 0)
if seen > now and seen - now < 60 then
  now, micros = seen, 999999
elseif seen ~= now then
  call('SET', P .. 'clock', now)
end
local minute = floor(now / 60)
local lapses = floor((now + hold) / 60)

-- The civil date of a day since 1970 (proleptic Gregorian, years from March on).
local function civil(days)
  local z = days + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  local day = doy - floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  return yoe + era * 400 + (month <= 2 and 1 or 0), month, day
end

local dates
local function date(period)
  if not dates then
    local today = floor(now / 86400)
    local year, month, day = civil(today)
    local last = 28
    while select(2, civil(today - day + 1 + last)) == month do last = last + 1 end
    dates = {
      d = string.format('%04d-%02d-%02d', year, month, day),
      u = string.format('%04d-%02d-01', year, month),
      d_end = (today + 1) * 86400,
      u_end = (today - day + 1 + last) * 86400,
    }
  end
  return dates[period]
end

local function ms_until(second)
  return max(1, (second - now) * 1000 - floor(micros / 1000))
end

local function keep(scope)
  call('ZADD', P .. 'idle', max(120, hold + 120) + now, scope)
end

-- The minute ------------------------------------------------------------------------------------

local rings = {}

local function fields(letters, from, to, modulo)
  local names = {}
  for i = from, to do
    local n = modulo and i % modulo or i
    for j = 1, #letters do names[#names + 1] = letters[j] .. n end
  end
  return names
end

local function take(key, names)
  local values = call('HMGET', key, unpack(names))
  call('HDEL', key, unpack(names))
  return values
end

local function ring_of(scope)
  local ring = rings[scope]
  if ring then return ring end
  local key, slot = P .. 'm:' .. scope, now % 60
  local v = call('HMGET', key, 's', 'R', 'T', 'r' .. slot, 't' .. slot)
  local last = tonumber(v[1])
  ring = {key = key, R = tonumber(v[2]) or 0, T = tonumber(v[3]) or 0,
    r = tonumber(v[4]) or 0, t = tonumber(v[5]) or 0, dirty = false}
  if last ~= now then
    if last and now > last and now - last < 60 then
      local gone = take(key, fields({'r', 't'}, last + 1, now, 60))
      for i = 1, #gone, 2 do
        ring.R = ring.R - (tonumber(gone[i]) or 0)
        ring.T = ring.T - (tonumber(gone[i + 1]) or 0)
      end
    else
      if last then call('DEL', key) end
      ring.R, ring.T = 0, 0
    end
    ring.r, ring.t, ring.dirty = 0, 0, true
    keep(scope)
  end
  rings[scope] = ring
  return ring
end

-- A slot before now. What is changed in it is written when the ring is.
local function slot_of(ring, name)
  local past = ring.past
  if not past then
    past = {}
    ring.past = past
  end
  local value = past[name]
  if not value then
    value = tonumber(call('HGET', ring.key, name)) or 0
    past[name] = value
  end
  return past, value
end

local function write_past(ring)
  if not ring.past then return end
  local pairs_ = {}
  for name, value in pairs(ring.past) do
    pairs_[#pairs_ + 1], pairs_[#pairs_ + 2] = name, value
  end
  call('HSET', ring.key, unpack(pairs_))
  ring.past = nil
end

local function count(scope, second, requests, tokens)
  if now - second >= 60 or second > now then return end
  local ring = ring_of(scope)
  ring.dirty, ring.slots = true, nil
  if second == now then
    -- Never below nothing: a slot that was lost with a clock that was set back gives nothing back.
    tokens = max(tokens, -ring.t)
    ring.r, ring.t = ring.r + requests, ring.t + tokens
  else
    local slot = second % 60
    if requests ~= 0 then
      local past, counted = slot_of(ring, 'r' .. slot)
      past['r' .. slot] = counted + requests
    end
    if tokens ~= 0 then
      local past, counted = slot_of(ring, 't' .. slot)
      tokens = max(tokens, -counted)
      past['t' .. slot] = counted + tokens
    end
  end
  ring.R, ring.T = ring.R + requests, ring.T + tokens
end

-- When `need` of the letter's sum has left the minute; 0 for all of it.
local function ms_until_left(ring, letter, need)
  ring.slots = ring.slots or {}
  local slots = ring.slots[letter]
  if not slots then
    write_past(ring)
    slots = call('HMGET', ring.key, unpack(fields({letter}, now - 59, now - 1, 60)))
    ring.slots[letter] = slots
  end
  local sum, last = 0, now - 60
  for i = 1, 60 do
    local value = i == 60 and ring[letter] or tonumber(slots[i]) or 0
    if value > 0 then
      last = now - 60 + i
      sum = sum + value
      if need > 0 and sum >= need then break end
    end
  end
  return last == now - 60 and 0 or ms_until(last + 60)
end

-- In flight -------------------------------------------------------------------------------------

local flights = {}

local function flight_of(scope)
  local f = flights[scope]
  if f then return f end
  local key = P .. 'f:' .. scope
  local v = call('HMGET', key, 'b', 'e', 'c', 't', 'u', 'c' .. lapses, 't' .. lapses, 'u' .. lapses)
  f = {key = key, b = tonumber(v[1]), e = tonumber(v[2]), c = tonumber(v[3]) or 0,
    t = tonumber(v[4]) or 0, u = tonumber(v[5]) or 0, C = tonumber(v[6]) or 0,
    T = tonumber(v[7]) or 0, U = tonumber(v[8]) or 0, dirty = false}
  if f.b and f.b < minute then
    if f.e < minute then
      call('DEL', key)
      f.b, f.e, f.c, f.t, f.u = nil, nil, 0, 0, 0
    else
      -- Few at a time, for `unpack` has a bound.
      for from = f.b, minute - 1, 100 do
        local gone = take(key, fields({'c', 't', 'u'}, from, math.min(from + 99, minute - 1)))
        for i = 1, #gone, 3 do
          f.c = f.c - (tonumber(gone[i]) or 0)
          f.t = f.t - (tonumber(gone[i + 1]) or 0)
          f.u = f.u - (tonumber(gone[i + 2]) or 0)
        end
      end
      f.b, f.dirty = minute, true
    end
  end
  flights[scope] = f
  return f
end

local function fly(scope, bucket, places, tokens, usd)
  if bucket < minute then return end
  local f = flight_of(scope)
  f.c, f.t, f.u, f.dirty = f.c + places, f.t + tokens, f.u + usd, true
  if not f.e or f.e < bucket then keep(scope) end
  f.b, f.e = math.min(f.b or bucket, bucket), max(f.e or bucket, bucket)
  if bucket == lapses then
    f.C, f.T, f.U = f.C + places, f.T + tokens, f.U + usd
  else
    if places ~= 0 then call('HINCRBY', f.key, 'c' .. bucket, places) end
    if tokens ~= 0 then call('HINCRBY', f.key, 't' .. bucket, tokens) end
    if usd ~= 0 then call('HINCRBY', f.key, 'u' .. bucket, usd) end
  end
end

-- Totals of the ledger, and alerts --------------------------------------------------------------

local totals, lefts, alerts = {}, {}, {}

local function total_of(period, scope, day)
  local key = P .. period .. ':' .. run .. ':' .. scope .. ':' .. day
  local total = totals[key]
  if total == nil then
    local v = call('HMGET', key, 'n', 'v')
    total = {key = key, n = tonumber(v[1]), v = tonumber(v[2]), told = {}}
    totals[key] = total
  end
  return total
end

local function left_of(period, scope, day)
  local id = period .. day .. scope
  if not lefts[id] then
    lefts[id] = tonumber(call('HGET', P .. 'l:' .. scope, period .. day)) or 0
  end
  return lefts[id]
end

local function leave(period, scope, day, amount)
  if amount == 0 then return end
  local key = P .. 'l:' .. scope
  lefts[period .. day .. scope] = call('HINCRBY', key, period .. day, amount)
  call('EXPIRE', key, TOLD_S)
end

local function alert(op, period, scope, day, total, limit, percents)
  local passed = 0
  local spent = total.n + left_of(period, scope, day)
  for i = 1, #percents do
    if percents[i] > passed and spent * 100 >= limit * percents[i] then passed = percents[i] end
  end
  if passed == 0 then return end
  local field = string.format('%s%s:%.0f', period, day, limit)
  if not total.told[field] then
    total.told[field] = tonumber(call('HGET', P .. 'a:' .. scope, field)) or 0
  end
  if passed > total.told[field] then
    total.told[field] = passed
    call('HSET', P .. 'a:' .. scope, field, passed)
    call('EXPIRE', P .. 'a:' .. scope, TOLD_S)
    alerts[#alerts + 1] = {op, scope, period, passed, day}
  end
end

-- Calls -----------------------------------------------------------------------------------------

local function record_of(id)
  local packed = call('GET', P .. 'r:' .. id)
  return packed and cmsgpack.unpack(packed)
end

local function store(id, record)
  local packed = cmsgpack.pack(record)
  if record[6] == 1 or record[5] == 1 or record[12] then
    call('SET', P .. 'r:' .. id, packed, 'EX', hold + SLACK_S)
  else
    call('SET', P .. 'r:' .. id, packed, 'EX', SETTLED_S)
  end
end

local function is_ring(row) return row[2] >= 0 or row[3] >= 0 end
local function is_flight(row) return row[4] >= 0 or row[5] >= 0 or row[6] >= 0 end

local function counters(result, places)
  for i = 1, #places do
    local row = scopes[places[i]]
    local R, T, c, d, u = -1, -1, -1, -1, -1
    if is_ring(row) then
      local ring = ring_of(row[1])
      R, T = ring.R, ring.T
    end
    if is_flight(row) then
      local f = flight_of(row[1])
      c = f.c
      local day = row[5] >= 0 and total_of('d', row[1], date('d')).n
      local month = row[6] >= 0 and total_of('u', row[1], date('u')).n
      d = day and day + left_of('d', row[1], date('d')) + f.t or -1
      u = month and month + left_of('u', row[1], date('u')) + f.u or -1
    end
    local n = #result
    result[n + 1], result[n + 2], result[n + 3], result[n + 4], result[n + 5] = R, T, c, d, u
  end
  return result
end

-- Does nothing for an id that is known, but where it may be used again: its call has ended. Returns
-- whether it counts now.
local function charge(id, tokens, usd, places, second, may_again)
  local bucket = floor((second + hold) / 60)
  local names, kinds = {}, {}
  for i = 1, #places do
    local row = scopes[places[i]]
    local kind = is_ring(row) and 1 or 0
    if is_flight(row) then kind = kind + (row[4] >= 0 and 2 or 4) end
    names[i], kinds[i] = row[1], kind
  end
  local key, lasts = P .. 'r:' .. id, hold + SLACK_S
  local packed =
    cmsgpack.pack({second, bucket, tokens, usd, 1, 1, 0, {second, tokens}, names, kinds, 0})
  if not call('SET', key, packed, 'NX', 'EX', lasts) then
    if not may_again or record_of(id)[5] == 1 then return false end
    call('SET', key, packed, 'EX', lasts)
  end
  for i = 1, #places do
    local kind = kinds[i]
    if kind % 2 == 1 then count(names[i], second, 1, tokens) end
    if kind >= 2 then fly(names[i], bucket, kind < 4 and 1 or 0, tokens, usd) end
  end
  return true
end

-- Whether a limit by the minute, or of calls at the same time, refuses, and for how long.
local function quick_wait(row, tokens)
  local wait, which
  local function refuse(limit, ms)
    if wait ~= -1 and (not wait or ms == -1 or ms > wait) then wait, which = ms, limit end
  end
  if is_ring(row) then
    local ring = ring_of(row[1])
    if row[2] >= 0 and ring.R + 1 > row[2] then
      refuse(1, row[2] == 0 and -1 or ms_until_left(ring, 'r', ring.R + 1 - row[2]))
    end
    if row[3] >= 0 and (ring.T + tokens > row[3] or row[3] == 0) then
      local never = tokens > row[3] or row[3] == 0
      refuse(2, never and -1 or ms_until_left(ring, 't', ring.T + tokens - row[3]))
    end
  end
  if row[4] >= 0 and flight_of(row[1]).c + 1 > row[4] then
    refuse(3, row[4] == 0 and -1 or 1000)
  end
  return wait, which
end

-- The same for a sum of the ledger; nil and 'missing' where it is not known.
local function ledger_wait(op, row, period, limit, reserved, own)
  local total = total_of(period, row[1], date(period))
  if not total.n then return nil, 'missing' end
  if #row[7] > 0 and limit > 0 then
    alert(op, period, row[1], date(period), total, limit, row[7])
  end
  local spent = total.n + left_of(period, row[1], date(period))
  if spent + reserved + own <= limit and limit > 0 then return nil end
  if own > limit or limit == 0 then return -1 end
  -- What calls that run have reserved is free, or spent, when they are settled.
  if spent + own <= limit then return 5000 end
  return ms_until(date(period .. '_end'))
end

local function admit(op, id, tokens, usd, places)
  local wait, at_scope, at_limit
  local missing = {2}
  local function refuse(place, limit, ms)
    if wait ~= -1 and (not wait or ms == -1 or ms > wait) then
      wait, at_scope, at_limit = ms, place, limit
    end
  end
  for i = 1, #places do
    local row = scopes[places[i]]
    local ms, limit = quick_wait(row, tokens)
    if ms then refuse(i, limit, ms) end
    for l = 5, 6 do
      if row[l] >= 0 then
        local f, period = flight_of(row[1]), l == 5 and 'd' or 'u'
        local reserved, own = l == 5 and f.t or f.u, l == 5 and tokens or usd
        local ms, why = ledger_wait(op, row, period, row[l], reserved, own)
        if why then
          local n = #missing
          missing[n + 1], missing[n + 2], missing[n + 3] = period, row[1], date(period)
        elseif ms then
          refuse(i, l - 1, ms)
        end
      end
    end
  end
  if wait or #missing > 1 then
    local record = record_of(id)
    if record and record[5] == 1 then return counters({3, 0, 0, 0}, places) end
    return wait and counters({1, at_scope, at_limit, wait}, places) or missing
  end
  local kind = charge(id, tokens, usd, places, now, true) and 0 or 3
  return counters({kind, 0, 0, 0}, places)
end

-- Makes `tokens` what is counted of a call.
local function recount(record, tokens)
  local parts, names, kinds = record[8], record[9], record[10]
  local counted = 0
  for i = 2, #parts, 2 do counted = counted + parts[i] end
  local function change(second, by)
    for i = 1, #names do
      if kinds[i] % 2 == 1 then count(names[i], second, 0, by) end
    end
  end
  if tokens > counted then
    change(now, tokens - counted)
    parts[#parts + 1], parts[#parts + 2] = now, tokens - counted
  end
  while tokens < counted do
    local last = #parts
    local back = math.min(parts[last], counted - tokens)
    change(parts[last - 1], -back)
    counted = counted - back
    parts[last] = parts[last] - back
    if parts[last] == 0 and last > 2 then parts[last], parts[last - 1] = nil, nil end
  end
end

local function end_call(record, frees_reservation)
  local places = record[5]
  local tokens, usd = 0, 0
  if frees_reservation and record[6] == 1 then
    tokens, usd, record[6] = record[3], record[4], 0
  end
  record[5] = 0
  if places == 0 and tokens == 0 and usd == 0 then return end
  for i = 1, #record[9] do
    local kind = record[10][i]
    if kind >= 2 then fly(record[9][i], record[2], kind < 4 and -places or 0, -tokens, -usd) end
  end
end

-- What a caller who left before the end made the engine do is known to nobody. It counts as reserved
-- for the day and the month: were it free, who always leaves would never pay.
local function stand(record)
  if record[6] == 0 or record[7] ~= 2 or record[11] ~= 1 then return end
  record[12] = {date('d'), date('u')}
  for i = 1, #record[9] do
    if record[10][i] >= 2 then
      leave('d', record[9][i], record[12][1], record[3])
      leave('u', record[9][i], record[12][2], record[4])
    end
  end
  end_call(record, true)
end

local function withdraw(record)
  if not record[12] then return end
  for i = 1, #record[9] do
    if record[10][i] >= 2 then
      leave('d', record[9][i], record[12][1], -record[3])
      leave('u', record[9][i], record[12][2], -record[4])
    end
  end
  record[12] = nil
end

local function release(id, how)
  local record = record_of(id)
  if not record then return {0} end
  local nothing_done = how == 0 and record[7] ~= 1
  if how == 2 then record[11] = 1 end
  stand(record)
  end_call(record, nothing_done)
  if nothing_done then recount(record, 0) end
  store(id, record)
  return {1}
end

local function settle(id, tokens)
  local record = record_of(id)
  if not record then return {0} end
  if tokens >= 0 then
    record[7] = 1
    withdraw(record)
    end_call(record, true)
    recount(record, tokens)
  else
    if record[7] == 0 then record[7] = 2 end
    stand(record)
    end_call(record, false)
  end
  store(id, record)
  return {1}
end

local function take_total(op, period, scope, day, value, version, limit, percents)
  local total = total_of(period, scope, day)
  if not total.v or version > total.v then
    total.n, total.v = value, version
    call('HSET', total.key, 'n', value, 'v', version)
    call('EXPIRE', total.key, TOTAL_S)
  end
  if limit > 0 then alert(op, period, scope, day, total, limit, percents) end
  return {1}
end

-- {requests, ms until all left, tokens, ms, concurrent, day's total, reserved, ms, month's…, missing}
local function state(place)
  local row = scopes[place]
  local ring, f = ring_of(row[1]), flight_of(row[1])
  local result = {0, ring.R, ms_until_left(ring, 'r', 0), ring.T, ms_until_left(ring, 't', 0), f.c}
  local missing = {2}
  for l = 5, 6 do
    local period = l == 5 and 'd' or 'u'
    local total = row[l] >= 0 and total_of(period, row[1], date(period))
    if total and not total.n then
      local n = #missing
      missing[n + 1], missing[n + 2], missing[n + 3] = period, row[1], date(period)
    end
    local n = #result
    result[n + 1] = total and total.n and total.n + left_of(period, row[1], date(period)) or 0
    result[n + 2] = l == 5 and f.t or f.u
    result[n + 3] = ms_until(date(period .. '_end'))
  end
  return #missing > 1 and missing or result
end

local function heartbeat(replica, remember)
  call('ZADD', P .. 'replicas', now, replica)
  call('ZREMRANGEBYSCORE', P .. 'replicas', '-inf', now - remember)
  local live = call('ZRANGE', P .. 'replicas', 0, -1)
  table.sort(live)
  table.insert(live, 1, 0)
  return live
end

-- ------------------------------------------------------------------------------------------------

local results = {}
for i = 1, #ops do
  local op = ops[i]
  local what = op[1]
  if what == 1 then
    results[i] = admit(i, op[2], op[3], op[4], op[5])
  elseif what == 2 then
    charge(op[2], op[3], op[4], op[5], math.min(op[6], now), false)
    results[i] = {1}
  elseif what == 3 then
    results[i] = release(op[2], op[3])
  elseif what == 4 then
    results[i] = settle(op[2], op[3])
  elseif what == 5 then
    results[i] = take_total(i, op[2], op[3], op[4], op[5], op[6], op[7], op[8])
  elseif what == 6 then
    results[i] = state(op[2])
  elseif what == 7 then
    results[i] = heartbeat(op[2], op[3])
  else
    call('ZREM', P .. 'replicas', op[2])
    results[i] = {1}
  end
end

for _, ring in pairs(rings) do
  if ring.dirty then
    write_past(ring)
    local slot = now % 60
    call('HSET', ring.key, 's', now, 'R', ring.R, 'T', ring.T, 'r' .. slot, ring.r, 't' .. slot, ring.t)
  end
end
for _, f in pairs(flights) do
  if f.dirty then
    if f.b then
      call('HSET', f.key, 'b', f.b, 'e', f.e, 'c', f.c, 't', f.t, 'u', f.u,
        'c' .. lapses, f.C, 't' .. lapses, f.T, 'u' .. lapses, f.U)
    end
  end
end
if seen ~= now then
  local idle = call('ZRANGEBYSCORE', P .. 'idle', '-inf', '(' .. now, 'LIMIT', 0, SWEEP)
  for i = 1, #idle do
    if not rings[idle[i]] and not flights[idle[i]] then
      call('DEL', P .. 'm:' .. idle[i], P .. 'f:' .. idle[i])
      call('ZREM', P .. 'idle', idle[i])
    end
  end
end

local numbers, texts = {now, micros}, {false}
for i = 1, #results do
  local result, n = results[i], #numbers
  if type(result[2]) == 'string' then
    numbers[n + 1], numbers[n + 2] = 1 - #result, result[1]
    for j = 2, #result do texts[#texts + 1] = result[j] end
  else
    numbers[n + 1] = #result
    for j = 1, #result do numbers[n + 1 + j] = result[j] end
  end
end
for i = 1, #alerts do
  for j = 1, 5 do texts[#texts + 1] = tostring(alerts[i][j]) end
end
-- In pieces, for `unpack` has a bound.
local pieces = {}
for from = 1, #numbers, 100 do
  local upto = math.min(from + 99, #numbers)
  pieces[#pieces + 1] = struct.pack('<' .. string.rep('i8', upto - from + 1), unpack(numbers, from, upto))
end
texts[1] = table.concat(pieces)
return #texts > 1 and texts or texts[1]
