-- Reads what auth and routing go by out of JSON bodies, into dynamic metadata:
--
--   infermesh.request     the fields of FIELDS with the values that they have, `stream` always;
--                         `body` is `invalid` where the body is no JSON object
--   infermesh.prompt      `tools`, where the body lists any; `vision`, where Ollama's lists pictures
--   infermesh.fallbacks   `models`: the list as it stands, in base64; auth reads it too
--
-- Envoy's json_to_metadata makes a tree of the whole body, which was about half of Envoy's CPU for
-- 100 KB (perf, under that workload of `make bench`), and knows no lists. This reads the keys of the
-- outermost object and passes over their values, strings at the speed of memchr. Of what is nested it
-- checks nothing: the service behind parses it all, and refuses a body whose model is not the one
-- that the call was let in with.

local FIELDS = {}
for _, name in ipairs({
  "model", "stream", -- auth, and the form of the answer
  "max_tokens", "max_completion_tokens", "n", "best_of", -- what auth reserves
  "user", "session_id", "preferred_framework", "optimization_level", "enable_caching", -- routing
}) do FIELDS[name] = true end
local SAME = {max_output_tokens = "max_tokens"} -- the Responses API's name
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local MOST = 4096 -- bytes of a value; longer ones are cut
local NAME = 256 -- bytes of a name; the longest above has 126 where each character is escaped

-- Where a string ends that begins at the quote at `at`: at its other quote.
local function close(text, at)
  repeat
    at = text:find('"', at + 1, true)
    if at == nil then return nil end
    local before = at - 1
    while text:byte(before) == 92 do before = before - 1 end -- a backslash
  until (at - before) % 2 == 1
  return at
end

local function utf8(point)
  if point < 0x80 then return string.char(point) end
  if point < 0x800 then return string.char(0xC0 + math.floor(point / 64), 0x80 + point % 64) end
  if point < 0x10000 then
    return string.char(0xE0 + math.floor(point / 4096), 0x80 + math.floor(point / 64) % 64, 0x80 + point % 64)
  end
  return string.char(0xF0 + math.floor(point / 262144), 0x80 + math.floor(point / 4096) % 64,
    0x80 + math.floor(point / 64) % 64, 0x80 + point % 64)
end

-- What the inside of a string says; nil where it says nothing that JSON knows.
local function decode(text)
  if text:find("[%z\1-\31]") then return nil end
  local pieces, at = {}, 1
  while true do
    local slash = text:find("\\", at, true)
    if slash == nil then break end
    pieces[#pieces + 1] = text:sub(at, slash - 1)
    local kind = text:sub(slash + 1, slash + 1)
    at = slash + 2
    if kind == "u" then
      local point = tonumber(text:match("^%x%x%x%x", at) or "", 16)
      if point == nil then return nil end
      at = at + 4
      if point >= 0xD800 and point < 0xE000 then -- half of a pair
        local low = text:match("^\\u([dD][c-fC-F]%x%x)", at)
        if low == nil or point >= 0xDC00 then return nil end
        point = 0x10000 + (point - 0xD800) * 1024 + tonumber(low, 16) - 0xDC00
        at = at + 6
      end
      pieces[#pieces + 1] = utf8(point)
    elseif kind == '"' or kind == "\\" or kind == "/" then
      pieces[#pieces + 1] = kind
    elseif ESCAPES[kind] then
      pieces[#pieces + 1] = ESCAPES[kind]
    else
      return nil
    end
  end
  if #pieces > 0 then text = table.concat(pieces) .. text:sub(at) end
  return text
end

-- Metadata holds UTF-8 only; Envoy would send what auth cannot read.
local function is_utf8(text)
  if not text:find("[\128-\255]") then return true end
  text = text:gsub("[\194-\223][\128-\191]", " ")
  text = text:gsub("\224[\160-\191][\128-\191]", " "):gsub("\237[\128-\159][\128-\191]", " ")
  text = text:gsub("[\225-\236\238\239][\128-\191][\128-\191]", " ")
  text = text:gsub("\240[\144-\191][\128-\191][\128-\191]", " ")
  text = text:gsub("[\241-\243][\128-\191][\128-\191][\128-\191]", " ")
  text = text:gsub("\244[\128-\143][\128-\191][\128-\191]", " ")
  return not text:find("[\128-\255]")
end

-- Where the value ends that begins at `at`.
local function pass(text, at)
  local first = text:byte(at)
  if first == 34 then return close(text, at) end
  if first ~= 91 and first ~= 123 then
    local after = text:match("^[%w.+-]+()", at)
    return after and after - 1
  end
  local depth = 0
  repeat
    at = text:find('["%[%]{}]', at)
    if at == nil then return nil end
    local byte = text:byte(at)
    if byte == 34 then
      at = close(text, at)
      if at == nil then return nil end
    else
      depth = depth + ((byte == 91 or byte == 123) and 1 or -1)
    end
    at = at + 1
  until depth == 0
  return at - 1
end

-- Shows each member of the object at `at`, by name and by where its value begins and ends. Returns
-- where the object ends; nil where it is none.
local function members(text, at, show)
  at = text:match("^{[ \t\r\n]*()", at)
  if at == nil or text:byte(at) == 125 then return at end
  repeat
    if text:byte(at) ~= 34 then return nil end
    local last = close(text, at)
    if last == nil then return nil end
    local name = decode(text:sub(at + 1, math.min(last - 1, at + NAME)))
    at = text:match("^[ \t\r\n]*:[ \t\r\n]*()", last + 1)
    if at == nil then return nil end
    last = pass(text, at)
    if last == nil then return nil end
    if name ~= nil then show(name, at, last) end
    at = text:match("^[ \t\r\n]*()[,}]", last + 1)
    if at == nil or text:byte(at) == 125 then return at end
    at = text:match("^[ \t\r\n]*()", at + 1)
  until false
end

-- The value that stands there. Returns nil for null, lists and objects, and false, true where it is
-- no JSON.
local function value(text, first, last)
  local byte = text:byte(first)
  if byte == 34 then
    local said = decode(text:sub(first + 1, last - 1))
    if said == nil or not is_utf8(said) then return nil, true end
    if #said > MOST then said = said:sub(1, MOST):gsub("[\128-\255]+$", "") end
    return said
  end
  if byte == 91 or byte == 123 then return nil end
  local word = text:sub(first, last)
  if word == "true" then return true end
  if word == "false" then return false end
  if word == "null" then return nil end
  if not word:find("^-?%d+%.?%d*[eE]?[+-]?%d*$") then return nil, true end
  local number = tonumber(word)
  if number == nil then return nil, true end
  if number == math.huge or number == -math.huge then return nil end
  return number
end

-- How many prompts stand in a list of texts or of lists of tokens; nil in any other value.
local function count(text, first)
  local at = text:match('^%[[ \t\r\n]*()["%[]', first)
  local number = 0
  while at ~= nil do
    local last = pass(text, at)
    if last == nil then return nil end
    number = number + 1
    at = text:match("^[ \t\r\n]*,[ \t\r\n]*()", last + 1)
  end
  return number > 1 and number or nil
end

-- The same fields where the body is Ollama's: it streams unless it says no, and `name:latest` is
-- `name`; here, so that limits and lists of models hold for it.
local function of_ollama(found)
  if found.stream == nil then found.stream = true end
  found.max_tokens, found.num_predict = found.num_predict, nil
  if found.schema ~= nil then found.response_format = "json_schema" end
  found.schema = nil
  local model = found.model
  if type(model) == "string" and model:sub(-7) == ":latest" then found.model = model:sub(1, -8) end
end

-- The fields of a body, and whether it is a JSON object as far as that is looked at.
local function read(text, is_ollamas)
  local found, lists, is_bad = {}, {}, false
  local function nested(name, first, as)
    members(text, first, function(key, from, to)
      if key == name then found[as] = value(text, from, to) end
    end)
  end
  local function show(name, first, last)
    name = SAME[name] or name
    if FIELDS[name] then
      local said, is_none = value(text, first, last)
      found[name], is_bad = said, is_bad or is_none
    elseif name == "prompt" then -- each gets an answer of its own
      found.prompts = count(text, first)
    elseif name == "response_format" then
      found.response_format = nil
      nested("type", first, "response_format")
    elseif name == "metadata" then -- Anthropic's
      nested("user_id", first, "user_id")
    elseif is_ollamas and name == "options" then
      found.num_predict = nil
      nested("num_predict", first, "num_predict")
    elseif is_ollamas and name == "format" then
      found.schema = nil
      nested("type", first, "schema") -- every JSON schema has one
    elseif name == "tools" or name == "fallback_models" or (is_ollamas and name == "images") then
      lists[name] = text:byte(first) == 91 and text:sub(first, math.min(last, first + MOST)) or nil
    end
  end
  local at = text:match("^[ \t\r\n]*()", 1)
  local last = members(text, at, show)
  if last == nil or not text:find("^[ \t\r\n]*$", last + 1) then is_bad = true end
  if found.user == nil then found.user = found.user_id end
  found.user_id = nil
  if is_ollamas then of_ollama(found) end
  return found, lists, not is_bad
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") ~= "POST" then return end
  local kind = (headers:get("content-type") or ""):lower()
  if kind:sub(1, 16) == "application/grpc" then return end
  local is_ollamas = headers:get(":path"):sub(1, 5) == "/api/"
  local found, lists, is_good = {}, {}, false
  local is_json = kind:find("^application/json *;") or kind:find("^application/json *$")
  -- Ollama asks for no type, and its users' `curl -d` says this one.
  if is_json or (is_ollamas and (kind == "" or kind == "application/x-www-form-urlencoded")) then
    local body = handle:body()
    if body ~= nil then found, lists, is_good = read(body:getBytes(0, body:length()), is_ollamas) end
  end
  -- Not before the body, for which the script waits: nothing that it holds outlives a wait.
  local metadata = handle:streamInfo():dynamicMetadata()
  if not is_good then metadata:set("infermesh.request", "body", "invalid") end
  if found.stream == nil then found.stream = "false" end
  for name, said in pairs(found) do metadata:set("infermesh.request", name, said) end
  if lists.tools ~= nil and lists.tools:find("^%[[ \t\r\n]*{") then
    metadata:set("infermesh.prompt", "tools", true)
  end
  if lists.images ~= nil and lists.images:find('^%[[ \t\r\n]*"') then
    metadata:set("infermesh.prompt", "vision", true)
  end
  if lists.fallback_models ~= nil then
    metadata:set("infermesh.fallbacks", "models", handle:base64Escape(lists.fallback_models))
  end
end
