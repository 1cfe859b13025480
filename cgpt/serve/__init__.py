"""The HTTP server of `cgpt serve`, as clients of OpenAI's API expect it, over cgpt.generation.engine.

app.py puts it together; guard.py lets requests in; body.py reads them, within limits.py; completions.py answers them,
with logprobs.py; so do chat.py and responses.py, which has items.py: for both dialog.py reads what was said and turn.py
what the model says. stream.py sends piece by piece, errors.py what fails. models.py, metrics.py and page.py are the
smaller endpoints; openapi.py says what all take and give, by schemas.py. protocol.py and server.py are uvicorn's side.
Needs pip install 'cgpt[serve]'.
"""
