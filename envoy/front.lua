-- What the front door does to calls and answers besides what Envoy's own filters do:
--
--   on a call     drops gRPC's words that REST callers have no business with, cuts a bounded part
--                 out of the prompt for routing (services/routing/prompt.py is its twin), and tells
--                 auth how long the prompt is, for the limits
--   on an answer  makes a service's error, which comes as a header in OpenAI's form, the body; gives
--                 every refusal, whoever's it is, the form of the dialect that the path belongs to
--                 (services/kit/dialects.py has its twin)

-- Where routing finds prompts: 0 in JSON, 1 in a ChatRequest, 2 in a message around one.
local PROMPTS = {
  ["/v1/chat/completions"] = 0,
  ["/v1/completions"] = 0,
  ["/v1/messages"] = 0,
  ["/v1/messages/count_tokens"] = 0,
  ["/infermesh.inference.v1.InferenceService/Chat"] = 1,
  ["/infermesh.inference.v1.InferenceService/StreamChat"] = 2,
}
-- Anthropic's words for statuses.
local ANTHROPIC = {
  ["400"] = "invalid_request_error",
  ["401"] = "authentication_error",
  ["403"] = "permission_error",
  ["404"] = "not_found_error",
  ["413"] = "request_too_large",
  ["429"] = "rate_limit_error",
  ["503"] = "overloaded_error",
  ["504"] = "timeout_error",
}
-- Whose bodies are prompts as a whole.
local WHOLE = {
  ["/v1/embeddings"] = true,
  ["/infermesh.embeddings.v1.EmbeddingsService/Embed"] = true,
  ["/infermesh.inference.v1.InferenceService/Embed"] = true,
}
-- Which bytes of a prompt routing sees; services/routing/prompt.py says why.
local HEAD, SAMPLE, SAMPLES = 4096, 64, {}
for at = 5, 16 do SAMPLES[#SAMPLES + 1] = at * 1024 end
for at = 20, 64, 4 do SAMPLES[#SAMPLES + 1] = at * 1024 end
for at = 80, 256, 16 do SAMPLES[#SAMPLES + 1] = at * 1024 end

-- Returns where the prompt starts in an OpenAI body, from 0.
local function start_in_json(body, size)
  for _, searched in ipairs({4096, 32768}) do
    local head = body:getBytes(0, math.min(size, searched))
    local at = head:find('"messages"', 1, true) or head:find('"prompt"', 1, true)
    if at ~= nil then return at - 1 end
    if size <= searched then return nil end
  end
end

-- Returns what follows the model in a ChatRequest, from 0. Lengths differ from call to
-- call, so what they stand before is left out.
local function start_in_grpc(body, size, depth)
  local head = body:getBytes(0, math.min(size, 1024))
  local at = 6
  if head:byte(1) ~= 0 then return nil end -- compressed
  for level = depth, 1, -1 do
    if head:byte(at) ~= 10 then return nil end -- field 1
    local length, scale = 0, 1
    repeat
      at = at + 1
      local byte = head:byte(at)
      if byte == nil then return nil end
      length, scale = length + byte % 128 * scale, scale * 128
    until byte < 128
    at = at + 1
    if level == 1 then at = at + length end
  end
  if at > size then return nil end
  return at - 1
end

-- The list as it stands in the body's first or last 4 KiB; json_to_metadata knows no lists.
local function fallback_models(body, size)
  for _, from in ipairs({0, size - 4096}) do
    if from >= 0 then
      local text = body:getBytes(from, math.min(size, 4096))
      local _, at = text:find('"fallback_models"', 1, true)
      local list = at and text:match("^%s*:%s*(%b[])", at + 1)
      if list ~= nil then return list end
    end
  end
end

-- Whether the body lists tools: json_to_metadata knows no lists, and takes a constant for
-- what is not there too. Clients write them after the messages, and they may be long.
local function has_tools(body, size)
  for _, from in ipairs({0, math.max(size - 32768, 4032)}) do
    if from < size then
      local text = body:getBytes(from, math.min(size - from, from == 0 and 4096 or 32768))
      local at = 1
      repeat
        local _, last = text:find('"tools"', at, true)
        if last == nil then break end
        at = last + 1
        if text:find("^%s*:%s*%[%s*{", at) ~= nil then return true end
      until false
    end
  end
  return false
end

-- Whose paths these are; OpenAI's and the mesh's own are nobody's.
local function dialect_of(path)
  if path:sub(1, 12) == "/v1/messages" and (#path == 12 or path:byte(13) == 47) then return "anthropic" end
  if path:sub(1, 5) == "/api/" then return "ollama" end
end

-- The text of a field as it stands in JSON, quotes included; nil where it is not there, or no text.
local function text_in_json(body, name)
  local _, first = body:find('"' .. name .. '"%s*:%s*"')
  local at = first
  while at ~= nil do
    at = body:find('["\\]', at + 1)
    if at == nil then return nil end
    if body:byte(at) == 34 then return body:sub(first, at) end
    at = at + 1 -- what the backslash stands before
  end
end

-- An error in a dialect's form, of one in OpenAI's.
local function error_in(dialect, status, body, request_id)
  local message = text_in_json(body, "message") or '"The call was refused."'
  if dialect == "ollama" then return '{"error":' .. message .. '}' end
  local kind = ANTHROPIC[status] or (status >= "500" and "api_error" or "invalid_request_error")
  local param = text_in_json(body, "param")
  return '{"type":"error","error":{"type":"' .. kind .. '","message":' .. message
    .. (param and ',"param":' .. param or "") .. '},"request_id":"' .. request_id .. '"}'
end

-- Gives an answer of 400 or more the form of the caller's dialect; without a body, the one it has.
local function refuse(handle, headers, body)
  local caller = handle:streamInfo():dynamicMetadata():get("infermesh.caller") or {}
  -- Who was refused before this script saw the call is known by the route.
  local dialect = caller["dialect"] or handle:metadata():get("dialect")
  if dialect == nil or caller["grpc"] then
    if body ~= nil then handle:body(true):setBytes(body) end
    return
  end
  local status, request_id = headers:get(":status"), caller["request_id"] or ""
  headers:replace("content-type", "application/json")
  if dialect == "anthropic" and request_id ~= "" then headers:replace("request-id", request_id) end
  local buffer = handle:body(true) -- it may be waited for: no other object of Envoy's lives past this
  if body == nil then body = buffer:getBytes(0, math.min(buffer:length(), 16384)) end
  buffer:setBytes(error_in(dialect, status, body, request_id))
end

local function cut_prompt(handle, form)
  local body = handle:body()
  if body == nil then return end
  local size = body:length()
  local start
  if form == 0 then start = start_in_json(body, size) else start = start_in_grpc(body, size, form) end
  local metadata = handle:streamInfo():dynamicMetadata()
  local models = form == 0 and fallback_models(body, size)
  if form == 0 and has_tools(body, size) then metadata:set("infermesh.prompt", "tools", true) end
  if models then -- apart from the prompt, for auth reads it too
    metadata:set("infermesh.fallbacks", "models", handle:base64Escape(models))
  end
  metadata:set("infermesh.request", "prompt_bytes", size) -- tools are tokens too
  if start == nil then return end
  size = size - start
  local pieces = {body:getBytes(start, math.min(size, HEAD))}
  for _, at in ipairs(SAMPLES) do
    if at + SAMPLE > size then break end
    pieces[#pieces + 1] = body:getBytes(start + at, SAMPLE)
  end
  metadata:set("infermesh.prompt", "text", handle:base64Escape(table.concat(pieces)))
  metadata:set("infermesh.prompt", "size", size)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type")
  if kind ~= nil and kind:sub(1, 16) == "application/grpc" then
    handle:streamInfo():dynamicMetadata():set("infermesh.caller", "grpc", true)
  else -- words of gRPC's that the services would obey
    headers:remove("grpc-timeout")
    headers:remove("grpc-encoding")
  end
  local path = headers:get(":path")
  local query = path:find("?", 1, true)
  if query ~= nil then path = path:sub(1, query - 1) end
  local dialect = dialect_of(path)
  if dialect ~= nil then
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set("infermesh.caller", "dialect", dialect)
    metadata:set("infermesh.caller", "request_id", headers:get("x-request-id"))
  end
  if headers:get(":method") ~= "POST" then return end
  local form = PROMPTS[path]
  if form ~= nil then
    cut_prompt(handle, form)
  elseif WHOLE[path] then
    local body = handle:body()
    if body ~= nil then
      handle:streamInfo():dynamicMetadata():set("infermesh.request", "prompt_bytes", body:length())
    end
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local body = headers:get("x-mesh-error")
  if body == nil then
    local status = headers:get("grpc-status")
    if status == nil or status == "0" then
      if headers:get(":status") >= "400" then refuse(handle, headers) end
      return
    end
    -- gRPC itself refused, before any service could say why.
    local kind, code = "invalid_request_error", "invalid_request"
    if headers:get(":status") >= "500" then kind, code = "server_error", "internal" end
    body = '{"error":{"message":"The service refused the form of the call.","type":"' .. kind .. '","param":null,"code":"' .. code .. '"}}'
  end
  headers:remove("x-mesh-error")
  local caller = handle:streamInfo():dynamicMetadata():get("infermesh.caller")
  if caller ~= nil and caller["grpc"] then return end
  -- gRPC's own form, of a call that was refused before it came here; in REST it is never 200.
  if headers:get(":status") == "200" then return end
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-status-details-bin")
  headers:replace("content-type", "application/json")
  refuse(handle, headers, body)
end
