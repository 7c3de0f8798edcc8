"""Typed messages and OpenAI's JSON, each made of the other. Pure functions that lose nothing.

Two forms of one thing become one: a list with a single text part is a text, one stop text is a
list of one, and null is the same as nothing. What OpenAI gave up for something newer (`functions`,
`function_call`) goes along as a field that only the engine knows.
"""
