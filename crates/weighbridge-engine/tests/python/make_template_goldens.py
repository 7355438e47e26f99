"""Renders of the templates beside this folder, by transformers' own chat template environment.

    pip install transformers jinja2
    python make_template_goldens.py > ../goldens/templates.json

The date that `strftime_now` prints is fixed.
"""

import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils

TODAY = datetime.datetime(2026, 11, 21)
TOOLS = [
    {"type": "function", "function": {
        "name": "find_order", "description": "Finds an order <by> its \"number\" & more.",
        "parameters": {"type": "object", "properties": {
            "order": {"type": "string", "description": " The number, e.g. é12 "},
            "limit": {"type": ["integer", "string"]},
            "weights": {"type": "number"}}, "required": ["order"]}}},
    {"type": "function", "function": {
        "name": "now", "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "call00001", "type": "function",
        "function": {"name": "find_order", "arguments": {"order": "é<12>", "limit": 3}}}
U, A, S = ("user", "assistant", "system")


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": [m(U, "Hi")],
    "system": [m(S, "  Be brief. "), m(U, "Hi\nthere ")],
    "turns": [m(U, "a"), m(A, " b\n"), m(U, "c <d> & 'e' \"f\" 😀")],
    "system_turns": [m(S, "s"), m(U, "a"), m(A, "b"), m(U, "c"), m(A, "d"), m(U, "e")],
    "not_alternating": [m(U, "a"), m(U, "b")],
    "odd_role": [m(U, "a"), m("critic", "b")],
    "thinking": [m(U, "a"), m(A, "<think>\nhm\n</think>\n\nb"), m(U, "c")],
    "reasoning": [m(U, "a"), m(A, "b", reasoning_content="hm")],
    "no_think": [m(S, "Plain. /no_think"), m(U, "a"), m(A, "b"), m(U, "c")],
    "empty": [m(U, "")],
    "syntax": [m(U, "{{ 7 * 7 }} {% raw %} {# x #}")],
    "tool_call": [m(U, "where?"), m(A, "", tool_calls=[CALL]),
                  m("tool", "{\"found\": true}", tool_call_id="call00001", name="find_order"),
                  m(A, "There."), m(U, "thanks")],
    "two_results": [m(U, "where?"), m(A, "", tool_calls=[CALL]),
                    m("tool", "1", tool_call_id="call00001", name="find_order"),
                    m("tool", "2", tool_call_id="call00001", name="find_order")],
    "long": [m(U if i % 2 == 0 else A, f"turn {i}") for i in range(7)],
}


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return TODAY


def main():
    chat_template_utils.datetime = FixedDatetime
    folder = pathlib.Path(__file__).parent.parent / "templates"
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        template = chat_template_utils._compile_jinja_template(path.read_text())
        for name, messages in CONVERSATIONS.items():
            for tools in [None, TOOLS]:
                for add in [True, False]:
                    case = {"template": path.name, "conversation": name,
                            "tools": tools is not None, "add_generation_prompt": add}
                    try:
                        case["text"] = template.render(
                            messages=messages, tools=tools, documents=None,
                            add_generation_prompt=add, bos_token="<s>", eos_token="</s>")
                    except jinja2.exceptions.TemplateError as error:
                        case["refused"] = str(error)
                    except Exception as error:
                        case["failed"] = f"{type(error).__name__}: {error}"
                    cases.append(case)
    print(json.dumps({
        "made_with": {"transformers": transformers.__version__, "jinja2": jinja2.__version__,
                      "script": "make_template_goldens.py"},
        "today": TODAY.strftime("%Y-%m-%d"), "bos_token": "<s>", "eos_token": "</s>",
        "tools": TOOLS, "conversations": CONVERSATIONS, "cases": cases,
    }, ensure_ascii=False, indent=0))


main()
