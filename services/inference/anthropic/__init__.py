"""Anthropic's Messages API, put to engines as OpenAI's chats."""
