"""The words of OpenAI's form and of JSON schemas, which nobody chose to write into a prompt."""

NOT_PROMPT = frozenset(
    {
        "fallback_models",
        "logit_bias",
        "model",
        "optimization_level",
        "preferred_framework",
        "priority",
        "session_id",
        "stream_options",
    }
)
"""Fields of requests that no engine puts into a prompt, or that engines do not get."""

TOKENS = frozenset(
    {
        "input_embeds",
        "input_ids",
        "inputs_embeds",
        "prompt_embeds",
        "prompt_ids",
        "prompt_token_ids",
        "token_ids",
    }
)
"""Fields with prompts that are no text, in lower case."""

MEDIA = frozenset(
    {
        "audio",
        "audio_embeds",
        "audio_url",
        "file",
        "image",
        "image_embeds",
        "image_url",
        "input_audio",
        "input_image",
        "input_video",
        "video",
        "video_url",
    }
)
"""Fields of a message's parts that hold no text."""

_OF_SCHEMAS = frozenset(
    {
        "$defs",
        "$ref",
        "$schema",
        "additionalProperties",
        "allOf",
        "anyOf",
        "array",
        "boolean",
        "const",
        "default",
        "definitions",
        "description",
        "enum",
        "examples",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "integer",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "not",
        "null",
        "nullable",
        "number",
        "object",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "required",
        "schema",
        "string",
        "title",
        "uniqueItems",
    }
)

_OF_MESSAGES = frozenset(
    {
        "arguments",
        "assistant",
        "auto",
        "content",
        "custom",
        "detail",
        "developer",
        "function",
        "function_call",
        "id",
        "index",
        "input_audio",
        "json_object",
        "json_schema",
        "name",
        "none",
        "parameters",
        "reasoning",
        "reasoning_content",
        "refusal",
        "role",
        "strict",
        "system",
        "text",
        "tool",
        "tool_call_id",
        "tool_calls",
        "tool_choice",
        "type",
        "url",
        "user",
    }
)

WORDS = MEDIA | _OF_SCHEMAS | _OF_MESSAGES
"""Names of fields in messages and schemas, and the values of their `role` and `type`."""

WORDED = frozenset({"role", "type"})
"""Fields whose value is one of these words."""
