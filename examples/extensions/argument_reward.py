"""A reward: the part of the record's arguments that the answer's calls have, with the right value."""

from kd.rewards.reward import REWARDS, Reward
from kd.toolcalls.json_values import same_json


def right_arguments(record, turn, text, calls):
    """Judge `text` in place of record.messages[turn]; `calls` (ParsedCalls) are the calls found in it."""
    wanted = [call["function"] for call in record.messages[turn].get("tool_calls") or ()]
    pairs = [(call["name"], key, value) for call in wanted for key, value in call["arguments"].items()]
    right = sum(
        any(
            call["name"] == name and key in call["arguments"] and same_json(call["arguments"][key], value)
            for call in calls.calls
        )
        for name, key, value in pairs
    )
    share = right / len(pairs) if pairs else 1.0
    return Reward(share if calls.valid or not wanted else 0.0, {"arguments": share})


REWARDS.register("right_arguments", right_arguments)
