"""An honest engine without weights: vLLM's HTTP over a model of what makes engines fast and slow.

It keeps time as an engine does (prefill, decode, slots, a queue, a key-value cache that remembers
prefixes) and says the truth about what it did, so that routing can be measured on any machine.
"""
