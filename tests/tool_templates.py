"""Chat templates that write calls of tools in different forms, as short as the public ones of those models allow."""

from __future__ import annotations

# As Llama 3.1 to 3.3: a call is the whole reply, tools stand in the first message, results are JSON texts.
LLAMA = r"""
{{- '<|begin_of_text|>' }}
{%- set first = messages[0].content | trim %}
{{- '<|start_header_id|>user<|end_header_id|>\n\n' }}
{%- if tools %}
    {{- 'Given the following functions:\n\n' }}
    {%- for tool in tools %}{{- (tool | tojson) + '\n\n' }}{%- endfor %}
{%- endif %}
{{- first + '<|eot_id|>' }}
{%- for message in messages[1:] %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (message.content | tojson) + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at once') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""

_MISTRAL = r"""
{{- '<s>' }}
{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and message == last %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
        RESULT
    {%- elif message.tool_calls %}
        CALLS
        {{- '</s>' }}
    {%- else %}
        {{- message.content + '</s>' }}
    {%- endif %}
{%- endfor %}
"""

# As Mistral's of 2024: a list of objects with ids.
MISTRAL = _MISTRAL.replace(
    "RESULT", """{{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' + message.tool_call_id }}
        {{- '"}[/TOOL_RESULTS]' }}"""
).replace(
    "CALLS", """{{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ']' if loop.last else ', ' }}
        {%- endfor %}"""
)  # fmt: skip

# As Mistral's from 2025 on: a call's name stands before its arguments.
NAMED = _MISTRAL.replace(
    "RESULT", "{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}"
).replace(
    "CALLS", """{%- for call in message.tool_calls %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
        {%- endfor %}"""
)  # fmt: skip

# As Qwen3-Coder: arguments are no JSON.
ELEMENTS = NAMED.replace(
    "'[ARGS]' + (call.function.arguments | tojson)", "'>' + (call.function.arguments.items() | join)"
)
