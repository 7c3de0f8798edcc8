-- What the front door does to calls and answers besides what Envoy's own filters do:
--
--   on a call     drops gRPC's words that REST callers have no business with, cuts a bounded part
--                 out of the prompt for routing (services/routing/prompt.py is its twin), and tells
--                 auth how long the prompt is, for the limits
--   on an answer  makes a service's error, which comes as a header in OpenAI's form, the body; gives
--                 every refusal, whoever's it is, the form of the dialect that the path belongs to
--                 (services/kit/dialects.py has its twin)

-- Where routing finds prompts: 0 in JSON, 1 behind the model of a message, 2 in a message around one.
local PROMPTS = {
  ["/v1/chat/completions"] = 0,
  ["/v1/completions"] = 0,
  ["/infermesh.inference.v1.OpenAIService/CreateChatCompletion"] = 0, -- the JSON in an HttpBody
  ["/v1/messages"] = 0,
  ["/v1/messages/count_tokens"] = 0,
  ["/api/chat"] = 0,
  ["/api/generate"] = 0,
  ["/infermesh.inference.v1.InferenceService/Chat"] = 1,
  ["/infermesh.inference.v1.InferenceService/StreamChat"] = 2,
  ["/infermesh.inference.v1.InferenceService/Complete"] = 1,
  ["/infermesh.inference.v1.InferenceService/StreamComplete"] = 1,
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
-- What stands in a message with a picture; Ollama's other list of pictures is for fields.lua.
local PICTURES = {anthropic = '"type"%s*:%s*"image"', ollama = '"images"%s*:%s*%[%s*"'}
-- Whose bodies are prompts as a whole.
local WHOLE = {
  ["/v1/embeddings"] = true,
  ["/api/embed"] = true,
  ["/api/embeddings"] = true,
  ["/v1/responses"] = true,
  ["/infermesh.embeddings.v1.EmbeddingsService/Embed"] = true,
  ["/infermesh.inference.v1.InferenceService/Embed"] = true,
  ["/infermesh.inference.v1.InferenceService/Rerank"] = true,
  ["/infermesh.inference.v1.InferenceService/CountTokens"] = true,
  ["/infermesh.inference.v1.InferenceService/Tokenize"] = true,
  ["/infermesh.inference.v1.InferenceService/Detokenize"] = true,
  ["/v1/rerank"] = true,
  ["/v2/rerank"] = true,
  ["/rerank"] = true,
  ["/tokenize"] = true,
  ["/detokenize"] = true,
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

-- Returns what follows the model in a typed request, from 0. Lengths differ from call to
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
    .. (param and ',"param":' .. param or "") .. '},"request_id":'
    .. (request_id and '"' .. request_id .. '"' or "null") .. "}"
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
  local status, request_id = headers:get(":status"), caller["request_id"]
  headers:replace("content-type", "application/json")
  if dialect == "anthropic" and request_id ~= nil then headers:replace("request-id", request_id) end
  local buffer = handle:body(true) -- it may be waited for: no other object of Envoy's lives past this
  if body == nil then body = buffer:getBytes(0, math.min(buffer:length(), 16384)) end
  buffer:setBytes(error_in(dialect, status, body, request_id))
end

local function cut_prompt(handle, form, dialect)
  local body = handle:body()
  if body == nil then return end
  local size = body:length()
  local start
  if form == 0 then start = start_in_json(body, size) else start = start_in_grpc(body, size, form) end
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set("infermesh.request", "prompt_bytes", size) -- tools are tokens too
  if start == nil then return end
  size = size - start
  local pieces = {body:getBytes(start, math.min(size, HEAD))}
  for _, at in ipairs(SAMPLES) do
    if at + SAMPLE > size then break end
    pieces[#pieces + 1] = body:getBytes(start + at, SAMPLE)
  end
  local text = table.concat(pieces)
  -- Routing knows OpenAI's word for pictures.
  local picture = PICTURES[dialect]
  if picture ~= nil and text:find(picture) then
    metadata:set("infermesh.prompt", "vision", true)
  end
  metadata:set("infermesh.prompt", "text", handle:base64Escape(text))
  metadata:set("infermesh.prompt", "size", size)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type")
  if kind ~= nil and kind:sub(1, 16) == "application/grpc" then
    handle:streamInfo():dynamicMetadata():set("infermesh.caller", "grpc", true)
    local timeout = headers:get("grpc-timeout")
    if timeout ~= nil then headers:add("x-mesh-timeout", timeout) end
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
    cut_prompt(handle, form, dialect)
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
  -- gRPC has no status of its own for it; in texts of the error the quotes would be escaped.
  if body:find('"code":"request_too_large"', 1, true) then headers:replace(":status", "413") end
  refuse(handle, headers, body)
end
