"""The HTTP server of `cgpt serve`, as clients of OpenAI's and Anthropic's APIs expect it, over cgpt.generation.engine.

From top to bottom: server.py runs on uvicorn what app.py puts together; guard.py lets requests in; openai/ and
anthropic/ have the endpoints, page/ has what people see; openapi.py answers by them and describes them, stream.py sends
answers as they come; conversation.py makes turns of chats, service.py is what all share. Below it metrics.py counts,
body.py reads a request within limits.py, validation.py checks it, and errors.py says what fails. Needs the extra
[serve].
"""
