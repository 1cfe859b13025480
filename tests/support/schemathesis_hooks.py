"""What schemathesis is told by tests/test_serve_schemathesis.py."""

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

# Refusals of what a JSON schema cannot forbid: fields that do not go together, and schemas inside the body.
BETWEEN_FIELDS = (
    "best_of must be an integer from",
    "best_of above n cannot be streamed",
    "max_tokens must equal",
    "top_logprobs goes with",
    "texts at most, with best_of",
    "tool_choice must",
    "tools must have names of their own",
    "is no earlier call's",
    "is not kept here",
    "with those before",
    "must not end with one of the assistant",
    "the recipient of a message",
    "no grammar can be made of the schema",
    "structured_outputs may say",
    "guided_json must be",
    "structured_outputs.json must be",
    "logit_bias must have token ids",
)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    between = response.status_code == 400 and any(why in response.text for why in BETWEEN_FIELDS)
    return not (isinstance(failure, RejectedPositiveData) and between)
